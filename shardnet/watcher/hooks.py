"""Hook endpoints: posted reads and queued writes, answered by calls of hooks.

An endpoint remembers what its engine learned (`readable`) and what its owner asked (a posted read, queued writes). What
is to be done about it in the next turn stands in the agenda that all endpoints of one engine share.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from shardnet.errors import ConnectionFreed
from shardnet.watcher import _sys
from shardnet.watcher.counters import (
    CONNECTIONS_PAUSED,
    READ_CANCELLED,
    READ_EOF,
    READ_OK,
    READ_PENDING,
    SEND_QUEUE_BYTES,
    SWAP_SPILL_BYTES,
    TRAFFIC_ALONE,
    TRAFFIC_SENT,
    WRITE_CANCELLED,
    WRITE_OK,
    WRITE_PENDING,
    Op,
)
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, Agenda, Endpoint

WRITES_PER_TURN_MAX: Final = 16  # Writes from one queue, before others get the turn.


class HookEndpoint(Endpoint):
    """An endpoint with hooks, and the base of what the layer above makes of it.

    The owner posts reads and submits writes; the engine answers by the `on_` hooks, from inside `Engine.turn` and
    never from inside the call that asked. A hook may raise; the exception leaves `turn`.
    """

    __slots__ = (
        "_drained_when_short",
        "_error_noted",
        "_queue",
        "_reap_due",
        "_unix",
        "_wanted",
        "readable",
        "reaped",
        "unsent_bytes",
    )

    def __init__(self, agenda: Agenda, fd: int, *, traffic: int = TRAFFIC_ALONE, unix: bool = False) -> None:
        """Take over `fd`, a connected, non-blocking stream socket: from now on its engine closes it."""
        super().__init__(agenda, fd, traffic)
        self.readable = False  # Bytes, the end or an error may wait in the kernel.
        self.unsent_bytes = 0  # Submitted, but still here.
        self._unix = unix
        self._wanted = 0  # Bytes that the posted read wants; 0 when none is posted.
        self._drained_when_short = not unix
        self._queue: deque[bytes | memoryview] | None = None
        self.reaped = 0  # What the last `reap` returned.
        self._reap_due = False  # Stands in the agenda already.
        self._error_noted = False  # By the poll, while an operation was under way that should meet it.

    # What the layer above overrides.

    def on_received(self, start: int, size: int) -> None:
        """The posted read is complete: `size` bytes stand at `start` in the swap buffer until this call returns."""

    def on_end(self) -> None:
        """The posted read met the end of the stream. Writing still works."""

    def on_failed(self, error: OSError) -> None:
        """A read or a queued write met an error: the connection is dead. The endpoint is still to be freed.

        With a write, the queue is gone.
        """

    def on_error_waiting(self) -> None:
        """The connection is in error (a reset, say), and no operation is under way that would meet it."""

    def on_sent(self) -> None:
        """The last byte that was queued is with the kernel now."""

    def on_progress(self) -> None:
        """Some queued bytes went to the kernel, others still wait."""

    # What the layer above calls.

    @property
    def reading(self) -> bool:
        """Whether a read is posted and not yet reaped."""
        return self._wanted != 0

    def post_read(self, size: int = CHUNK_MAX_BYTES) -> None:
        """Ask for one read of at most `size` bytes, at least 1; a later call replaces the size.

        Raises `ConnectionFreed` when the endpoint was freed.
        """
        if size < 1:
            raise ValueError(f"post_read: the size is {size}: it takes at least 1 byte")
        if self.fd < 0:
            raise ConnectionFreed("read on a connection that is closed")
        if self._wanted == 0:
            self._agenda.cells[READ_PENDING] += 1
        self._wanted = size
        if self.readable and not self._reap_due:
            self._reap_due = True
            self._agenda.ready.append(self)

    def withdraw_read(self) -> bool:
        """Take the posted read back: True when that was still possible, and its bytes stay in the kernel.

        A read that was reaped completes all the same: `on_received` comes, and its bytes are the owner's to keep.
        """
        if self._wanted == 0:
            return False
        self._wanted = 0
        self._agenda.cells[READ_CANCELLED] += 1
        self._agenda.cells[READ_PENDING] -= 1
        return True

    def receive_now(self, size: int) -> bytes | None:
        """At most `size` bytes (at least 1) at once, b"" at the end of the stream; None when a read has to be posted.

        Not to be called while a posted read has not completed: its bytes are older. Raises `OSError` when the
        connection is dead.
        """
        if size < 1:
            raise ValueError(f"receive_now: the size is {size}: it takes at least 1 byte")
        agenda = self._agenda
        if not self.readable or agenda.receives_left <= 0:
            return None
        agenda.receives_left -= 1
        if size > CHUNK_MAX_BYTES:
            size = CHUNK_MAX_BYTES
        try:
            data = self._receive_bytes(size)
        except OSError as error:  # It stays readable: an error proves nothing about what waits behind it.
            agenda.count_failure(Op.READ, error)
            raise
        if data is None:
            self._found_empty()
            return None
        received = len(data)
        if received == 0:
            agenda.cells[READ_EOF] += 1
            return data
        if received < size and self._drained_when_short:
            self._drained()
        agenda.cells[READ_OK] += 1
        self.received_bytes += received
        agenda.cells[self.traffic] += received
        agenda.cells[SWAP_SPILL_BYTES] += received
        return data

    def submit_write(self, data: bytes | bytearray | memoryview) -> bool:
        """Send `data`, behind what waits already: True when every byte is with the kernel on return.

        What the kernel refuses is queued (a mutable buffer is copied) and `on_sent` tells when it has gone. Raises
        `OSError` when the connection is dead, `ConnectionFreed` when it was freed, `TypeError` when `data` is no
        contiguous buffer, `ValueError` when it is empty.
        """
        if not _sys.size_of(data):
            raise ValueError("submit_write: the data is empty")
        sent = self._submit_write(data)
        if sent < 0:
            raise _sys.error_of(-sent)
        return sent == 1

    # What the engine calls.

    def note_end(self) -> None:
        """The read met the end of the stream, and with it not the error that may stand behind it."""
        if self._error_noted:
            self._error_noted = False
            self._agenda.failing.append(self)

    def note_events(self, events: int) -> None:
        if events & ~_sys.EVENT_OUT:
            self.readable = True
            if events & _sys.EVENT_ODD:
                self._drained_when_short = False
            if self._wanted and not self._reap_due:
                self._reap_due = True
                self._agenda.ready.append(self)
        if self._queue is not None and events & _sys.EVENT_OUTWARD:
            self._ask_proceed()
        if events & _sys.EVENT_ERROR:
            if self._wanted or self._queue is not None:
                self._error_noted = True
            else:
                self._agenda.failing.append(self)

    def reap(self, swap: _sys.SwapBuffer, start: int, room: int) -> int:
        """Complete the posted read into the swap buffer: bytes received, 0 at the end, -1 when nothing completed.

        Less than that is a failure, see `reap_error`. `reaped` keeps it.
        """
        self._reap_due = False
        wanted = self._wanted
        if wanted == 0:
            return -1  # Withdrawn or freed meanwhile; it stays readable.
        if wanted > CHUNK_MAX_BYTES:
            wanted = CHUNK_MAX_BYTES
        if wanted > room:
            wanted = room
        size = self._receive_into(swap, start, wanted)  # When that fails it stays readable: see `receive_now`.
        if size == -1:
            self._found_empty()
            return -1
        self._wanted = 0
        self._agenda.cells[READ_PENDING] -= 1
        if 0 < size < wanted and self._drained_when_short:
            self._drained()
        self.reaped = size
        return size

    def reap_error(self) -> OSError:
        """What the last `reap` failed with."""
        return _sys.error_of(_sys.FAILED - self.reaped)

    def proceed(self) -> None:
        """Send from the queue: until it is empty, the kernel is full, or the turn's share is used up."""
        self._proceed_due = False
        queue = self._queue
        if queue is None:
            return
        sent_before = self.sent_bytes
        for _ in range(WRITES_PER_TURN_MAX):
            sent = self._send_queue(queue)
            if sent < 0:
                # The stream has a hole from here on: nothing behind it may be sent, not even if the error passes.
                queue.popleft()
                self._agenda.cells[WRITE_PENDING] -= 1
                self._drop_queue()
                error = _sys.error_of(-sent)
                self._agenda.count_failure(Op.WRITE, error)
                self.on_failed(error)
                return
            if sent == 0:
                self._rearm(_sys.EVENT_OUT)
                break
            self._drop_sent(queue, sent)
            if not queue:
                self._queue = None
                self._agenda.cells[CONNECTIONS_PAUSED] -= 1
                self.on_sent()
                return
        else:
            self._ask_proceed()
        if self.sent_bytes != sent_before:
            self.on_progress()

    def abandon(self) -> int:
        self.withdraw_read()
        self._drop_queue()
        self.readable = False
        return Endpoint.abandon(self)

    # Where the bytes come from, and where they go: `shardnet.testing` has other places.

    def _receive_into(self, swap: _sys.SwapBuffer, start: int, room: int) -> int:
        """As `SwapBuffer.receive`."""
        return swap.receive(self.fd, start, room)

    def _receive_bytes(self, size: int) -> bytes | None:
        """As `_sys.receive`."""
        return _sys.receive(self.fd, size)

    def _send_bytes(self, data: bytes | bytearray | memoryview) -> int:
        """As `_sys.send`."""
        return _sys.send(self.fd, data)

    def _send_queue(self, queue: deque[bytes | memoryview]) -> int:
        """As `_sys.send_many`."""
        return _sys.send_many(self.fd, queue) if len(queue) > 1 else _sys.send(self.fd, queue[0])

    # Inside.

    def _submit_write(self, data: bytes | bytearray | memoryview) -> int:
        """`submit_write` of what is not empty: 1 when all is with the kernel, 0 when not; when it fails, -errno."""
        if self.fd < 0:
            raise ConnectionFreed("write on a connection that is closed")
        sent = 0
        if self._queue is None:
            agenda = self._agenda
            sent = self._send_bytes(data)
            if sent < 0:
                agenda.count_failure(Op.WRITE, _sys.error_of(-sent))
                return sent
            self.sent_bytes += sent
            agenda.cells[self.traffic + TRAFFIC_SENT] += sent
            if sent == _sys.size_of(data):
                agenda.cells[WRITE_OK] += 1
                return 1
            self._queue = deque()
            agenda.cells[CONNECTIONS_PAUSED] += 1
            self._rearm(_sys.EVENT_OUT)
        rest = data if isinstance(data, bytes) else bytes(data)
        self._queue.append(memoryview(rest)[sent:] if sent else rest)
        unsent = len(rest) - sent
        self.unsent_bytes += unsent
        self._agenda.cells[SEND_QUEUE_BYTES] += unsent
        self._agenda.cells[WRITE_PENDING] += 1
        return 0

    def _drop_queue(self) -> None:
        if self._queue is not None:
            cells = self._agenda.cells
            cells[WRITE_CANCELLED] += len(self._queue)
            cells[WRITE_PENDING] -= len(self._queue)
            cells[SEND_QUEUE_BYTES] -= self.unsent_bytes
            cells[CONNECTIONS_PAUSED] -= 1
            self._queue = None
            self.unsent_bytes = 0

    def _found_empty(self) -> None:
        self._drained_when_short = not self._unix
        self._drained()

    def _drained(self) -> None:
        self.readable = False
        if self._agenda.rearm is not None:
            self._agenda.rearm(self.fd, _sys.EVENT_IN)

    def _drop_sent(self, queue: deque[bytes | memoryview], sent: int) -> None:
        cells = self._agenda.cells
        self._count_sent(sent)
        self.unsent_bytes -= sent
        cells[SEND_QUEUE_BYTES] -= sent
        while sent:
            head = queue[0]
            if sent < len(head):
                queue[0] = memoryview(head)[sent:]
                return
            sent -= len(head)
            queue.popleft()
            cells[WRITE_OK] += 1
            cells[WRITE_PENDING] -= 1
