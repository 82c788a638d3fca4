"""Reading: how bytes come in, and how a reader waits for them.

Lives here: reads, framing, pausing. Must not live here: sending and ending (see `stream`), and whose the reads are (see
`connection`).

A receive buffer exists only while a framing call has bytes left over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Self

from shardnet.connection import _steps
from shardnet.connection.host import Host
from shardnet.connection.resume import Waiter
from shardnet.connection.stages import OPEN
from shardnet.connection.states import IDLE, PARKED
from shardnet.connection.stream import Stream
from shardnet.errors import UsageError
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES

LINE_MAX_BYTES: Final = 65536  # The default `limit` of `read_until`, as in asyncio.


class ReadStream(Stream):
    """The reading half of a connection, on top of the sending half."""

    __slots__ = ("_leftover", "_waiter")

    def __init__(self, host: Host, fd: int, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, traffic, unix)
        self._waiter: Waiter | None = None
        self._leftover: bytes | bytearray | None = None  # Received and not yet read.

    # Reading.

    def read(self, n: int = -1) -> Awaitable[bytes]:
        """At least one byte and at most `n`; -1: one chunk of at most 64 KiB. b"" at the end of the stream.

        Await it before asking again: two reads at once on one connection raise `RuntimeError`. Raises
        `ConnectionResetError` or another `OSError` when the connection is dead.
        """
        if n < -1:
            raise ValueError(f"read({n}): the size is -1 or the most bytes wanted")
        read = Read.__new__(Read)  # Without a call of `__init__`, which would take a tuple.
        read._conn = self
        read._size = n if 0 <= n < CHUNK_MAX_BYTES else CHUNK_MAX_BYTES
        read.over = read._parked = False
        return read

    async def read_exactly(self, n: int) -> bytes:
        """Exactly `n` bytes. Raises `asyncio.IncompleteReadError` with what there was when the stream ends before.

        Cancelled half-way, it loses nothing: the bytes are there for the next read.
        """
        if n < 0:
            raise ValueError(f"read_exactly({n}): the size cannot be negative")
        self._check_sole_reader()
        while (have := self._buffered()) < n:
            if not await Fill(self, have, min(n - have, CHUNK_MAX_BYTES)):
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
            have = self._buffered()
            if self._leftover is not None:
                found = self._leftover.find(separator, max(0, searched - len(separator) + 1))
                if 0 <= found <= limit - len(separator):
                    return self._consume(found + len(separator))
                if found >= 0 or have >= limit:
                    raise asyncio.LimitOverrunError(f"no separator in the first {limit} bytes", have)
            searched = have
            if not await Fill(self, have, CHUNK_MAX_BYTES):
                raise asyncio.IncompleteReadError(self._consume(have), None)

    def __aiter__(self) -> Self:
        """Chunks, until the end of the stream."""
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self._next_chunk()

    def _next_chunk(self) -> Chunk:
        chunk = Chunk.__new__(Chunk)
        chunk._conn = self
        chunk._size = CHUNK_MAX_BYTES
        chunk.over = chunk._parked = False
        return chunk

    @property
    def paused(self) -> bool:
        """Whether `pause` was called, and `resume` was not."""
        return self._paused

    def pause(self) -> None:
        """Receive nothing until `resume`: the peer's bytes wait in the kernel, and in time the peer waits too."""
        self._paused = True
        if self._stage == OPEN:  # Later, a posted read waits for the peer's end.
            self.withdraw_read()

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        if self._stage == OPEN and self._waiter is not None and self._waiter.state == PARKED:
            self.post_read(self._waiter.size)

    # The source of `Read` and `Fill`.

    def take(self, size: int) -> bytes | None:
        self._check_sole_reader()
        if size == 0:
            return b""
        return self._receive(size) if self._leftover is None else self._consume(size)

    def fill(self, have: int, size: int) -> bool | None:
        self._check_sole_reader()
        if self._buffered() > have:
            return True
        data = self._receive(size)
        if data:
            self._put_behind(data)
        return None if data is None else data != b""

    def park(self, size: int) -> Waiter:
        """Post a read of `size` bytes, and hand out what to wait on."""
        waiter = self._waiter
        assert waiter is not None
        waiter.park(size)
        if not self._paused:
            self.post_read(size)
        return waiter

    def _receive(self, size: int) -> bytes | None:
        if self._ended or self._stage != OPEN:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            return b""
        if self._paused or not self.readable:
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
        if self._waiter.state != IDLE:
            raise RuntimeError("read: another task is reading from this connection")

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
            return buffer if isinstance(buffer, bytes) else bytes(buffer)
        if isinstance(buffer, bytes):
            self._leftover = buffer = bytearray(buffer)
        data = bytes(buffer[:size])
        del buffer[:size]  # A bytearray gives up its front without moving the rest.
        return data

    # Hooks of the engine.

    def on_received(self, start: int, size: int) -> None:
        if self._stage != OPEN:
            self._discard(size)
            return
        self._put_behind(self._host.swap.take(start, size))
        self._resume_reader()

    def on_end(self) -> None:
        Stream.on_end(self)
        self._resume_reader()

    @property
    def _parked(self) -> bool:
        return self._waiter is not None and self._waiter.state == PARKED

    def _resume_reader(self) -> None:
        waiter = self._waiter
        if waiter is not None and waiter.state == PARKED:
            try:  # noqa: SIM105 (for each message)
                waiter.wake_inline(self._host.finished)
            except (SystemExit, KeyboardInterrupt):
                # Of a handler. Its Task has recorded it before letting it pass, and whoever looks at the Task learns of
                # it; further up it would end the loop and with it every other connection.
                pass

    def _release_reader(self) -> None:
        if self._waiter is not None:
            self._waiter.wake_deferred(self._host.engine, self._host.finished)

    def _end(self, reason: int) -> None:
        Stream._end(self, reason)
        if self._waiter is not None:
            self._waiter.retire()

    def _nothing_pending(self) -> bool:
        if self._leftover is not None or self.unsent_bytes or self.readable:
            return False
        try:
            return self.unread_in_kernel() == 0
        except OSError:  # The app has closed the descriptor itself: nothing can be waiting on it.
            return True


class _Read(_steps.Awaitable):
    """A read that is awaited. Its bytes leave the kernel at its steps, never before."""

    __slots__ = ("_conn", "_parked", "_size")

    def __init__(self, conn: ReadStream, size: int) -> None:
        self.over = False
        self._conn = conn
        self._size = size
        self._parked = False

    def advance(self) -> Any:
        """See `Awaitable`."""
        conn = self._conn
        if self._parked:
            self._leave()
        result = self._look()
        if result is not None:
            self.over = True
            return result
        self.over = False
        self._parked = True
        return conn.park(self._size)

    def abandon(self) -> None:
        if self._parked:
            self._leave()

    def _look(self) -> Any:
        """What the read brings now; None when it has to wait."""
        raise NotImplementedError

    def _leave(self) -> None:
        self._parked = False
        waiter = self._conn._waiter
        if waiter is not None:
            waiter.leave()


class Read(_Read):
    """The awaitable of `read(size)`."""

    __slots__ = ()

    def _look(self) -> bytes | None:
        return self._conn.take(self._size)


class Chunk(_Read):
    """The awaitable of a step of `async for`."""

    __slots__ = ()

    def _look(self) -> bytes | None:
        data = self._conn.take(self._size)
        if data is not None and not data:
            raise StopAsyncIteration
        return data


class Fill(_Read):
    """The awaitable that buffers more than `have` bytes: False when the stream ends before."""

    __slots__ = ("_have",)

    def __init__(self, conn: ReadStream, have: int, size: int) -> None:
        super().__init__(conn, size)
        self._have = have

    def _look(self) -> bool | None:
        return self._conn.fill(self._have, self._size)
