"""Streams: how bytes go out, and how a connection ends.

Lives here: sending, its backpressure, and the ways to an end: flushed and lingering, or at once. Must not live here:
reading and handlers (see `connection`).

A write queue exists only while the kernel refuses bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable
from typing import Any, Final

from shardnet.connection.host import Host
from shardnet.connection.resume import DONE
from shardnet.connection.stages import CLOSED, FLUSHING, LINGERING, OPEN, CloseReason
from shardnet.errors import ConnectionFreed, DeadlineExceeded, WriteQueueOverflow
from shardnet.watcher import _sys
from shardnet.watcher.endpoint import RESET_ERRNOS
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.timers import Timer

EOF: Final = int(CloseReason.EOF)
LOCAL: Final = int(CloseReason.LOCAL)


class Aside:
    """What few connections have: put aside, so that the others need no room for it."""

    __slots__ = ("cause", "closers", "failure", "mark_bytes", "reported", "senders", "timer")

    def __init__(self) -> None:
        self.failure: OSError | None = None
        self.cause: BaseException | None = None  # What the handler raised.
        self.reported = False  # A send has raised the failure; from then on they raise BrokenPipeError.
        self.senders: list[tuple[int | None, asyncio.Future[None]]] | None = None
        self.closers: list[asyncio.Future[None]] | None = None
        self.timer: Timer | None = None  # Write stall while bytes wait, then the lingering close.
        self.mark_bytes = 0  # What `sent_bytes` was when the timer was armed; then, what lingering threw away.


class Stream(HookEndpoint):
    """The sending and ending half of a connection. `Connection` adds the reading half."""

    __slots__ = ("_aside", "_ended", "_host", "_output_ended", "_paused", "_peer_ended", "_reason", "_stage")

    def __init__(self, host: Host, fd: int, traffic: int, unix: bool = False) -> None:
        super().__init__(host.engine.agenda, fd, traffic=traffic, unix=unix)
        self._host = host
        self._stage = OPEN
        self._reason: int = LOCAL  # What a close would be put down to: a `CloseReason`.
        self._paused = False  # The reading half's. Here it takes no room, among the others that are as small.
        self._peer_ended = False
        self._ended = False  # Nothing more is read: the peer ended its stream, or a drain stands in for that.
        self._output_ended = False  # No more is written: our end of stream is sent, or waits behind the queue.
        self._aside: Aside | None = None

    @property
    def lingering(self) -> bool:
        """Whether all is sent, and only the peer's end of the stream is awaited."""
        return self._stage == LINGERING

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
        if self._stage == OPEN and not self._output_ended and _sys.size_of(data):
            self._submit(data)

    def write_plainly(self, data: Any) -> bool:
        """`write`, if the connection is open and `data` of a type that asyncio's transports take: whether it was."""
        if self._stage != OPEN or self._output_ended or not isinstance(data, (bytes, bytearray, memoryview)):
            return False
        if _sys.size_of(data):
            self._submit(data)
        return True

    def send(self, data: bytes | bytearray | memoryview) -> Awaitable[None]:
        """Send `data`; the await is over when every byte is with the kernel.

        Cancelling the await stops the waiting, not the sending. Raises `ConnectionFreed` when this side has closed the
        connection, and when it is dead: its error the first time, `BrokenPipeError` ever after.
        """
        if self._stage != OPEN or self._output_ended:
            raise self._send_error()
        if not _sys.size_of(data) or self._submit(data):
            return DONE
        if self._stage != OPEN:  # It has failed.
            raise self._send_error()
        return self._await_unsent(self.sent_bytes + self.unsent_bytes)

    def drain(self) -> Awaitable[None]:
        """If many bytes are unsent, wait until few are: to be awaited between many `write`s. Raises as `send`."""
        if self._stage != OPEN:
            raise self._send_error()
        if not self.unsent_bytes or self.unsent_bytes <= self._host.limits.write_high_bytes:
            return DONE
        return self._await_unsent(None)

    # Ending.

    def write_eof(self) -> None:
        """End our stream once what is queued is sent, and go on reading. Idempotent; nothing is written after it."""
        if self._stage == OPEN and not self._output_ended:
            self._output_ended = True
            if not self.unsent_bytes:
                self._send_end()

    @property
    def output_ended(self) -> bool:
        """Whether `write_eof` was called."""
        return self._output_ended

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be when the last byte is sent."""
        return self._stage != OPEN

    def close(self) -> None:
        """Send what is queued, then end the connection. Returns at once; idempotent.

        The end is a lingering one: after our end of stream the peer's is awaited for a moment and what it still sends
        is thrown away, because a close with unread input would reset the connection and take the last reply with it.
        """
        self._close(self._reason)

    def abort(self) -> None:
        """End the connection now: unsent bytes are dropped and the peer sees a reset. Idempotent."""
        if self._stage != CLOSED:
            self._reset(self._reason)

    async def wait_closed(self) -> None:
        """Wait until the descriptor is closed, however that comes about."""
        if self._stage != CLOSED:
            closed = self._host.loop.create_future()
            aside = self._put_aside()
            if aside.closers is None:
                aside.closers = []
            aside.closers.append(closed)
            try:
                await closed
            finally:
                if aside.closers is not None:  # Given up: a handler may wait anew beside each of its reads.
                    aside.closers.remove(closed)

    # Hooks of the engine.

    def on_end(self) -> None:
        self._peer_ended = True
        if self._stage == LINGERING:
            self._end(self._reason)
        elif self._stage == OPEN:
            self._ended = True
            self._reason = EOF

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
        if self._stage == FLUSHING:
            self._linger()
        elif self._stage == OPEN and self._output_ended:
            self._send_end()

    def on_progress(self) -> None:
        aside = self._aside
        if aside is None or aside.senders is None:
            return
        low = self._host.limits.write_low_bytes
        waiting = []
        for position, sender in aside.senders:
            if sender.done():
                continue  # Its await was cancelled.
            if self.unsent_bytes > low if position is None else self.sent_bytes < position:
                waiting.append((position, sender))
            else:
                sender.set_result(None)
        aside.senders = waiting or None

    # Inside: sending.

    def _submit(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether every byte is with the kernel. When not, they are queued, or the connection has failed."""
        if self.unsent_bytes and self.unsent_bytes > self._host.limits.write_hard_bytes:
            self._fail(WriteQueueOverflow(f"{self.unsent_bytes} bytes unsent: the peer reads too slowly"))
            return False
        if self.fd < 0:  # The engine was closed before us.
            self._fail(ConnectionFreed("write on a connection that is closed"))
            return False
        sent = self._submit_write(data)
        if sent > 0:
            return True
        if sent < 0:
            self._fail(_sys.error_of(-sent))
            return False
        if self._put_aside().timer is None:
            self._arm_stall()
        return False

    def _await_unsent(self, position: int | None) -> Awaitable[None]:
        """Wait until `sent_bytes` reaches `position`; None: until few bytes are unsent."""
        sender = self._host.loop.create_future()
        aside = self._put_aside()
        if aside.senders is None:
            aside.senders = []
        aside.senders.append((position, sender))
        return sender

    def _send_error(self) -> OSError:
        aside = self._aside
        if aside is None or aside.failure is None:
            what = "that is closed" if self._stage != OPEN else "whose end of stream is sent"
            return ConnectionFreed(f"send on a connection {what}")
        if aside.reported:
            return BrokenPipeError(errno.EPIPE, "send on a connection that has failed before")
        aside.reported = True
        return aside.failure.with_traceback(None)

    def _arm_stall(self) -> None:
        aside = self._put_aside()
        aside.mark_bytes = self.sent_bytes
        aside.timer = self._host.engine.after(self._host.limits.write_stall_s, self._on_stall)

    def _on_stall(self) -> None:
        if self.sent_bytes != self._put_aside().mark_bytes:
            self._arm_stall()
        else:
            self._fail(DeadlineExceeded(f"the peer accepted no byte for {self._host.limits.write_stall_s:g} s"))

    def _disarm(self) -> None:
        aside = self._aside
        if aside is not None and aside.timer is not None:
            self._host.engine.cancel(aside.timer)
            aside.timer = None

    def _put_aside(self) -> Aside:
        """Where it is kept what few have."""
        if self._aside is None:
            self._aside = Aside()
        return self._aside

    @property
    def _failure(self) -> OSError | None:
        """What the network ended the connection with."""
        return None if self._aside is None else self._aside.failure

    # Inside: ending.

    def _close(self, reason: int) -> None:
        if self._stage != OPEN:
            return
        self._reason = reason
        self._stage = FLUSHING
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
        self._stage = LINGERING
        self._on_sending_over()
        aside = self._put_aside()
        aside.mark_bytes = 0  # Counts what is thrown away.
        aside.timer = self._host.engine.after(self._host.limits.linger_s, self._on_linger_over)
        self.post_read()

    def _on_linger_over(self) -> None:
        self._put_aside().timer = None
        self._host.lingered_out(self)
        self._end(self._reason)

    def _discard(self, size: int) -> None:
        if self._stage == LINGERING:
            aside = self._put_aside()
            aside.mark_bytes += size
            if aside.mark_bytes > self._host.limits.linger_bytes:
                self._end(self._reason)
            else:
                self.post_read()

    def _fail(self, error: OSError) -> None:
        if self._stage == CLOSED:
            return
        if self._stage == LINGERING:  # We ended it, and it was only for the peer's sake that we waited.
            self._end(self._reason)
            return
        self._put_aside().failure = error.with_traceback(None)  # Its frames refer to us.
        if isinstance(error, DeadlineExceeded):
            reason = CloseReason.DEADLINE
        elif error.errno in RESET_ERRNOS:
            reason = CloseReason.RESET
        else:
            reason = CloseReason.ERROR
        self._reset(reason)

    def _reset(self, reason: int) -> None:
        if self.fd >= 0:  # The engine may have been closed before us.
            with contextlib.suppress(OSError):  # A peer that is gone needs no reset.
                self.reset_on_close()
        self._end(reason)

    def _end(self, reason: int) -> None:
        """Close the descriptor and tell everybody who waits. From anywhere: nobody is resumed inline."""
        if self._stage == CLOSED:
            return
        lingered = self._stage == LINGERING
        self._stage = CLOSED
        self._disarm()
        if not lingered:
            self._on_sending_over()
        self._host.engine.free(self)
        error = None if self._aside is None else self._settle(self._aside)
        self._release_reader()
        self._host.closed(self, CloseReason(reason), error)

    def _settle(self, aside: Aside) -> BaseException | None:
        """Tell everybody who waits that the connection has ended: what it ended with, if that was an error."""
        senders, aside.senders = aside.senders, None
        for _, sender in senders or ():
            if not sender.done():
                aside.reported = aside.failure is not None
                sender.set_exception(aside.failure or ConnectionFreed("the connection was closed while sending"))
        closers, aside.closers = aside.closers, None
        for closer in closers or ():
            if not closer.done():
                closer.set_result(None)
        error, aside.cause = aside.failure or aside.cause, None  # Its frames refer to the connection.
        return error
