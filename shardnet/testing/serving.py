"""A real server in the test's own process and event loop.

Lives here: the server's life around a test's `async with`. Must not live here: how it comes by an engine (see
`lending`), subprocesses (see `sharded`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from shardnet.app import App, Handler, Kind, resolve
from shardnet.catalogue.cells import WorkerCells
from shardnet.connection import Connection, Limits, Shard
from shardnet.errors import UsageError
from shardnet.log import get_logger
from shardnet.server import Server
from shardnet.testing.lending import lent_engine
from shardnet.watcher.engine import Engine

__all__ = ["CollectingServer", "Serving", "note_errors", "open_listener", "resolve_handler", "serve"]

BACKLOG: Final = 4096
CONNECTIONS_MAX: Final = 10_000
DRAIN_TIMEOUT_S: Final = 1.0  # What handlers get that are at work when the test is over.
LAST_LINGER_S: Final = 0.05  # And connections whose clients have not closed them.


class CollectingServer(Server):
    """A server that keeps what its handlers and hooks raise, beside logging it."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        cells: WorkerCells,
        *,
        connections_max: int = CONNECTIONS_MAX,
        limits: Limits | None = None,
    ) -> None:
        log = get_logger("testing")
        super().__init__(engine, loop, handler, cells, log, connections_max=connections_max, limits=limits)
        self.errors: list[BaseException] = []

    def _note_raised(self, event: str, error: BaseException, **fields: object) -> None:
        self.errors.append(error)
        super()._note_raised(event, error, **fields)

    def connections(self) -> list[Connection]:
        """Of this server, which may share its engine with others."""
        return [conn for conn in super().connections() if conn._host is self]

    def end_lingering(self) -> None:
        """Close the connections that only wait for their peer's end, and let no other wait long for that."""
        self.limits = dataclasses.replace(self.limits, linger_s=LAST_LINGER_S)
        for conn in self.connections():
            if conn.lingering:
                conn.give_up()


class Serving:
    """A server that `serve` has started."""

    def __init__(self, server: CollectingServer, listener: socket.socket, drain_timeout_s: float) -> None:
        self._server = server
        self._drain_timeout_s = drain_timeout_s
        self._writers: list[asyncio.StreamWriter] = []
        name: Any = listener.getsockname()
        self.address: tuple[str, int] | str = name if isinstance(name, str) else name[:2]

    @property
    def host(self) -> str:
        """The host that it serves on. Raises `UsageError` on a unix socket."""
        return self._tcp_address()[0]

    @property
    def port(self) -> int:
        """The port that it serves on. Raises `UsageError` on a unix socket."""
        return self._tcp_address()[1]

    @property
    def shard(self) -> Shard:
        """The one shard: `connections`, `state`, `draining`."""
        return self._server.shard

    @property
    def errors(self) -> list[BaseException]:
        """What handlers and hooks have raised so far. Who takes one out has dealt with it."""
        return self._server.errors

    async def connect(self, *, limit: int = 65536) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client: asyncio's own reader and writer. Closed at the end of the `serve`, if not before."""
        if isinstance(self.address, str):
            reader, writer = await asyncio.open_unix_connection(self.address, limit=limit)
        else:
            reader, writer = await asyncio.open_connection(*self.address, limit=limit)
        self._writers.append(writer)
        return reader, writer

    async def drain(self, timeout_s: float | None = None) -> bool:
        """What a worker does when it is told to go: True when no connection had to be cut. Once.

        Without a timeout, connections get what they would get at the end of the `serve`.
        """
        return await self._server.drain(self._drain_timeout_s if timeout_s is None else timeout_s)

    def _tcp_address(self) -> tuple[str, int]:
        if isinstance(self.address, str):
            raise UsageError(f"the server listens on the unix socket {self.address}, which has no host and port")
        return self.address

    async def _run(self, listener: socket.socket, started: asyncio.Future[None], leaving: asyncio.Event) -> None:
        """The server's life, in a task of its own: a lifespan may want to be left by the task that entered it."""
        try:
            async with self._server.lifespan():
                self._server.listen(listener)
                if not started.done():  # It is cancelled when nobody waits for it any more.
                    started.set_result(None)
                await leaving.wait()
                await self._end()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _end(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):  # Its end may have been a reset: nobody's business any more.
                await writer.wait_closed()
        self._server.end_lingering()
        if not self.shard.draining:
            await self._server.drain(self._drain_timeout_s)

    def _abandon(self) -> None:
        """Whatever is left, should the end have been cut short."""
        for writer in self._writers:
            writer.close()
        self._server.stop_accepting()
        for conn in self._server.connections():
            conn.cut()
            conn.give_up()


@contextlib.asynccontextmanager
async def serve(
    handler: Any,
    *,
    kind: Kind | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    unix: Path | str | None = None,
    limits: Limits | None = None,
    connections_max: int = CONNECTIONS_MAX,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    expect_errors: bool = False,
) -> AsyncIterator[Serving]:
    """Serve `handler` in the running event loop, as one shard of `shardnet run` would, as long as the block lasts.

    At the end, handlers that wait in a read get the end of their stream, others a moment to finish; then they are
    cancelled.

    Args:
        handler: Whatever `shardnet run` takes: a coroutine function, a callback, a protocol, an `App`, whose lifespan
            is entered and left.
        kind: Which kind of handler it is, where that cannot be seen.
        host: Where to listen; IPv4 or IPv6.
        port: 0 takes a free one.
        unix: Listen on a unix socket of this path instead; it is removed in the end.
        limits: What one connection may cost.
        connections_max: How many may be open at once.
        drain_timeout_s: What handlers get that are at work at the end.
        expect_errors: Handlers may raise; `errors` has what they raised.

    Raises:
        ExceptionGroup: Handlers raised. If the block raised itself, what it raised gets a note about them instead.
        AppError: It is no handler, or its lifespan did not begin.
        UsageError: The loop is none of asyncio's own.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        resolved = resolve_handler(handler, kind)
        listener = stack.enter_context(open_listener(host, port) if unix is None else _open_unix(unix))
        if unix is not None:
            stack.callback(_unlink, unix)
        engine, cells = stack.enter_context(lent_engine(loop))
        server = CollectingServer(engine, loop, resolved, cells, connections_max=connections_max, limits=limits)
        serving = Serving(server, listener, drain_timeout_s)
        stack.callback(serving._abandon)
        async with _alive(serving, listener):
            try:
                yield serving
            except BaseException as error:
                note_errors(error, server.errors)
                raise
    if server.errors and not expect_errors:
        raise BaseExceptionGroup("handlers raised", server.errors)


@contextlib.asynccontextmanager
async def _alive(serving: Serving, listener: socket.socket) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    leaving = asyncio.Event()
    started = loop.create_future()
    life = loop.create_task(serving._run(listener, started, leaving))
    try:
        try:
            await started
        except asyncio.CancelledError:
            life.cancel()
            raise
        yield
    finally:
        leaving.set()
        try:
            await life
        finally:
            # The selector must not be exchanged from inside itself, where the test may be, as a task that awaited a
            # connection. From here on it is called by the loop.
            await asyncio.sleep(0)


def note_errors(error: BaseException, errors: list[BaseException]) -> None:
    """Tell with a test's own failure what handlers raised, which may be the reason."""
    for one in errors:
        if one is not error:
            error.add_note("A handler raised meanwhile:\n" + "".join(traceback.format_exception(one)))


def resolve_handler(handler: Any, kind: Kind | str | None) -> Handler:
    """The handler behind whatever `shardnet run` takes."""
    if kind is not None:
        handler = dataclasses.replace(handler, kind=kind) if isinstance(handler, App) else App(handler, kind=kind)
    return resolve("handler", handler)


def open_listener(host: str = "127.0.0.1", port: int = 0, *, send_buffer_bytes: int = 0) -> socket.socket:
    """A listening, non-blocking TCP socket. `send_buffer_bytes`: what its connections get; 0: the kernel's choice."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if send_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_unix(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(os.fspath(path))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _unlink(path: Path | str) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
