"""Streams: how bytes go out, and how a connection ends.

Lives here: sending, its backpressure, and the ways to an end: flushed and lingering, or at once. Must not live here:
reading and handlers (see `connection`).

A write queue exists only while the kernel refuses bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from shardnet.connection.resume import DONE
from shardnet.errors import ConnectionFreed, DeadlineExceeded, WriteQueueOverflow
from shardnet.watcher.endpoint import RESET_ERRNOS
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.timers import Timer


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost."""

    write_high_bytes: int = 256 * 1024  # More than this unsent: `drain` waits, and a callback connection is not read.
    write_low_bytes: int = 64 * 1024  # Until no more than this is unsent.
    write_hard_bytes: int = 4 * 1024 * 1024  # More than this unsent: the connection is reset.
    write_stall_s: float = 30.0  # No unsent byte accepted by the kernel for so long: the connection is reset.
    linger_s: float = 2.0  # After our end of stream, how long to wait for the peer's.
    linger_bytes: int = 1024 * 1024  # And how much of what it still sends to throw away.
    line_max_bytes: int = 65536  # What a streams handler's `readline` looks through at most.


class CloseReason(enum.IntEnum):
    """Why a connection ended."""

    EOF = 0  # The peer ended its stream first.
    LOCAL = 1
    RESET = 2
    DEADLINE = 3
    ERROR = 4  # An error of the kernel, or the handler raised.
    DRAIN = 5


class Stage(enum.Enum):
    OPEN = enum.auto()
    FLUSHING = enum.auto()  # Closed by us; queued bytes are still being sent.
    LINGERING = enum.auto()  # Our end of stream is sent; waiting for the peer's.
    CLOSED = enum.auto()


class Host(Protocol):
    """What a connection needs of the server that accepted it."""

    shard: Any
    engine: Engine
    loop: asyncio.AbstractEventLoop
    limits: Limits
    finished: asyncio.Future[None]  # One finished future for every wake-up: see `resume`.

    def closed(self, conn: Any, reason: CloseReason, error: BaseException | None) -> None: ...

    def handler_started(self, task: asyncio.Task[Any]) -> None: ...

    def handler_raised(self, conn: Any, error: BaseException) -> None: ...

    def handler_ended(self, task: asyncio.Task[Any]) -> None: ...


class Stream(HookEndpoint):
    """The sending and ending half of a connection. `Connection` adds the reading half."""

    __slots__ = (
        "_cause",
        "_closers",
        "_ended",
        "_failure",
        "_host",
        "_mark_bytes",
        "_output_ended",
        "_peer_ended",
        "_reason",
        "_reported",
        "_senders",
        "_stage",
        "_timer",
    )

    def __init__(self, host: Host, fd: int, traffic: int, unix: bool = False) -> None:
        super().__init__(host.engine.agenda, fd, traffic=traffic, unix=unix)
        self._host = host
        self._stage = Stage.OPEN
        self._reason = CloseReason.LOCAL  # What a close would be put down to.
        self._peer_ended = False
        self._ended = False  # Nothing more is read: the peer ended its stream, or a drain stands in for that.
        self._output_ended = False  # No more is written: our end of stream is sent, or waits behind the queue.
        self._failure: OSError | None = None
        self._cause: BaseException | None = None  # What the handler raised.
        self._reported = False  # A send has raised the failure; from then on they raise BrokenPipeError.
        self._senders: list[tuple[int | None, asyncio.Future[None]]] | None = None
        self._closers: list[asyncio.Future[None]] | None = None
        self._timer: Timer | None = None  # Write stall while bytes wait, then the lingering close.
        self._mark_bytes = 0  # What `sent_bytes` was when the timer was armed; then, what lingering threw away.

    def _release_reader(self) -> None:
        """Reading is over: a parked reader is to look again, in the next turn."""

    def _on_sending_over(self) -> None:
        """Everything was sent, or nothing more will be. Once; the descriptor may stay a moment for the peer's end."""

    # Sending.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` without waiting; what the kernel refuses is queued. Never raises for the network's reasons.

        On a connection that is closed or dead it does nothing. One that finds more than the hard limit unsent resets
        the connection: await `drain()` now and then, or use `send`.
        """
        if self._stage is Stage.OPEN and len(data) and not self._output_ended:
            self._submit(data)

    def send(self, data: bytes | bytearray | memoryview) -> Awaitable[None]:
        """Send `data`; the await is over when every byte is with the kernel.

        Cancelling the await stops the waiting, not the sending. Raises `ConnectionFreed` when this side has closed the
        connection, and when it is dead: its error the first time, `BrokenPipeError` ever after.
        """
        if self._stage is not Stage.OPEN or self._output_ended:
            raise self._send_error()
        if not len(data) or self._submit(data):
            return DONE
        if self._failure is not None:
            raise self._send_error()
        return self._await_unsent(self.sent_bytes + self.unsent_bytes)

    def drain(self) -> Awaitable[None]:
        """If many bytes are unsent, wait until few are: to be awaited between many `write`s. Raises as `send`."""
        if self._stage is not Stage.OPEN:
            raise self._send_error()
        return DONE if self.unsent_bytes <= self._host.limits.write_high_bytes else self._await_unsent(None)

    # Ending.

    def write_eof(self) -> None:
        """End our stream once what is queued is sent, and go on reading. Idempotent; nothing is written after it."""
        if self._stage is Stage.OPEN and not self._output_ended:
            self._output_ended = True
            if not self.unsent_bytes:
                self._send_end()

    @property
    def output_ended(self) -> bool:
        """Whether `write_eof` was called."""
        return self._output_ended

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be when the last byte is sent."""
        return self._stage is not Stage.OPEN

    def close(self) -> None:
        """Send what is queued, then end the connection. Returns at once; idempotent.

        The end is a lingering one: after our end of stream the peer's is awaited for a moment and what it still sends
        is thrown away, because a close with unread input would reset the connection and take the last reply with it.
        """
        self._close(self._reason)

    def abort(self) -> None:
        """End the connection now: unsent bytes are dropped and the peer sees a reset. Idempotent."""
        if self._stage is not Stage.CLOSED:
            self._reset(self._reason)

    async def wait_closed(self) -> None:
        """Wait until the descriptor is closed, however that comes about."""
        if self._stage is not Stage.CLOSED:
            closed = self._host.loop.create_future()
            if self._closers is None:
                self._closers = []
            self._closers.append(closed)
            try:
                await closed
            finally:
                if self._closers is not None:  # Given up: a handler may wait anew beside each of its reads.
                    self._closers.remove(closed)

    # Hooks of the engine.

    def on_end(self) -> None:
        self._peer_ended = True
        if self._stage is Stage.LINGERING:
            self._end(self._reason)
        elif self._stage is Stage.OPEN:
            self._ended = True
            self._reason = CloseReason.EOF

    def on_failed(self, error: OSError) -> None:
        self._fail(error)

    def on_error_waiting(self) -> None:
        # Whoever reads nothing would never know, and hold its place for ever. But bytes that came before the error are
        # the handler's to read first.
        if self.unread_in_kernel() == 0 and (number := self.pending_error()):
            self._fail(OSError(number, os.strerror(number)))

    def on_sent(self) -> None:
        self._disarm()
        self.on_progress()
        if self.unsent_bytes:
            return  # It told a protocol, which has written more.
        if self._stage is Stage.FLUSHING:
            self._linger()
        elif self._stage is Stage.OPEN and self._output_ended:
            self._send_end()

    def on_progress(self) -> None:
        senders = self._senders
        if senders is None:
            return
        low = self._host.limits.write_low_bytes
        waiting = []
        for position, sender in senders:
            if sender.done():
                continue  # Its await was cancelled.
            if self.unsent_bytes > low if position is None else self.sent_bytes < position:
                waiting.append((position, sender))
            else:
                sender.set_result(None)
        self._senders = waiting or None

    # Inside: sending.

    def _submit(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether every byte is with the kernel. When not, they are queued, or the connection has failed."""
        limits = self._host.limits
        if self.unsent_bytes > limits.write_hard_bytes:
            self._fail(WriteQueueOverflow(f"{self.unsent_bytes} bytes unsent: the peer reads too slowly"))
            return False
        try:
            if self.submit_write(data):
                return True
        except OSError as error:
            self._fail(error)
            return False
        if self._timer is None:
            self._arm_stall()
        return False

    def _await_unsent(self, position: int | None) -> Awaitable[None]:
        """Wait until `sent_bytes` reaches `position`; None: until few bytes are unsent."""
        sender = self._host.loop.create_future()
        if self._senders is None:
            self._senders = []
        self._senders.append((position, sender))
        return sender

    def _send_error(self) -> OSError:
        if self._failure is None:
            what = "that is closed" if self._stage is not Stage.OPEN else "whose end of stream is sent"
            return ConnectionFreed(f"send on a connection {what}")
        if self._reported:
            return BrokenPipeError(errno.EPIPE, "send on a connection that has failed before")
        self._reported = True
        return self._failure.with_traceback(None)

    def _arm_stall(self) -> None:
        self._mark_bytes = self.sent_bytes
        self._timer = self._host.engine.after(self._host.limits.write_stall_s, self._on_stall)

    def _on_stall(self) -> None:
        if self.sent_bytes != self._mark_bytes:
            self._arm_stall()
        else:
            self._fail(DeadlineExceeded(f"the peer accepted no byte for {self._host.limits.write_stall_s:g} s"))

    def _disarm(self) -> None:
        if self._timer is not None:
            self._host.engine.cancel(self._timer)
            self._timer = None

    # Inside: ending.

    def _close(self, reason: CloseReason) -> None:
        if self._stage is not Stage.OPEN:
            return
        self._reason = reason
        self._stage = Stage.FLUSHING
        self.withdraw_read()
        self._release_reader()
        if not self.unsent_bytes:
            self._linger()

    def _send_end(self) -> None:
        with contextlib.suppress(OSError):  # The peer is gone: the next read or write tells.
            self.end_output()

    def _linger(self) -> None:
        if self.fd < 0:
            self._end(self._reason)
            return
        try:
            # Not left to the close: a process that the app forked may hold the descriptor, and the peer would wait.
            self.end_output()
        except OSError:  # The peer is gone already: nothing to linger for.
            self._end(self._reason)
            return
        if self._peer_ended:
            self._end(self._reason)
            return
        self._stage = Stage.LINGERING
        self._on_sending_over()
        self._mark_bytes = 0  # Counts what is thrown away.
        self._timer = self._host.engine.after(self._host.limits.linger_s, self._on_linger_over)
        self.post_read()

    def _on_linger_over(self) -> None:
        self._timer = None
        self._end(self._reason)

    def _discard(self, size: int) -> None:
        if self._stage is Stage.LINGERING:
            self._mark_bytes += size
            if self._mark_bytes > self._host.limits.linger_bytes:
                self._end(self._reason)
            else:
                self.post_read()

    def _fail(self, error: OSError) -> None:
        if self._stage is Stage.CLOSED:
            return
        if self._stage is Stage.LINGERING:  # We ended it, and it was only for the peer's sake that we waited.
            self._end(self._reason)
            return
        self._failure = error.with_traceback(None)  # Its frames refer to us.
        match error:
            case DeadlineExceeded():
                reason = CloseReason.DEADLINE
            case _ if error.errno in RESET_ERRNOS:
                reason = CloseReason.RESET
            case _:
                reason = CloseReason.ERROR
        self._reset(reason)

    def _reset(self, reason: CloseReason) -> None:
        if self.fd >= 0:  # The engine may have been closed before us.
            with contextlib.suppress(OSError):  # A peer that is gone needs no reset.
                self.reset_on_close()
        self._end(reason)

    def _end(self, reason: CloseReason) -> None:
        """Close the descriptor and tell everybody who waits. From anywhere: nobody is resumed inline."""
        if self._stage is Stage.CLOSED:
            return
        lingered = self._stage is Stage.LINGERING
        self._stage = Stage.CLOSED
        self._disarm()
        if not lingered:
            self._on_sending_over()
        self._host.engine.free(self)
        senders, self._senders = self._senders, None
        for _, sender in senders or ():
            if not sender.done():
                self._reported = self._failure is not None
                sender.set_exception(self._failure or ConnectionFreed("the connection was closed while sending"))
        closers, self._closers = self._closers, None
        for closer in closers or ():
            if not closer.done():
                closer.set_result(None)
        self._release_reader()
        error, self._cause = self._failure or self._cause, None  # Its frames refer to the connection.
        self._host.closed(self, reason, error)
