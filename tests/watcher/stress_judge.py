"""What the stress remembers of connections and operations, and which completions it lets pass.

Lives here: what may be answered. Must not live here: what is asked.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter, deque
from typing import Any, Final

from shardnet.watcher import (
    Channel,
    Completion,
    ConnectionBroken,
    ConnectionFreed,
    DeadlineExceeded,
    Op,
    WatcherClosed,
)
from tests.watcher.stress_streams import PREAMBLE, Plan, Role, Streams

LATE_S: Final = 30.0  # An operation that is not complete so long after its deadline has been forgotten.
VIOLATIONS_MAX: Final = 1000  # Kept. Whoever has so many needs no more.
GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED})
NO_WAY: Final = GONE | {errno.EADDRNOTAVAIL}


class Link:
    """One connection, as the watcher's user sees it."""

    __slots__ = (
        "broken", "conn", "connected", "eof", "freed", "lingers", "loose", "moved", "number", "place", "plan", "reads",
        "reset", "shut", "taken", "told", "writes",
    )  # fmt: skip

    def __init__(self, conn: socket.socket | Channel, *, connected: bool) -> None:
        self.conn: socket.socket | Channel | None = conn
        self.connected = connected  # By the watcher, not accepted.
        self.number = -1  # Not known yet.
        self.plan = Plan(Role.IDLE, 0, 0)
        self.place = -1  # In the list of those that are acted on; -1 for none of them.
        self.reads: deque[Ticket] = deque()
        self.writes: deque[Ticket] = deque()
        self.taken = 0  # Bytes received.
        self.moved = 0  # Bytes sent.
        self.told = 0  # Bytes asked to be sent.
        self.eof = False  # The end of the peer's stream was seen.
        self.reset = False  # The peer is gone.
        self.broken = False  # A write has stopped in its middle.
        self.shut = False  # Our stream was ended.
        self.freed = False
        self.lingers = False  # Left to the garbage collection, and kept by what is pending.
        self.loose = False  # A socket object that came out of `detach`, and was not used again yet.

    @property
    def pending(self) -> bool:
        return bool(self.reads or self.writes)

    def __str__(self) -> str:
        return f"connection {self.number} ({self.plan.role.name})"


class Ticket:
    """One operation that was asked."""

    __slots__ = (
        "after_end", "after_free", "begun_s", "buffer", "full", "link", "listener", "op", "position", "refused",
        "serial", "size", "timeout",
    )  # fmt: skip

    def __init__(self, serial: int, op: Op, link: Link | None, timeout: float | None) -> None:
        self.serial = serial
        self.op = op
        self.link = link
        self.timeout = timeout  # Of a sleep, its length.
        self.begun_s = time.monotonic()
        self.buffer: Any = None
        self.size = 0  # Asked; 0 for the swap buffer.
        self.full = False
        self.position = 0  # Of a write, in its stream.
        self.listener: socket.socket | None = None
        self.refused = False  # A connect to where nobody listens.
        self.after_free = link is not None and link.freed
        self.after_end = link is not None and link.eof

    def __str__(self) -> str:
        name = "read_full" if self.full else self.op.name.lower()
        where = "" if self.link is None else f" on {self.link}"
        return f"{name} #{self.serial}{where}, {self.size} bytes, timeout {self.timeout}"


class Judge:
    """Every operation that was asked, and what is wrong with the answers."""

    def __init__(self, streams: Streams) -> None:
        self.pending: dict[int, Ticket] = {}
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()  # Completions by operation and error, and what else was done.
        self.submitted = self.completed = 0
        self.read_bytes = self.written_bytes = 0
        self.closing = False  # The watcher may say that it is closed.
        self._streams = streams

    def ask(self, op: Op, link: Link | None = None, timeout: float | None = None) -> Ticket:
        """Note an operation that is about to be submitted, with the serial of its ticket as ctx."""
        self.submitted += 1
        ticket = Ticket(self.submitted, op, link, timeout)
        self.pending[ticket.serial] = ticket
        return ticket

    def judge(self, done: Completion, now_s: float) -> Ticket | None:
        """Whose completion this is. None, and a violation, when nobody's."""
        serial: Any = done.ctx
        ticket = self.pending.pop(serial, None)
        if ticket is None:
            again = isinstance(serial, int) and 0 < serial <= self.submitted
            self.violate(f"ctx {serial!r} came {'again' if again else 'though nobody passed it'}: {done!r}")
            return None
        self.completed += 1
        self.counts[f"{ticket.op.name.lower()} {'ok' if done.error is None else type(done.error).__name__}"] += 1
        if done.op is not ticket.op:
            self.violate(f"{ticket}: came back as {done.op.name}")
        if not self._may_end_so(ticket, done.error, now_s):
            self.violate(f"{ticket}: ended with {done.error!r} after {now_s - ticket.begun_s:.6f} s")
        if ticket.link is not None:
            link = ticket.link
            self._judge_order(link.reads if ticket.op is Op.READ else link.writes, ticket, done)
            if link.conn is not None and done.conn is not link.conn:
                self.violate(f"{ticket}: carries another connection: {done!r}")
            if ticket.op is Op.READ:
                self._judge_read(ticket, link, done)
            else:
                self._judge_write(ticket, link, done)
            link.reset = link.reset or (isinstance(done.error, OSError) and done.error.errno in GONE)
        elif ticket.op is Op.TIMER:
            if done.error is None and now_s < ticket.begun_s + (ticket.timeout or 0.0):
                self.violate(f"{ticket}: came after {now_s - ticket.begun_s:.6f} s")
        elif isinstance(done.conn, Channel) == (done.error is not None):
            self.violate(f"{ticket}: comes with a channel or an error, not with both or neither: {done!r}")
        return ticket

    def of(self, error: str) -> int:
        """How many operations ended with the error of that name."""
        return sum(count for name, count in self.counts.items() if name.endswith(" " + error))

    def look_for_forgotten(self) -> None:
        now_s = time.monotonic()
        for ticket in self.pending.values():
            if ticket.timeout is not None and now_s > ticket.begun_s + ticket.timeout + LATE_S:
                self.violate(f"{ticket}: not complete {now_s - ticket.begun_s:.0f} s after it was asked")

    def violate(self, text: str) -> None:
        self.counts["violations"] += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(text)

    # Inside.

    def _may_end_so(self, ticket: Ticket, error: BaseException | None, now_s: float) -> bool:
        link = ticket.link
        if ticket.after_free:
            return isinstance(error, ConnectionFreed)
        match error:
            case WatcherClosed():
                return self.closing
            case ConnectionFreed():
                return ticket.op is Op.ACCEPT or (link is not None and link.freed)
            case EOFError():
                return ticket.op is Op.READ
            case _ if ticket.after_end and ticket.op is Op.READ:
                return False
            case None:
                return not ticket.refused
            case DeadlineExceeded():
                timed = ticket.op is not Op.TIMER and ticket.timeout is not None and error.errno is None
                return timed and now_s >= ticket.begun_s + (ticket.timeout or 0.0)
            case ConnectionBroken():
                return ticket.op is Op.WRITE and link is not None and link.broken
            case OSError():
                if ticket.op is Op.CONNECT:
                    return error.errno in NO_WAY or (ticket.refused and error.errno == errno.ECONNREFUSED)
                return link is not None and error.errno in GONE
            case _:
                return False

    def _judge_order(self, queue: deque[Ticket], ticket: Ticket, done: Completion) -> None:
        """The oldest of its direction, but for one that waited behind it until its deadline passed."""
        if queue[0] is ticket:
            queue.popleft()
            return
        queue.remove(ticket)
        if not isinstance(done.error, DeadlineExceeded) or done.size:
            self.violate(f"{ticket}: has overtaken an older one: {done!r}")

    def _judge_read(self, ticket: Ticket, link: Link, done: Completion) -> None:
        size = done.size
        if done.is_swap_buffer == bool(ticket.size) or (ticket.size and done.buffer is not ticket.buffer):
            self.violate(f"{ticket}: came with another buffer: {done!r}")
        if done.error is None:
            wrong = size < 1 or (ticket.size and size > ticket.size) or (ticket.full and size != ticket.size)
        else:
            wrong = size != 0 and (not ticket.full or size >= ticket.size)
        if wrong or len(done.data) != size:
            self.violate(f"{ticket}: came with {size} bytes: {done!r}")
        self.read_bytes += size
        if link.number < 0:  # The preamble, which says the number.
            if done.error is None:
                (link.number,) = PREAMBLE.unpack(done.data)
                link.plan = self._streams.plan(link.number)
        elif size:
            if not self._streams.matches(done.data, link.plan.to_watcher, link.taken):
                self.violate(f"{ticket}: wrong bytes among the {size} after the first {link.taken}")
            link.taken += size
        self._judge_export(ticket)
        link.eof = link.eof or isinstance(done.error, EOFError)

    def _judge_write(self, ticket: Ticket, link: Link, done: Completion) -> None:
        if done.buffer is not ticket.buffer:
            self.violate(f"{ticket}: came with another buffer: {done!r}")
        if (done.size != ticket.size) if done.error is None else not 0 <= done.size < ticket.size:
            self.violate(f"{ticket}: came with {done.size} bytes: {done!r}")
        if done.size and (link.broken or ticket.position != link.moved):
            state = "a broken" if link.broken else "its"
            self.violate(f"{ticket}: asked at {ticket.position} and sent at {link.moved} of {state} stream")
        self.written_bytes += done.size
        link.moved += done.size
        link.broken = link.broken or (done.error is not None and done.size > 0)
        if not link.writes or ticket.timeout is not None:  # Behind such a write nothing is ever asked.
            link.told = ticket.position + done.size if link.writes else link.moved
        self._judge_export(ticket)

    def _judge_export(self, ticket: Ticket) -> None:
        if isinstance(ticket.buffer, bytearray):
            try:
                ticket.buffer.append(0)
            except BufferError:
                self.violate(f"{ticket}: complete, and its buffer is still held")
