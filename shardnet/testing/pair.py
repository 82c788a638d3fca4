"""Two connections that are joined in memory: handlers without a socket or a port.

Each end has a server of its own, so that what a server does around a handler is done here, too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, cast

from shardnet.app import Handler, Kind
from shardnet.catalogue.cells import WorkerCells
from shardnet.connection import Connection, Limits
from shardnet.server import private_cells
from shardnet.testing.memory import MemoryEngine, MemoryListener, MemorySocket, joined, on_memory
from shardnet.testing.serving import DRAIN_TIMEOUT_S, CollectingServer, note_errors, resolve_handler

__all__ = ["Pair"]

BUFFER_BYTES: Final = 65536
CLIENT_ADDRESS: Final = ("127.0.0.1", 50000)
SERVER_ADDRESS: Final = ("127.0.0.1", 9000)


async def _stand_by(conn: Connection) -> None:
    """The handler of an end that the test uses."""
    await conn.wait_closed()


STAND_BY: Final = Handler(Kind.CONN, _stand_by)


class _MemoryServer(CollectingServer):
    """Serves what is accepted from memory."""

    def __init__(
        self,
        engine: MemoryEngine,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        cells: WorkerCells,
        limits: Limits | None,
    ) -> None:
        super().__init__(engine, loop, handler, cells, limits=limits)
        self._connection_class = on_memory(self._connection_class)
        self._memory_listener = MemoryListener(engine)
        self.listen(cast("socket.socket", self._memory_listener))

    def accept(self, memory: MemorySocket) -> Connection:
        return self._memory_listener.accept(memory)


class Pair:
    """`async with Pair() as (a, b)`: two connections that are each other's peer, in the running loop, whatever loop.

    Both have all of a connection's methods, and behave as over TCP. With a handler, `b` is served with it as a server
    would, whichever kind of handler it is, and `a` is its client. Without, both ends are the test's to use, for example
    to call a handler itself: `await handler(b)`. At the end both are closed.

    Leaving it raises an `ExceptionGroup` of what the handler raised. If the block raised itself, what it raised gets a
    note about that instead.
    """

    def __init__(
        self,
        handler: Any = None,
        *,
        kind: Kind | str | None = None,
        chunk_bytes: int = sys.maxsize,
        buffer_bytes: int = BUFFER_BYTES,
        limits: Limits | None = None,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        expect_errors: bool = False,
    ) -> None:
        """Nothing is made yet.

        Args:
            handler: Whatever `shardnet run` takes. An App's lifespan is entered and left.
            kind: Which kind of handler it is, where that cannot be seen.
            chunk_bytes: The most that one receive brings: 1 shows what a handler makes of records in pieces.
            buffer_bytes: How much each end may send before the other has to read: little shows backpressure early.
            limits: What a connection may cost.
            drain_timeout_s: What a handler gets that is at work at the end.
            expect_errors: The handler may raise; `errors` has what it raised.
        """
        if chunk_bytes < 1 or buffer_bytes < 1:
            raise ValueError(f"Pair: chunk_bytes is {chunk_bytes}, buffer_bytes {buffer_bytes}: both take at least 1")
        self._handler = STAND_BY if handler is None else resolve_handler(handler, kind)
        self._chunk_bytes = chunk_bytes
        self._buffer_bytes = buffer_bytes
        self._limits = limits
        self._drain_timeout_s = drain_timeout_s
        self._expect_errors = expect_errors
        self.errors: list[BaseException] = []  # What the handler and its hooks have raised so far.

    async def __aenter__(self) -> tuple[Connection, Connection]:
        loop = asyncio.get_running_loop()
        counts, cells = private_cells(2)
        ours, theirs = (dataclasses.replace(cells, traffic=(traffic,)) for traffic in cells.traffic)
        async with AsyncExitStack() as stack:
            engine = MemoryEngine(loop, counts)
            stack.callback(engine.close)
            client = _MemoryServer(engine, loop, STAND_BY, ours, self._limits)
            server = _MemoryServer(engine, loop, self._handler, theirs, self._limits)
            self.errors = server.errors
            await stack.enter_async_context(server.lifespan())
            first, second = joined((CLIENT_ADDRESS, SERVER_ADDRESS), self._buffer_bytes, self._chunk_bytes)
            a, b = client.accept(first), server.accept(second)
            ends = (a, b) if self._handler is STAND_BY else (a,)
            standing_by = [conn.task for conn in ends if conn.task is not None]
            stack.push_async_callback(self._end, server, a, b, standing_by)
            self._stack = stack.pop_all()
        return a, b

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        if error is not None:
            note_errors(error, self.errors)
        elif self.errors and not self._expect_errors:
            raise BaseExceptionGroup("handlers raised", self.errors)

    async def _end(
        self, server: _MemoryServer, a: Connection, b: Connection, standing_by: list[asyncio.Task[Any]]
    ) -> None:
        try:
            if self._handler is not STAND_BY:
                a.close()
                server.end_lingering()
                await server.drain(self._drain_timeout_s)
        finally:
            a.abort()
            b.abort()
            await asyncio.wait(standing_by)
