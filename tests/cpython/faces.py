"""asyncio's functions and classes for streams, with shardnet's reader and writer behind them."""

from __future__ import annotations

import asyncio
import socket
from asyncio import streams
from typing import Any, Final, cast

from shardnet.adapters.reader_writer import Reader, Writer
from tests.cpython.cases import Way
from tests.cpython.loop import ServingLoop, StreamsApp

__all__ = ["STAND_INS"]

LIMIT: Final = 2**16  # asyncio's default.


async def start_server(
    client_connected_cb: Any, host: Any = None, port: Any = None, *, limit: int = LIMIT, **kwds: Any
) -> asyncio.Server:
    """`asyncio.start_server` for a streams handler; with TLS, which that cannot, it is asyncio's own."""
    if kwds.get("ssl"):
        return await streams.start_server(client_connected_cb, host, port, limit=limit, **kwds)
    app: Any = StreamsApp(client_connected_cb, limit)
    return await asyncio.get_running_loop().create_server(app, host, port, **kwds)


async def start_unix_server(
    client_connected_cb: Any, path: Any = None, *, limit: int = LIMIT, **kwds: Any
) -> asyncio.Server:
    """`asyncio.start_unix_server`, likewise."""
    if kwds.get("ssl"):
        return await streams.start_unix_server(client_connected_cb, path, limit=limit, **kwds)
    app: Any = StreamsApp(client_connected_cb, limit)
    return await asyncio.get_running_loop().create_unix_server(app, path, **kwds)


async def open_connection(
    host: Any = None, port: Any = None, *, limit: int = LIMIT, **kwds: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_connection`, likewise. Its connection is shardnet's as if it had been accepted."""
    if kwds:
        return await streams.open_connection(host, port, limit=limit, **kwds)
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await _connect(socket.socket(infos[0][0]), infos[0][4], limit)


async def open_unix_connection(
    path: Any = None, *, limit: int = LIMIT, **kwds: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_unix_connection`, likewise."""
    if kwds:
        return await streams.open_unix_connection(path, limit=limit, **kwds)
    return await _connect(socket.socket(socket.AF_UNIX), path, limit)


async def _connect(sock: socket.socket, address: Any, limit: int) -> tuple[Reader, Writer]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ServingLoop)
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, address)
    except OSError:
        sock.close()
        raise
    return _adopt(loop, sock, limit)


def _adopt(loop: ServingLoop, sock: socket.socket, limit: int) -> tuple[Reader, Writer]:
    pairs: list[tuple[Reader, Writer]] = []
    loop.adopt(sock, lambda *pair: pairs.append(cast("tuple[Reader, Writer]", pair)), limit)
    return pairs.pop()


class FedReader:
    """`asyncio.StreamReader` for tests that feed it by hand: a shardnet reader, which takes from a connection.

    Feeding is sending: the connection is one end of a pair of sockets, `feed_data` and `feed_eof` use the other. What
    such a test looks at in the reader's buffer has, as its author sees it, arrived already; here it may wait in the
    kernel, so that looking at the buffer takes it in first, as `at_eof` does.
    """

    def __init__(self, limit: int = LIMIT, *, loop: ServingLoop) -> None:
        self._feeder, fed = socket.socketpair()
        fed.setblocking(False)
        loop.feeders.append(self._feeder)
        self._reader, self._writer = _adopt(loop, fed, limit)  # Without the writer it would soon be nobody's.

    def feed_data(self, data: bytes) -> None:
        self._feeder.sendall(data)

    def feed_eof(self) -> None:
        self._feeder.shutdown(socket.SHUT_WR)

    @property
    def _buffer(self) -> bytes:
        self._look()
        return bytes(self._reader.buffer)

    def __repr__(self) -> str:
        self._look()
        return repr(self._reader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def _look(self) -> None:
        self._writer.get_extra_info("shardnet.connection").readable = True  # A poll would say so.
        self._reader.at_eof()


# By way and name, what stands in for what asyncio has under that name.
STAND_INS: Final[dict[Way, dict[str, Any]]] = {
    Way.PROTOCOL: {},
    Way.STREAMS: {"start_server": start_server, "start_unix_server": start_unix_server},
    Way.OPENED: {"open_connection": open_connection, "open_unix_connection": open_unix_connection},
    Way.READER: {"StreamReader": FedReader},
    Way.BOTH: {},
    Way.LOOP: {},
}
