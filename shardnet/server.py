"""The server of one worker: accepts, starts handlers, counts, drains.

Lives here: what all connections of a worker share. Must not live here: what one connection does (see `connection`),
processes and signals (see `worker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from array import array
from functools import partial
from typing import Any, Final

from shardnet.app import Handler, Kind
from shardnet.connection import CallbackConnection, CloseReason, Connection, Limits, Shard
from shardnet.log import Log
from shardnet.metrics import AT_ACCEPTED, AT_ACTIVE, AT_CLOSED, WorkerCells, lay_out_worker_cells
from shardnet.watcher import Listener, Watcher

DRAIN_SWEEP_S: Final = 0.05  # How often a draining server looks for connections that have become idle.
CUT_GRACE_S: Final = 0.7  # What cancelled handlers and queued bytes get after the drain deadline.
ACCEPT_DRAIN_MAX: Final = 65536  # Connections taken from one backlog at a drain; a backlog holds 4096 by default.
EXHAUSTED_LOG_S: Final = 10.0  # A peer can cause this line: at most one in so long.


def private_cells(listener_count: int) -> tuple[memoryview, WorkerCells]:
    """Cells for a server that counts for nobody else."""
    cells = lay_out_worker_cells(listener_count)
    return memoryview(array("Q", [0] * cells.count)), cells


class Server:
    """Serves `handler` on the listeners it is given.

    `watcher.cells` is where it counts, laid out as `cells` says. At `connections_max` open connections it leaves the
    others in the backlog until one closes.
    """

    def __init__(
        self,
        watcher: Watcher,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        cells: WorkerCells,
        log: Log,
        *,
        connections_max: int,
        limits: Limits | None = None,
        shard_id: int = 0,
        shard_count: int = 1,
        generation: int = 0,
    ) -> None:
        self.watcher = watcher
        self.loop = loop
        self.limits = Limits() if limits is None else limits
        self.shard = Shard(shard_id, shard_count, generation, self.connections)
        self.finished: asyncio.Future[None] = loop.create_future()
        self.finished.set_result(None)
        self.active = 0  # Open connections.
        self._function = handler.function
        self._connection_class = CallbackConnection if handler.kind is Kind.CALLBACK else Connection
        self._cells = cells
        self._log = log
        self._connections_max = connections_max
        self._full = False
        self._last_id = 0
        self._listeners: list[Listener] = []
        # Kept here because the loop does not keep them: a handler that outlives its connection and waits for what only
        # it refers to would be collected, its end never be told, and a drain wait for it in vain.
        self._handlers: set[asyncio.Task[Any]] = set()
        self._empty = asyncio.Event()
        self._exhausted_logged_s = float("-inf")
        watcher.cells[cells.connections_limit] = connections_max

    def listen(self, sock: socket.socket) -> None:
        """Accept on `sock`, a listening, non-blocking socket that stays the caller's."""
        traffic = self._cells.traffic[len(self._listeners)]
        on_accept = partial(self._on_accept, traffic)
        self._listeners.append(self.watcher.listen(sock, on_accept, self._on_exhausted))

    @property
    def handlers(self) -> int:
        """How many handlers run; one may outlive its connection."""
        return len(self._handlers)

    def connections(self) -> list[Connection]:
        """The live connections."""
        return [channel for channel in self.watcher.channels() if isinstance(channel, Connection)]

    def stop_accepting(self) -> None:
        """Accept what is queued now, then no more: the sockets may be closed afterwards."""
        for listener in self._listeners:
            listener.accept_queued(ACCEPT_DRAIN_MAX)
            self.watcher.unlisten(listener)

    async def drain(self, timeout_s: float) -> bool:
        """Stop accepting and let the connections come to their end: True when none had to be cut.

        A handler that waits in a read with nothing unread or unsent gets the end of its stream; the others may go on
        until the deadline, then they are cancelled, what is queued is sent for a moment more, and the rest is reset.
        """
        self.shard.draining = True
        self.stop_accepting()
        deadline_s = time.monotonic() + timeout_s
        while (self.active or self.handlers) and (left_s := deadline_s - time.monotonic()) > 0:
            for conn in self.connections():
                conn.end_if_idle()
            await self._wait_empty(min(DRAIN_SWEEP_S, left_s))
        if not (self.active or self.handlers):
            return True
        self._log.warning("drain deadline", connections=self.active, handlers=self.handlers, after_s=timeout_s)
        for conn in self.connections():
            conn.cut()
        await self._wait_empty(CUT_GRACE_S)
        for conn in self.connections():
            conn.give_up()
        return False

    # What connections call.

    def closed(self, conn: Connection, reason: CloseReason) -> None:
        cells = self.watcher.cells
        cells[conn.traffic + AT_ACTIVE] -= 1
        cells[conn.traffic + AT_CLOSED + reason] += 1
        self.active -= 1
        if self._full and self.active < self._connections_max:
            self._full = False
            for listener in self._listeners:
                listener.resume()
        self._note_empty()

    def handler_started(self, task: asyncio.Task[Any]) -> None:
        self._handlers.add(task)

    def handler_ended(self, task: asyncio.Task[Any]) -> None:
        self._handlers.discard(task)
        self._note_empty()

    def handler_raised(self, conn: Connection, error: BaseException) -> None:
        self.watcher.cells[self._cells.handler_exceptions] += 1
        self._log.error("handler raised", error, peer=_text(conn.peer), connection=conn.id)

    # Inside.

    def _on_accept(self, traffic: int, fd: int, peer: Any) -> None:
        self._last_id += 1
        conn = self._connection_class(self, fd, self._last_id, peer, traffic)
        try:
            self.watcher.add(conn)
        except OSError as error:  # The kernel has no memory, or lets this user poll no more descriptors.
            self.watcher.free(conn)
            for listener in self._listeners:
                listener.rest(error)  # Or the whole backlog would be accepted and dropped like this one.
            return
        cells = self.watcher.cells
        cells[traffic + AT_ACTIVE] += 1
        cells[traffic + AT_ACCEPTED] += 1
        self.active += 1
        self._empty.clear()
        if self.active >= self._connections_max and not self._full:
            self._full = True
            for listener in self._listeners:
                listener.pause()
        try:
            conn.start(self._function)
        except BaseException as error:  # A handler that raises when it is called, or returns no coroutine.
            conn.end_after(error)

    def _on_exhausted(self, error: OSError) -> None:
        now_s = time.monotonic()
        if now_s - self._exhausted_logged_s >= EXHAUSTED_LOG_S:
            self._exhausted_logged_s = now_s
            self._log.warning("accepting pauses", error=error.strerror, connections=self.active)

    def _note_empty(self) -> None:
        if not (self.active or self.handlers):
            self._empty.set()

    async def _wait_empty(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()


def _text(peer: Any) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(peer)
