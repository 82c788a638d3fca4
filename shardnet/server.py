"""The server of one worker: accepts, starts handlers, calls the app's hooks, counts, drains.

Lives here: what all connections of a worker share. Must not live here: what one connection does (see `connection`),
processes and signals (see `worker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import socket
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from shardnet.adapters import ProtocolConnection, StreamsConnection
from shardnet.ages import Ages
from shardnet.app import Handler, Kind, describe, first_line, try_factory
from shardnet.catalogue.cells import AT_ACCEPTED, AT_ACTIVE, AT_CLOSED, WorkerCells, lay_out_worker_cells
from shardnet.catalogue.families import DEADLINE_KINDS, DURATION_BUCKETS_S, PAUSE_REASONS
from shardnet.connection import CallbackConnection, CloseReason, Connection, Host, Limits, Shard, timed
from shardnet.errors import AppError
from shardnet.log import AccessLog, Log, RateLimit
from shardnet.watcher.engine import Engine
from shardnet.watcher.listener import Listener

DRAIN_SWEEP_S: Final = 0.05  # How often a draining server looks for connections that have become idle.
CUT_GRACE_S: Final = 0.7  # What cancelled handlers and queued bytes get after the drain deadline.
ACCEPT_DRAIN_MAX: Final = 65536  # Connections taken from one backlog at a drain; a backlog holds 4096 by default.
EXHAUSTED_LOG_S: Final = 10.0  # A peer can cause this line: at most one in so long.
# A peer can cause these as well, by what it sends: so many at once, so many a second.
RAISED_LOG_BURST: Final = 20
RAISED_LOG_PER_S: Final = 1.0

AT_LIMIT, AT_FILES = map(PAUSE_REASONS.index, ("limit", "files"))
AT_WRITE_STALL, AT_LINGER, AT_DRAIN = map(DEADLINE_KINDS.index, ("write_stall", "linger", "drain"))

CONNECTION_CLASSES: Final[dict[Kind, type[Connection]]] = {
    Kind.CONN: Connection,
    Kind.STREAMS: StreamsConnection,
    Kind.CALLBACK: CallbackConnection,
    Kind.PROTOCOL: ProtocolConnection,
}


def private_cells(listener_count: int) -> tuple[memoryview, WorkerCells]:
    """Cells for a server that counts for nobody else."""
    cells = lay_out_worker_cells(listener_count)
    return memoryview(array("Q", [0] * cells.count)), cells


class Server(Host):
    """Serves `handler` on the listeners it is given.

    `engine.cells` is where it counts, laid out as `cells` says. At `connections_max` open connections it leaves the
    others in the backlog until one closes.
    """

    def __init__(
        self,
        engine: Engine,
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
        access_log: AccessLog | None = None,
    ) -> None:
        super().__init__(engine, loop, replace(limits or Limits(), line_max_bytes=handler.limit), handler.function)
        self.shard = Shard(shard_id, shard_count, generation, self.connections, log)
        self.active = 0  # Open connections.
        self._handler = handler
        self._connection_class = CONNECTION_CLASSES[handler.kind]
        if loop.get_debug():
            self._connection_class = timed(self._connection_class, self._on_dealt_with)
        self._cells = cells
        self._log = log
        self._connections_max = connections_max
        self._full = False
        self._last_id = 0
        self._listeners: list[Listener] = []
        self._listener_names: dict[int, str] = {}  # By where they count.
        # Kept here because the loop does not keep them: a handler that outlives its connection and waits for what only
        # it refers to would be collected, its end never be told, and a drain wait for it in vain.
        self._handlers: dict[asyncio.Task[Any], Connection] = {}
        self._handler_done = self._on_handler_done  # Bound once.
        self._context = contextvars.copy_context()  # In which they are told to be over.
        self._empty = asyncio.Event()
        self._exhausted_logged_s = float("-inf")
        self._raised_limit = RateLimit(RAISED_LOG_BURST, RAISED_LOG_PER_S)
        self._access_log = access_log
        self._opened_s: dict[int, float] = {}  # Of each connection, by its id; only for the access log.
        self._ages = Ages()
        engine.cells[cells.connections_limit] = connections_max

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """The app's lifespan, in which to serve. Raises `AppError` when it does not begin."""
        async with AsyncExitStack() as stack:
            if self._handler.lifespan is not None:
                await self._enter_lifespan(stack, self._handler.lifespan)
            await try_factory(self._handler)
            yield

    async def _enter_lifespan(self, stack: AsyncExitStack, lifespan: Callable[[Any], Any]) -> None:
        name = self._handler.name
        try:
            manager = lifespan(self.shard)
            if not hasattr(manager, "__aenter__") or not hasattr(manager, "__aexit__"):
                if asyncio.iscoroutine(manager):
                    manager.close()
                what = describe(manager)
                raise AppError(f"{name}: lifespan(shard) returned {what}, which is no async context manager")
            await stack.enter_async_context(manager)
        except AppError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise AppError(f"{name}: the lifespan raised {first_line(error)}") from error

    def listen(self, sock: socket.socket, address: int = 0, name: str = "", *, shared: bool = False) -> Listener:
        """Accept on `sock`, a listening, non-blocking socket that stays the caller's.

        It is one of those of the address with this number, which the access log calls `name`. `shared`: other workers
        accept on it, too. Raises `OSError` when the kernel refuses to watch it.
        """
        traffic = self._cells.traffic[address]
        self._listener_names[traffic] = name
        on_accept = partial(self._on_accept, traffic, sock.family == socket.AF_UNIX)
        listener = self.engine.listen(sock, on_accept, self._on_exhausted, exclusive=shared)
        self._listeners.append(listener)
        if self._full:
            listener.pause()
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Accept no more there, and leave what is queued to somebody else who does."""
        self._listeners.remove(listener)
        self.engine.unlisten(listener)

    @property
    def handlers(self) -> int:
        """How many handlers run; one may outlive its connection."""
        return len(self._handlers)

    def connections(self) -> list[Connection]:
        """The live connections."""
        return [endpoint for endpoint in self.engine.endpoints() if isinstance(endpoint, Connection)]

    def stop_accepting(self, *, leave_queue: bool = False) -> None:
        """Accept what is queued now, then no more: the sockets may be closed afterwards.

        `leave_queue`: somebody else accepts there, and is to have what is queued. From a shared listener it is taken
        all the same: we may be the one whom the kernel has woken for a connection, and nobody else would be.
        """
        for listener in self._listeners:
            if listener.exclusive or not leave_queue:
                listener.accept_queued(ACCEPT_DRAIN_MAX)
            self.engine.unlisten(listener)

    async def drain(self, timeout_s: float, spread_s: float = 0.0, silent_s: float = 0.0) -> bool:
        """Stop accepting and let the connections come to their end: True when none had to be cut.

        A handler that waits in a read with nothing unread or unsent gets the end of its stream, as do idle connections
        of the other kinds, spread over `spread_s`, so that not all their peers come back at once; those whose peers
        have not said anything yet only after `silent_s`, because their first bytes may be on the way. The others may go
        on until the deadline, then they are cancelled, what is queued is sent for a moment more, and the rest is reset.
        """
        self.shard.draining = True
        self.stop_accepting()
        if self._handler.on_drain is not None:
            for conn in self.connections():
                if not conn.is_closing():
                    self._call_on_drain(self._handler.on_drain, conn)
        begun_s = time.monotonic()
        waves = self._waves(min(spread_s, timeout_s / 2), min(silent_s, timeout_s / 2))
        while (self.active or self.handlers) and (left_s := begun_s + timeout_s - time.monotonic()) > 0:
            for wave in waves:
                wave.ended += self._end_idle(wave.silent, wave.due(time.monotonic() - begun_s))
            await self._wait_empty(min(DRAIN_SWEEP_S, left_s))
        emptied = not (self.active or self.handlers)
        if not emptied:
            self._log.warning("drain deadline", connections=self.active, handlers=self.handlers, after_s=timeout_s)
            await self._cut()
        await asyncio.sleep(0)  # For those who are told of an end by the loop: `on_disconnect`, `connection_lost`.
        return emptied

    def _waves(self, spread_s: float, silent_s: float) -> tuple[_Wave, _Wave]:
        silent = sum(conn.received_bytes == 0 for conn in self.connections())
        return _Wave(False, self.active - silent, 0.0, spread_s), _Wave(True, silent, silent_s, spread_s)

    def _end_idle(self, silent: bool, count: float) -> int:
        """End at most `count` connections that are idle, and whose peers have been silent or not: how many there
        were."""
        ended = 0
        if count > 0:
            for conn in self.connections():
                if ended >= count:
                    break
                if (conn.received_bytes == 0) is silent:
                    ended += conn.end_if_idle()
        return ended

    async def _cut(self) -> None:
        """Cancel every handler, also of connections that are closed already, and end what has not ended a moment
        later."""
        connections = self.connections()
        self.engine.cells[self._cells.deadlines_expired + AT_DRAIN] += len(connections)
        for conn in connections:
            conn.cut()
        for task in self._handlers:
            if not task.cancelling():
                task.cancel()
        await self._wait_empty(CUT_GRACE_S)
        for conn in self.connections():
            conn.give_up()

    # What connections call.

    def closed(self, conn: Connection, reason: CloseReason, error: BaseException | None) -> None:
        cells = self.engine.cells
        cells[conn.traffic + AT_ACTIVE] -= 1
        cells[conn.traffic + AT_CLOSED + reason] += 1
        self.active -= 1
        now_s = time.monotonic()
        self._count_duration(self._ages.age_s(conn.id, now_s))
        if reason is CloseReason.DEADLINE:
            cells[self._cells.deadlines_expired + AT_WRITE_STALL] += 1
        if self._access_log is not None:
            self._write_access(self._access_log, conn, reason, now_s - self._opened_s.pop(conn.id))
        if self._handler.on_disconnect is not None:
            # From the loop: who closes a connection is not called in the middle of it.
            self.loop.call_soon(self._call_on_disconnect, self._handler.on_disconnect, conn, error)
        if self._full and self.active < self._connections_max:
            self._full = False
            for listener in self._listeners:
                listener.resume()
        self._note_empty()

    def lingered_out(self, conn: Connection) -> None:
        self.engine.cells[self._cells.deadlines_expired + AT_LINGER] += 1

    def keep(self, task: asyncio.Task[Any], conn: Connection) -> None:
        # One callback and one context for all: they would be a good part of what an idle connection costs.
        self._handlers[task] = conn
        task.add_done_callback(self._handler_done, context=self._context)

    def handler_raised(self, conn: Connection, error: BaseException) -> None:
        self._note_raised("handler raised", error, peer=_text(conn.peer), connection=conn.id)

    # Inside.

    def _on_handler_done(self, task: asyncio.Task[Any]) -> None:
        self._handlers.pop(task).end_with(task)
        self._note_empty()

    def _on_accept(self, traffic: int, unix: bool, fd: int, peer: Any) -> None:
        self._last_id += 1
        conn = self._connection_class(self, fd, self._last_id, peer, traffic, unix)
        try:
            self.engine.add(conn)
        except OSError as error:  # The kernel has no memory, or lets this user poll no more descriptors.
            self.engine.free(conn)
            for listener in self._listeners:
                listener.rest(error)  # Or the whole backlog would be accepted and dropped like this one.
            return
        cells = self.engine.cells
        cells[traffic + AT_ACTIVE] += 1
        cells[traffic + AT_ACCEPTED] += 1
        self.active += 1
        now_s = time.monotonic()
        self._ages.note(conn.id, now_s)
        self._empty.clear()
        if self.active >= self._connections_max and not self._full:
            self._full = True
            cells[self._cells.accept_pauses + AT_LIMIT] += 1
            for listener in self._listeners:
                listener.pause()
        if self._access_log is not None:
            self._opened_s[conn.id] = now_s
        try:
            if self._handler.on_connect is not None:
                self._handler.on_connect(conn)
                if conn.is_closing():
                    return
            conn.start()
        except BaseException as error:  # A handler that raises when it is called, or returns no coroutine.
            conn.end_after(error)

    def _call_on_drain(self, hook: Callable[[Any], object], conn: Connection) -> None:
        try:
            hook(conn)
        except BaseException as error:  # Also SystemExit, as in handlers.
            conn.end_after(error)

    def _call_on_disconnect(
        self, hook: Callable[[Any, BaseException | None], object], conn: Connection, error: BaseException | None
    ) -> None:
        try:
            hook(conn, error)
        except BaseException as raised:
            self._note_raised("hook raised", raised, peer=_text(conn.peer), connection=conn.id)

    def _note_raised(self, event: str, error: BaseException, **fields: object) -> None:
        self.engine.cells[self._cells.handler_exceptions] += 1
        suppressed = self._raised_limit.allow(time.monotonic())
        if suppressed is not None:
            more: dict[str, object] = {"suppressed": suppressed} if suppressed else {}
            self._log.error(event, error, **fields, **more)

    def _count_duration(self, lasted_s: float) -> None:
        cells, first = self.engine.cells, self._cells.connection_duration
        cells[first + bisect_left(DURATION_BUCKETS_S, lasted_s)] += 1
        cells[first + len(DURATION_BUCKETS_S) + 1] += int(lasted_s * 1e9)

    def _write_access(self, access_log: AccessLog, conn: Connection, reason: CloseReason, lasted_s: float) -> None:
        access_log.closed(
            peer=_text(conn.peer),
            listener=self._listener_names[conn.traffic],
            connection=conn.id,
            received_bytes=conn.received_bytes,
            sent_bytes=conn.sent_bytes,
            duration_s=lasted_s,
            reason=reason.name.lower(),
        )

    def _on_dealt_with(self, conn: Connection, took_s: float) -> None:
        """In debug mode, as asyncio itself does for what it calls."""
        if took_s >= getattr(self.loop, "slow_callback_duration", math.inf):
            self._log.warning("handler held the loop", peer=_text(conn.peer), connection=conn.id, took_s=took_s)

    def _on_exhausted(self, error: OSError) -> None:
        self.engine.cells[self._cells.accept_pauses + AT_FILES] += 1
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


@dataclass(slots=True)
class _Wave:
    """Connections that end together in a drain: none before `begin_s`, all that are idle `spread_s` later."""

    silent: bool  # Those whose peers have not said anything.
    initial: int
    begin_s: float
    spread_s: float
    ended: int = 0

    def due(self, passed_s: float) -> float:
        """How many more may end now."""
        if passed_s < self.begin_s:
            return 0
        if passed_s >= self.begin_s + self.spread_s:
            return math.inf
        return round(self.initial * (passed_s - self.begin_s) / self.spread_s) - self.ended


def _text(peer: Any) -> str:
    if not peer:
        return "unix"  # Who connects from there has no address.
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(peer)
