"""Connections that send messages and expect each of them back: the hot path of the load generator.

In a *closed loop* a client sends its next message when the last one has come back. In an *open loop* messages are due
at times that do not depend on the server: a client sends them when they are due, replies outstanding or not. A reply's
latency is then counted from when its message was *due*. Otherwise a server that stalls for a second would delay the
asking along with the answers, and show one slow reply where a user would have met thousands: Gil Tene's *coordinated
omission* ("How NOT to Measure Latency"; HdrHistogram and wrk2 are his cures, the latter's is this one).

A client has no queue of due times: they are evenly spaced, so the number of a message tells when it was due.

Lives here: one connection, from its first message to its last. Must not live here: when a run begins and ends.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from shardnet.bench.sheet import KIND_OF_ERRNO, Kind
from shardnet.watcher.hooks import HookEndpoint

if TYPE_CHECKING:
    from shardnet.bench.load import Load
    from shardnet.bench.schedule import Schedule

# Beyond it a client of an open loop keeps to itself what is due: the server does not read. The messages are sent as
# soon as it does, and have waited since they were due.
UNSENT_MAX_BYTES: Final = 256 * 1024
CATCH_UP_MAX: Final = 64  # Messages of one client, before others get the turn.
SHOWN_BYTES: Final = 8  # Of wrong bytes, in the report.

clock_ns = time.monotonic_ns


class Client(HookEndpoint):
    """One connection of a load, whatever the loop. `position`: how much of the next reply is here already."""

    __slots__ = ("load", "message", "position", "size")

    def __init__(self, load: Load, fd: int, message: bytes, *, unix: bool) -> None:
        super().__init__(load.engine.agenda, fd, unix=unix)
        self.load = load
        self.message = message
        self.size = len(message)
        self.position = 0

    def waiting_since_ns(self) -> int | None:
        """When the oldest message without a reply was sent, or due; None when there is no such message."""
        raise NotImplementedError

    def on_end(self) -> None:
        self.load.fail(self, Kind.CLOSED, "the server closed the connection")

    def on_failed(self, error: OSError) -> None:
        self.load.fail(self, kind_of(error), error.strerror or str(error))

    def on_error_waiting(self) -> None:
        number = self.pending_error()
        self.on_failed(OSError(number, os.strerror(number)))

    def _compare(self, data: bytes, position: int) -> bool:
        """Whether the message goes on with `data`, all of it, at `position`; if not, the client has failed."""
        if self.message.startswith(data, position):
            return True
        wanted = self.message[position : position + len(data)]
        at = next(index for index, pair in enumerate(zip(data, wanted, strict=True)) if pair[0] != pair[1])
        came, due = data[at : at + SHOWN_BYTES], wanted[at : at + SHOWN_BYTES]
        self.load.fail(self, Kind.WRONG_BYTES, f"at byte {position + at} of a reply: {came!r} instead of {due!r}")
        return False

    def _refuse_surplus(self) -> None:
        self.load.fail(self, Kind.WRONG_BYTES, "more bytes came than were sent")


class ClosedClient(Client):
    """Sends its next message when the last one has come back."""

    __slots__ = ("sent_ns",)

    def __init__(self, load: Load, fd: int, message: bytes, *, unix: bool) -> None:
        super().__init__(load, fd, message, unix=unix)
        self.sent_ns = 0  # When the message without a reply was sent; 0 before the first.

    def begin(self, now_ns: int) -> None:
        """Send the first message."""
        self._send(now_ns)

    def waiting_since_ns(self) -> int | None:
        return self.sent_ns or None

    def on_received(self, start: int, size: int) -> None:
        load = self.load
        if self.position or size != self.size or not (load.unchecked or load.take(start, size) == self.message):
            due = self.size - self.position
            if size > due:
                self._refuse_surplus()
                return
            if not (load.unchecked or self._compare(load.take(start, size), self.position)):
                return
            if size < due:
                self.position += size
                self.post_read()
                return
            self.position = 0
        now_ns = clock_ns()
        load.record(now_ns - self.sent_ns)
        if load.sending:
            self._send(now_ns)
        else:
            load.finish(self, now_ns)

    def _send(self, now_ns: int) -> None:
        self.sent_ns = now_ns
        try:
            self.submit_write(self.message)
        except OSError as error:
            self.on_failed(error)
            return
        self.post_read()


class OpenClient(Client):
    """Sends each message when it is due, or as soon as it can afterwards."""

    __slots__ = ("answered", "asked", "number", "schedule", "sent")

    schedule: Schedule
    number: int

    def __init__(self, load: Load, fd: int, message: bytes, *, unix: bool) -> None:
        super().__init__(load, fd, message, unix=unix)
        self.asked = 0  # Messages that were due so far.
        self.sent = 0
        self.answered = 0

    def begin(self, schedule: Schedule, number: int) -> None:
        """Be ready for messages; `number`: this client's, from 0, of all that the schedule has."""
        self.schedule = schedule
        self.number = number
        if self.fd >= 0:
            self.post_read()

    def waiting_since_ns(self) -> int | None:
        return self.schedule.due_ns(self.number, self.answered) if self.answered < self.asked else None

    def ask(self) -> None:
        """One more message is due."""
        self.asked += 1
        if self.sent + 1 == self.asked and self.unsent_bytes < UNSENT_MAX_BYTES:
            self._send()

    def on_sent(self) -> None:
        self._catch_up()

    def on_progress(self) -> None:
        self._catch_up()

    def on_received(self, start: int, size: int) -> None:
        load = self.load
        if self.position or size != self.size or not (load.unchecked or load.take(start, size) == self.message):
            if not self._take_apart(start, size):
                return
        elif not self._answer(clock_ns()):
            return
        if load.sending or self.answered < self.asked:
            self.post_read()
        else:
            load.finish(self, clock_ns())

    def _take_apart(self, start: int, size: int) -> bool:
        """Several replies, or parts of them; False when the client has failed."""
        load = self.load
        data = b"" if load.unchecked else load.take(start, size)
        now_ns = clock_ns()
        taken = 0
        while taken < size:
            part = min(self.size - self.position, size - taken)
            if not (load.unchecked or self._compare(data[taken : taken + part], self.position)):
                return False
            taken += part
            self.position += part
            if self.position == self.size:
                self.position = 0
                if not self._answer(now_ns):
                    return False
        return True

    def _answer(self, now_ns: int) -> bool:
        """A whole reply is here; False when nobody had asked, and the client has failed."""
        if self.answered == self.sent:
            self._refuse_surplus()
            return False
        due_ns = self.schedule.due_ns(self.number, self.answered)
        self.answered += 1
        if due_ns >= self.schedule.measured_from_ns:
            self.load.record(now_ns - due_ns)
        return True

    def _send(self) -> None:
        self.sent += 1
        try:
            self.submit_write(self.message)
        except OSError as error:
            self.on_failed(error)

    def _catch_up(self) -> None:
        """Send what is due since long: until nothing is, or the server does not read again."""
        for _ in range(CATCH_UP_MAX):
            if self.fd < 0 or self.sent == self.asked or self.unsent_bytes >= UNSENT_MAX_BYTES:
                return
            self._send()
        self.load.engine.defer(self._catch_up)


def kind_of(error: OSError) -> Kind:
    return KIND_OF_ERRNO.get(error.errno or 0, Kind.OTHER)
