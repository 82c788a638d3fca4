"""Connections: the face of an endpoint that handlers see.

Lives here: whose a connection is, its handler's task, and what the end of a handler means. Must not live here: reading
(see `reading`), sending and ending (see `stream`), accepting and counting (see `server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from shardnet.connection import _steps
from shardnet.connection.driver import Driver
from shardnet.connection.host import Host
from shardnet.connection.reading import ReadStream
from shardnet.connection.resume import Waiter
from shardnet.connection.stages import CLOSED, FLUSHING, LINGERING, OPEN, STAGE_NAMES, CloseReason
from shardnet.errors import ConnectionFreed
from shardnet.watcher import _sys

if TYPE_CHECKING:
    from types import TracebackType

    from shardnet.log import Log

# The modules above a handler in its traceback.
STEPPED_BY: Final = ("shardnet.connection._steps", "shardnet.connection.driver")


class Shard:
    """The place where a connection is served: one of `count`, with a number from 0 on.

    `generation` counts the sets of workers started together; `draining` turns true when this worker is to end.
    `state` is the app's, to put into it what all connections of the shard share; `log` writes to the server's log, with
    the shard's number in each line: `shard.log.info("player joined", name=name)`.
    """

    __slots__ = ("_list_connections", "count", "draining", "generation", "id", "log", "state")

    def __init__(
        self, id_: int, count: int, generation: int, connections: Callable[[], list[Connection]], log: Log
    ) -> None:
        self.id = id_
        self.count = count
        self.generation = generation
        self.draining = False
        self.state = SimpleNamespace()
        self.log = log
        self._list_connections = connections

    @property
    def connections(self) -> list[Connection]:
        """The live connections of this shard now, in no promised order. Made anew at each call."""
        return self._list_connections()


class Connection(ReadStream):
    """One accepted connection.

    `id` is unique within the worker; `peer` is the peer's address as `socket.accept` gave it; `state` is the handler's
    to use. All methods belong to the thread of the worker's loop.
    """

    __slots__ = (
        "__weakref__",
        "_packed_peer",
        "_peer",
        "id",
        "state",
    )

    def __init__(self, host: Host, fd: int, id_: int, peer: Any, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, traffic, unix)
        self.id = id_
        # As `_sys.accept` gave it: of most, a number.
        self._packed_peer = 0
        self._peer: Any = None
        if isinstance(peer, int):
            self._packed_peer = peer
        else:
            self._peer = peer
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<Connection {self.id} of {self.peer} {STAGE_NAMES[self._stage]}>"

    @property
    def peer(self) -> Any:
        """The peer's address, as `socket.accept` gives it."""
        return _sys.address_of(self._packed_peer if self._peer is None else self._peer)

    @property
    def shard(self) -> Shard:
        """The shard that serves this connection."""
        return cast("Shard", self._host.shard)  # type: ignore[attr-defined]  # the server's

    @property
    def local(self) -> Any:
        """The address of this end. Raises `ConnectionFreed` when the connection is closed."""
        if self.fd < 0:
            raise ConnectionFreed("the local address of a connection that is closed")
        return self.local_address()

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that the handler runs in, while it runs."""
        return None if self._waiter is None else self._waiter.task

    # What the server calls.

    def start(self) -> None:
        """Begin to serve: `handler(conn)` becomes a task."""
        self._make_waiter()
        self._start_task(self._host.handler(self))

    def end_after(self, error: BaseException) -> None:
        """The handler raised `error`, perhaps before it was a task."""
        self._put_aside().cause = error
        self._host.handler_raised(self, error)
        self._close(CloseReason.ERROR)

    def write_late(self, data: bytes | bytearray | memoryview) -> bool:
        """Send `data` although the connection was closed, behind what is still being sent. False: it is too late."""
        if self._stage != FLUSHING:
            return False
        self._submit(data)
        return True

    def break_off(self, error: BaseException | None) -> None:
        """End now, as asyncio's `abort` does: what is with the kernel already still goes out.

        But with bytes that are not, the peer sees a reset: it must not take what came for all there was. `error` is
        told to whom the end is told, and not logged.
        """
        if self._stage == CLOSED:
            return
        if error is not None:
            self._put_aside().cause = error
        reason = self._reason if error is None else CloseReason.ERROR
        if self.unsent_bytes:
            self._reset(reason)
        else:
            self._end(reason)

    def end_if_idle(self) -> bool:
        """For a drain: give a handler that waits in a read, with nothing unread or unsent, the end of its stream.

        Whether that was so.
        """
        if self._stage != OPEN or not self._parked or self._ended or not self._nothing_pending():
            return False
        self._ended = True
        self._reason = CloseReason.DRAIN
        self.withdraw_read()
        self._release_reader()
        return True

    def cut(self) -> None:
        """For the end of a drain: cancel the handler; when it is over, the connection flushes and closes."""
        self._reason = CloseReason.DRAIN
        task = self.task
        if task is None:
            self._close(CloseReason.DRAIN)
        else:
            task.cancel()

    def give_up(self) -> None:
        """For the very end of a drain: close now. What is with the kernel already still goes out."""
        if self._stage == LINGERING:
            self._end(self._reason)  # A reset would take back a reply that the peer has not fetched yet.
        else:
            self.abort()

    # Inside.

    def _make_waiter(self) -> None:
        self._waiter = Waiter(self._host.loop, self)

    def _start_task(self, coro: Coroutine[Any, Any, Any]) -> None:
        task = self._make_task(coro)
        assert self._waiter is not None
        self._waiter.task = task
        self._host.keep(task, self)

    def _make_task(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        loop = self._host.loop
        if not _steps.DRIVES or loop.get_debug() or loop.get_task_factory() is not None:
            return loop.create_task(coro)
        driver = Driver(coro, loop)
        task = loop.create_task(driver)
        driver.task = task
        return task

    def end_with(self, task: asyncio.Task[Any]) -> None:
        """The handler's task is done."""
        assert self._waiter is not None
        self._waiter.task = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._is_the_peers(error):
            self.end_after(error.with_traceback(_below_driver(error.__traceback__)))
        else:
            self._on_handler_returned(task)
        failure = self._failure
        if failure is not None:
            failure.__traceback__ = None  # Its frames refer to the connection, which refers to it.

    def _on_handler_returned(self, task: asyncio.Task[Any]) -> None:
        """The handler is over, and has done nothing wrong."""
        self._close(self._reason)

    def _is_the_peers(self, error: BaseException) -> bool:
        """Whether a handler that lets `error` through has done nothing wrong: the peer failed, or was through."""
        if isinstance(error, BaseExceptionGroup):  # A handler that reads or sends in a TaskGroup.
            return all(self._is_the_peers(one) for one in error.exceptions)
        failure = self._failure
        if failure is not None:
            return error is failure or isinstance(error, BrokenPipeError)
        return self._ended and isinstance(error, asyncio.IncompleteReadError) and not error.partial


def _below_driver(traceback: TracebackType | None) -> TracebackType | None:
    """A handler's traceback without what has stepped it: from the handler's own frame on."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(STEPPED_BY):
        traceback = traceback.tb_next
    return traceback
