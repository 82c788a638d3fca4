"""Connections: the face of an endpoint that handlers see.

Lives here: reading and framing, and what the end of a handler means. Must not live here: sending and ending (see
`stream`), accepting and counting (see `server`).

A receive buffer exists only while a framing call has bytes left over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from shardnet.connection.resume import Fill, Read, State, Waiter
from shardnet.connection.stream import CloseReason, Host, Stage, Stream
from shardnet.errors import ConnectionFreed, UsageError
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES

if TYPE_CHECKING:
    from shardnet.log import Log

LINE_MAX_BYTES: Final = 65536  # The default `limit` of `read_until`, as in asyncio.


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


class Connection(Stream):
    """One accepted connection.

    `id` is unique within the worker; `peer` is the peer's address as `socket.accept` gave it; `state` is the handler's
    to use. All methods belong to the thread of the worker's loop.
    """

    __slots__ = (
        "__weakref__",
        "_leftover",
        "_paused",
        "_read_size",
        "_waiter",
        "id",
        "opened_s",
        "peer",
        "state",
        "task",
    )

    def __init__(self, host: Host, fd: int, id_: int, peer: Any, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, traffic, unix)
        self.id = id_
        self.peer = peer
        self.opened_s = 0.0  # On the monotonic clock; only while an access log wants to know.
        self.state: Any = None
        self.task: asyncio.Task[Any] | None = None
        self._paused = False
        self._read_size = 0  # What the parked reader wants.
        self._waiter: Waiter | None = None
        self._leftover: bytes | bytearray | None = None  # Received and not yet read.

    def __repr__(self) -> str:
        return f"<Connection {self.id} of {self.peer} {self._stage.name.lower()}>"

    @property
    def shard(self) -> Shard:
        """The shard that serves this connection."""
        shard: Shard = self._host.shard
        return shard

    @property
    def local(self) -> Any:
        """The address of this end. Raises `ConnectionFreed` when the connection is closed."""
        if self.fd < 0:
            raise ConnectionFreed("the local address of a connection that is closed")
        return self.local_address()

    # Reading.

    def read(self, n: int = -1) -> Awaitable[bytes]:
        """At least one byte and at most `n`; -1: one chunk of at most 64 KiB. b"" at the end of the stream.

        Await it before asking again: two reads at once on one connection raise `RuntimeError`. Raises
        `ConnectionResetError` or another `OSError` when the connection is dead.
        """
        if n < -1:
            raise ValueError(f"read({n}): the size is -1 or the most bytes wanted")
        return Read(self, CHUNK_MAX_BYTES if n == -1 else n)

    async def read_exactly(self, n: int) -> bytes:
        """Exactly `n` bytes. Raises `asyncio.IncompleteReadError` with what there was when the stream ends before.

        Cancelled half-way, it loses nothing: the bytes are there for the next read.
        """
        if n < 0:
            raise ValueError(f"read_exactly({n}): the size cannot be negative")
        self._check_sole_reader()
        while (have := self._buffered) < n:
            if not await Fill(self, have, n - have):
                raise asyncio.IncompleteReadError(self._consume(have), n)
        return self._consume(n)

    async def read_until(self, separator: bytes = b"\n", limit: int = LINE_MAX_BYTES) -> bytes:
        """Bytes up to and including `separator`, at most `limit` of them.

        Raises `asyncio.IncompleteReadError` with what there was when the stream ends before, and
        `asyncio.LimitOverrunError` when the separator does not come in time: the bytes then stay for the next read.
        """
        if not separator:
            raise ValueError("read_until: the separator is empty")
        self._check_sole_reader()
        searched = 0
        while True:
            have = self._buffered
            if self._leftover is not None:
                found = self._leftover.find(separator, max(0, searched - len(separator) + 1))
                if 0 <= found <= limit - len(separator):
                    return self._consume(found + len(separator))
                if found >= 0 or have >= limit:
                    raise asyncio.LimitOverrunError(f"no separator in the first {limit} bytes", have)
            searched = have
            if not await Fill(self, have, CHUNK_MAX_BYTES):
                raise asyncio.IncompleteReadError(self._consume(have), None)

    def __aiter__(self) -> Connection:
        """Chunks, until the end of the stream."""
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data

    @property
    def paused(self) -> bool:
        """Whether `pause` was called, and `resume` was not."""
        return self._paused

    def pause(self) -> None:
        """Receive nothing until `resume`: the peer's bytes wait in the kernel, and in time the peer waits too."""
        self._paused = True
        if self._stage is Stage.OPEN:  # Later, a posted read waits for the peer's end.
            self.withdraw_read()

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        if self._stage is Stage.OPEN and self._parked:
            self.post_read(self._read_size)

    # What the server calls.

    def start(self, handler: Callable[..., Any]) -> None:
        """Begin to serve: `handler(conn)` becomes a task."""
        self._make_waiter()
        self._start_task(handler(self))

    def end_after(self, error: BaseException) -> None:
        """The handler raised `error`, perhaps before it was a task."""
        self._cause = error
        self._host.handler_raised(self, error)
        self._close(CloseReason.ERROR)

    def write_late(self, data: bytes | bytearray | memoryview) -> bool:
        """Send `data` although the connection was closed, behind what is still being sent. False: it is too late."""
        if self._stage is not Stage.FLUSHING:
            return False
        self._submit(data)
        return True

    def break_off(self, error: BaseException | None) -> None:
        """End now, as asyncio's `abort` does: what is with the kernel already still goes out.

        But with bytes that are not, the peer sees a reset: it must not take what came for all there was. `error` is
        told to whom the end is told, and not logged.
        """
        if self._stage is Stage.CLOSED:
            return
        self._cause = error or self._cause
        reason = self._reason if error is None else CloseReason.ERROR
        if self.unsent_bytes:
            self._reset(reason)
        else:
            self._end(reason)

    def end_if_idle(self) -> bool:
        """For a drain: give a handler that waits in a read, with nothing unread or unsent, the end of its stream.

        Whether that was so.
        """
        if self._stage is not Stage.OPEN or not self._parked or self._ended or not self._nothing_pending():
            return False
        self._ended = True
        self._reason = CloseReason.DRAIN
        self.withdraw_read()
        self._release_reader()
        return True

    def cut(self) -> None:
        """For the end of a drain: cancel the handler; when it is over, the connection flushes and closes."""
        self._reason = CloseReason.DRAIN
        if self.task is None:
            self._close(CloseReason.DRAIN)
        else:
            self.task.cancel()

    def give_up(self) -> None:
        """For the very end of a drain: close now. What is with the kernel already still goes out."""
        if self._stage is Stage.LINGERING:
            self._end(self._reason)  # A reset would take back a reply that the peer has not fetched yet.
        else:
            self.abort()

    # The source of `Read` and `Fill`.

    def take(self, size: int) -> bytes | None:
        self._check_sole_reader()
        if size == 0:
            return b""
        return self._receive(size) if self._leftover is None else self._consume(size)

    def fill(self, have: int, size: int) -> bool | None:
        self._check_sole_reader()
        if self._buffered > have:
            return True
        data = self._receive(size)
        if data:
            self._put_behind(data)
        return None if data is None else data != b""

    def park(self, size: int) -> Waiter:
        waiter = self._waiter
        assert waiter is not None
        self._read_size = size
        if not self._paused:
            self.post_read(size)
        return waiter

    def _receive(self, size: int) -> bytes | None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._ended or self._stage is not Stage.OPEN:
            return b""
        if self._paused:
            return None
        try:
            data = self.receive_now(size)
        except OSError as error:
            self._fail(error)
            raise
        if data == b"":
            Stream.on_end(self)
        return data

    def _check_sole_reader(self) -> None:
        if self._waiter is None:
            raise UsageError("read: the bytes of this connection go to its on_data callback")
        if self._waiter.state is not State.IDLE:
            raise RuntimeError("read: another task is reading from this connection")

    @property
    def _buffered(self) -> int:
        return 0 if self._leftover is None else len(self._leftover)

    def _put_behind(self, data: bytes) -> None:
        if self._leftover is None:
            self._leftover = data
        else:
            self._leftover = bytearray(self._leftover) if isinstance(self._leftover, bytes) else self._leftover
            self._leftover += data

    def _consume(self, size: int) -> bytes:
        """The first `size` bytes of what is left over, or all of it when it is less."""
        buffer = self._leftover
        if buffer is None:
            return b""
        if size >= len(buffer):
            self._leftover = None
            return bytes(buffer)
        if isinstance(buffer, bytes):
            self._leftover = buffer = bytearray(buffer)
        data = bytes(buffer[:size])
        del buffer[:size]  # A bytearray gives up its front without moving the rest.
        return data

    # Hooks of the engine.

    def on_received(self, start: int, size: int) -> None:
        if self._stage is not Stage.OPEN:
            self._discard(size)
            return
        self._put_behind(self._host.engine.swap.take(start, size))
        self._resume_reader()

    def on_end(self) -> None:
        super().on_end()
        self._resume_reader()

    @property
    def _parked(self) -> bool:
        return self._waiter is not None and self._waiter.state is State.PARKED

    def _resume_reader(self) -> None:
        waiter = self._waiter
        if waiter is not None and waiter.state is State.PARKED:
            # SystemExit and KeyboardInterrupt of a handler come through here. Its Task has recorded them before letting
            # them pass, and whoever looks at the Task learns of them; further up they would end the loop and with it
            # every other connection.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                waiter.wake_inline(self._host.finished)

    def _release_reader(self) -> None:
        if self._waiter is not None:
            self._waiter.wake_deferred(self._host.engine, self._host.finished)

    # Inside.

    def _make_waiter(self) -> None:
        self._waiter = Waiter(self._host.loop, self.withdraw_read)

    def _start_task(self, coro: Coroutine[Any, Any, Any]) -> None:
        self.task = self._host.loop.create_task(coro)
        self._host.handler_started(self.task)
        self.task.add_done_callback(self._on_handler_done)

    def _end(self, reason: CloseReason) -> None:
        super()._end(reason)
        if self._waiter is not None:
            self._waiter.retire()

    def _nothing_pending(self) -> bool:
        if self._leftover is not None or self.unsent_bytes or self.readable:
            return False
        try:
            return self.unread_in_kernel() == 0
        except OSError:  # The app has closed the descriptor itself: nothing can be waiting on it.
            return True

    def _on_handler_done(self, task: asyncio.Task[Any]) -> None:
        self.task = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._is_the_peers(error):
            self.end_after(error)
        else:
            self._on_handler_returned(task)
        if self._failure is not None:
            self._failure.__traceback__ = None  # Its frames refer to the connection, which refers to it.
        self._host.handler_ended(task)

    def _on_handler_returned(self, task: asyncio.Task[Any]) -> None:
        """The handler is over, and has done nothing wrong."""
        self._close(self._reason)

    def _is_the_peers(self, error: BaseException) -> bool:
        """Whether a handler that lets `error` through has done nothing wrong: the peer failed, or was through."""
        if isinstance(error, BaseExceptionGroup):  # A handler that reads or sends in a TaskGroup.
            return all(self._is_the_peers(one) for one in error.exceptions)
        if self._failure is not None:
            return error is self._failure or isinstance(error, BrokenPipeError)
        return self._ended and isinstance(error, asyncio.IncompleteReadError) and not error.partial
