"""What can be measured. Lives here: the list, and why a server cannot be had. Must not live here: starting one."""

from __future__ import annotations

import fnmatch
import importlib.util
import sys
from dataclasses import dataclass
from typing import Final

from bench.building import compile_c
from bench.errors import BenchError

__all__ = ["C_EPOLL", "SERVERS", "Server", "choose", "command_of"]

C_EPOLL: Final = "c-epoll"


@dataclass(frozen=True, slots=True)
class Server:
    """An echo server. Ours is an `app` for `shardnet run`; the others are commands."""

    name: str
    title: str
    app: str = ""
    reference: tuple[str, ...] = ()  # What `python -m bench.reference` is told.
    extra: bool = False  # Measured only when it is asked for by name.

    @property
    def ours(self) -> bool:
        return bool(self.app)


SERVERS: Final = (
    Server(C_EPOLL, "bare C, epoll, edge-triggered"),
    Server("uvloop-protocol", "uvloop, Protocol", reference=("uvloop", "protocol")),
    Server("uvloop-streams", "uvloop, streams", reference=("uvloop", "streams")),
    Server("asyncio-protocol", "asyncio, Protocol", reference=("asyncio", "protocol")),
    Server("asyncio-streams", "asyncio, streams", reference=("asyncio", "streams")),
    Server("shardnet-callback", "shardnet, `def on_data(conn, data)`", app="bench.handlers:on_data"),
    Server("shardnet-conn", "shardnet, `async def handler(conn)`, read and send", app="bench.handlers:read_send"),
    Server("shardnet-for", "shardnet, `async def handler(conn)`, async for", app="bench.handlers:async_for"),
    Server("shardnet-protocol", "shardnet, Protocol", app="bench.handlers:EchoProtocol"),
    Server("shardnet-streams", "shardnet, `async def handler(reader, writer)`", app="bench.handlers:streams"),
    Server("unmetered-callback", "shardnet, callback, without its meter", app="bench.unmetered:on_data", extra=True),
    Server("unmetered-conn", "shardnet, handler(conn), without its meter", app="bench.unmetered:read_send", extra=True),
)


def choose(patterns: list[str]) -> list[Server]:
    """The servers that any of these names or shell patterns means, all for none. Raises `BenchError` for a name that
    nobody has."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(server.name, pattern) for server in SERVERS):
            raise BenchError(f"no server is called {pattern!r}; there are {', '.join(s.name for s in SERVERS)}")
    if not patterns:
        return [server for server in SERVERS if not server.extra]
    return [server for server in SERVERS if any(fnmatch.fnmatchcase(server.name, pattern) for pattern in patterns)]


def command_of(server: Server) -> list[str]:
    """How to start a server, apart from options. Raises `BenchError` when this machine lacks what it needs."""
    if server.ours:
        return [sys.executable, "-m", "shardnet", "run", server.app]
    if server.name == C_EPOLL:
        return [str(compile_c("echo_epoll"))]
    if "uvloop" in server.reference and importlib.util.find_spec("uvloop") is None:
        raise BenchError(f"{sys.executable} has no uvloop: pip install --group bench")
    return [sys.executable, "-m", "bench.reference", *server.reference]
