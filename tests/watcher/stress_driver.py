"""The watcher's side of the stress: random operations on thousands of connections.

Lives here: what is asked, and what follows from an answer. Must not live here: which answers are right
(`stress_judge`), processes, rounds.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import deque
from typing import Any, Final

from shardnet.watcher import Channel, Completion, Op, Watcher, WatcherClosed
from tests.watcher.stress_judge import Judge, Link, Ticket
from tests.watcher.stress_streams import PART_MAX_BYTES, PREAMBLE, Role, Streams

LOCAL: Final = "127.0.0.1"
COMPLETIONS_MAX: Final = 4096  # In one batch: the contract's.
ACCEPTS_MAX: Final = 32  # Posted on each listener.
CONNECTS_MAX: Final = 32  # Under way.
SLEEPS_MAX: Final = 50
QUEUED_MAX: Final = 4  # Operations of one direction of one connection.
ACTS_PER_TURN_MAX: Final = 500
ACTS_PER_S_MIN: Final = 2000  # Or one a second for each connection.
HELD_MAX: Final = 8  # Slices of the swap buffer that are kept for too long.
PREAMBLE_TIMEOUT_S: Final = 30.0
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Driver:
    """Asks at random. Every `turn` asks some, waits a moment, and takes what has come."""

    def __init__(
        self, watcher: Watcher, streams: Streams, connections: int, listeners: list[socket.socket], seed: int
    ) -> None:
        self.watcher = watcher
        self.listeners = listeners
        self.judge = Judge(streams)
        self.links: list[Link] = []  # Those that are acted on.
        self.ended: dict[int, Link] = {}  # Those that came to their end since `start`, by number.
        self.graveyard: deque[Any] = deque()  # To be dropped in another thread.
        self.ports: list[int] = []  # Of the peers.
        self.opened = 0  # Connections, ever.
        self.dropped = 0  # Of these, those that were left to the garbage collection.
        self.settling = False
        self._streams = streams
        self._accepts = dict.fromkeys(listeners, 0)
        self._accepting = True
        self._connections = connections
        self._connecting = self._connected = self._sleeping = self._number = 0
        self._lingering = 0  # Left to the garbage collection, but kept by what is pending.
        self._random = random.Random(seed)
        self._acted_s = time.monotonic()
        self._held: deque[tuple[memoryview, int, int]] = deque()
        self._stale: Completion | None = None
        self._deaf = socket.socket()  # Its port is one where nobody listens.
        self._deaf.bind((LOCAL, 0))

    # What the rounds call.

    def start(self) -> None:
        self.ended.clear()
        self.settling = False
        self._accepting = True
        self._acted_s = time.monotonic()

    def turn(self) -> None:
        if self._accepting:
            self._accept()
        if not self.settling:
            self._connect()
            self._act()
        self.take(self._random.choice((0, 0.005, 0.02, None)))  # None: somebody calls `wake` now and then.

    def take(self, timeout_s: float | None) -> bool:
        """Take what has completed: False when the watcher is closed and empty."""
        try:
            batch = self.watcher.wait_io(timeout_s)
        except WatcherClosed:
            if not self.judge.closing:
                self.judge.violate("wait_io says that the watcher is closed, which it is not")
            return False
        now_s = time.monotonic()
        if len(batch) > COMPLETIONS_MAX:
            self.judge.violate(f"wait_io handed out {len(batch)} completions at once")
        self._check_stale()
        for done in batch:
            ticket = self.judge.judge(done, now_s)
            if ticket is not None:
                self._react(ticket, done)
        return True

    def settle(self) -> None:
        """From now on: read every stream to its end, and ask for nothing else."""
        self.settling = True
        for link in list(self.links):
            self._go_on(link)

    @property
    def unsettled(self) -> int:
        """Connections that are open, operations on them, and those that bring more."""
        waiting = (Op.READ, Op.WRITE, Op.CONNECT)
        return len(self.links) + sum(ticket.op in waiting for ticket in self.judge.pending.values())

    def end_listening(self) -> None:
        self._accepting = False
        for listener in self._accepts:
            self.watcher.free(listener)

    def release(self) -> None:
        """Let go of all that is kept for longer than it should be."""
        while self._held:
            self._let_go()
        self._stale = None
        self.graveyard.clear()

    def abandon(self) -> None:
        """The watcher is closed: its connections have come to their end."""
        self._deaf.close()
        for link in list(self.links):
            self._retire(link)
        self.release()

    # Asking.

    def _timeout(self) -> float | None:
        chance = self._random.random()
        if chance < 0.6:
            return None
        if chance < 0.7:
            return 0
        return self._random.uniform(0, 0.05) if chance < 0.9 else self._random.uniform(2, 30)

    def _accept(self) -> None:
        open_or_asked = len(self.links) + self._lingering + self._connecting + sum(self._accepts.values())
        room = self._connections + ACCEPTS_MAX - open_or_asked
        for listener, posted in self._accepts.items():
            if posted >= ACCEPTS_MAX // 2:
                continue
            for _ in range(min(room, ACCEPTS_MAX - posted)):
                ticket = self.judge.ask(Op.ACCEPT, None, self._timeout())
                ticket.listener = listener
                self._accepts[listener] += 1
                room -= 1
                self.watcher.accept(listener, ctx=ticket.serial, timeout=ticket.timeout)

    def _connect(self) -> None:
        wanted = self._connections // 2 - self._connected - self._connecting
        for _ in range(min(CONNECTS_MAX - self._connecting, wanted)):
            ticket = self.judge.ask(Op.CONNECT, None, self._random.choice((None, None, 0, 5)))
            ticket.refused = self._random.random() < 0.01
            port = self._deaf.getsockname()[1] if ticket.refused else self._random.choice(self.ports)
            self._connecting += 1
            self.watcher.connect((LOCAL, port), ctx=ticket.serial, timeout=ticket.timeout)

    def _act(self) -> None:
        now_s = time.monotonic()
        count = min(ACTS_PER_TURN_MAX, int((now_s - self._acted_s) * max(ACTS_PER_S_MIN, len(self.links))))
        if not count:
            return
        self._acted_s = now_s
        for _ in range(count):
            if self.links:
                self._act_on(self._random.choice(self.links))
        if self._sleeping < SLEEPS_MAX:
            self._sleeping += 1
            seconds = self._random.choice((0.0, 0.5)) * self._random.random()
            self.watcher.sleep(seconds, ctx=self.judge.ask(Op.TIMER, None, seconds).serial)
        if self._random.random() < 0.005:
            self.judge.counts["listener freed"] += 1
            self.watcher.free(self._random.choice(list(self._accepts)))

    def _act_on(self, link: Link) -> None:
        if link.number < 0 or (link.plan.role is Role.IDLE and self._random.random() < 0.95):
            return
        chance = self._random.random()
        if chance < 0.01 or (chance < 0.5 and (link.broken or link.reset or (link.eof and link.shut))):
            self._free(link)
        elif chance < 0.015:
            self._drop(link)
        elif chance < 0.025:
            self._detach(link)
        elif chance < 0.03:
            self._shut(link)
        elif link.plan.role is Role.ECHO and not link.shut:
            if self._has_room(link):
                self._read(link, self._timeout())
        elif chance < 0.6:
            self._read_some(link)
        else:
            self._write_some(link)

    def _read_some(self, link: Link) -> None:
        if len(link.reads) >= QUEUED_MAX:
            return
        chance = self._random.random()
        if chance < 0.6:
            self._read(link, self._timeout())
        elif chance < 0.8:
            self._read(link, self._timeout(), self._random.choice((1, 16, 4096, 65536)))
        else:
            most = 1 << 18 if link.plan.role is Role.BULK else 2000
            self._read(link, self._timeout(), self._random.randint(1, most), full=True)

    def _write_some(self, link: Link) -> None:
        # Nothing is asked behind a write that may end before it has begun: the stream would have a hole.
        if len(link.writes) >= QUEUED_MAX or any(ticket.timeout is not None for ticket in link.writes):
            return
        most = 64
        if self._random.random() > 0.6:
            most = PART_MAX_BYTES if link.plan.role in (Role.BULK, Role.LAZY) else 16384
        part = self._streams.part(link.plan.to_peer, link.told, self._random.randint(1, most))
        self._write(link, self._random.choice((None, None, bytes, bytearray)), part, self._timeout())

    def _read(self, link: Link, timeout: float | None = None, size: int = 0, *, full: bool = False) -> None:
        """Into a buffer of `size` bytes; 0 for the swap buffer."""
        assert link.conn is not None
        ticket = self.judge.ask(Op.READ, link, timeout)
        ticket.size, ticket.full = size, full
        link.reads.append(ticket)
        link.loose = False
        if not size:
            self.watcher.read(link.conn, ctx=ticket.serial, timeout=timeout)
            return
        ticket.buffer = bytearray(size)
        ask = self.watcher.read_full if full else self.watcher.read
        ask(link.conn, ticket.buffer, ctx=ticket.serial, timeout=timeout)

    def _write(self, link: Link, kind: Any, part: Any, timeout: float | None = None) -> None:
        """`part` itself, or what `kind` makes of it."""
        assert link.conn is not None
        ticket = self.judge.ask(Op.WRITE, link, timeout)
        ticket.buffer = part if kind is None else kind(part)
        ticket.size, ticket.position = len(part), link.told
        link.writes.append(ticket)
        link.told += ticket.size
        link.loose = False
        self.watcher.write(link.conn, ticket.buffer, ctx=ticket.serial, timeout=timeout)

    # Ends.

    def _free(self, link: Link) -> None:
        assert link.conn is not None
        self.judge.counts["freed"] += 1
        self.watcher.free(link.conn)
        if not link.loose and self._random.random() < 0.2:  # A socket that was never used here is simply closed.
            link.freed = True
            self._read(link, self._timeout(), self._random.choice((0, 100)))
            self._write(link, bytes, self._streams.part(link.plan.to_peer, link.told, 100), self._timeout())
            self.watcher.free(link.conn)
        link.freed = True
        self._retire(link)

    def _drop(self, link: Link) -> None:
        self.judge.counts["dropped"] += 1
        self.dropped += not link.loose
        if not link.pending and self._random.random() < 0.5:
            self.graveyard.append(link.conn)
        link.conn = None
        link.lingers = link.pending
        self._lingering += link.lingers
        self._retire(link)

    def _shut(self, link: Link) -> None:
        if link.shut or link.writes or not isinstance(link.conn, Channel):
            return
        self.judge.counts["half-closed"] += 1
        link.shut = True
        try:
            link.conn.end_output()
        except OSError:  # There is no peer any more.
            link.reset = True

    def _detach(self, link: Link) -> None:
        assert link.conn is not None
        try:
            sock = self.watcher.detach(link.conn)
        except ValueError:
            if not link.pending:
                self.judge.violate(f"{link} cannot be detached, and yet nothing is pending on it")
            return
        self.judge.counts["detached"] += 1
        chance = self._random.random()
        if chance < 0.6 and not link.pending:  # Go on with the socket object, as a new connection of the watcher.
            link.conn, link.broken, link.eof, link.loose = sock, False, False, True
            return
        if chance < 0.8:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.close()
        self._retire(link)

    def _retire(self, link: Link) -> None:
        """Act on it no more."""
        if link.place >= 0:
            last = self.links.pop()
            if last is not link:
                self.links[link.place] = last
                last.place = link.place
            link.place = -1
            self._connected -= link.connected
        self._bury(link)

    def _bury(self, link: Link) -> None:
        if not link.pending:
            link.conn = None
            self._lingering -= link.lingers
            link.lingers = False
            if link.number >= 0:
                self.ended[link.number] = link

    # What follows from an answer.

    def _react(self, ticket: Ticket, done: Completion) -> None:
        link = ticket.link
        match ticket.op:
            case Op.TIMER:
                self._sleeping -= 1
            case Op.ACCEPT:
                assert ticket.listener is not None
                self._accepts[ticket.listener] -= 1
                self._begin(done, connected=False)
            case Op.CONNECT:
                self._connecting -= 1
                self._begin(done, connected=True)
            case Op.READ if link is not None and done.is_swap_buffer and done.size:
                self._keep(link, done)
                # Without a hole before, what was just received is what is to be sent next.
                if link.plan.role is Role.ECHO and link.told == link.taken - done.size and self._goes_on(link):
                    self._write(link, None, done.data)
        if link is not None and not self.judge.closing:
            self._after(link)
        elif link is not None and link.place < 0:
            self._bury(link)

    def _begin(self, done: Completion, *, connected: bool) -> None:
        """The watcher has a connection more: learn its number, or say it."""
        if not isinstance(done.conn, Channel):
            return
        self.opened += 1
        link = Link(done.conn, connected=connected)
        link.place = len(self.links)
        self.links.append(link)
        self._connected += connected
        if self.judge.closing:
            return
        if connected:
            self._number += 1
            link.number = self._number
            link.plan = self._streams.plan(link.number)
            link.told = link.moved = -PREAMBLE.size
            self._write(link, None, PREAMBLE.pack(link.number))
        else:
            self._read(link, PREAMBLE_TIMEOUT_S, PREAMBLE.size, full=True)

    def _goes_on(self, link: Link) -> bool:
        """Whether more may be asked of it, beyond what leads to its end."""
        over = link.place < 0 or link.reset or link.shut or link.number < 0
        return not (over or self.settling or self.judge.closing)

    def _has_room(self, link: Link) -> bool:
        """Whether an echo may read on: what it reads is to be written."""
        return not link.reads and len(link.writes) < QUEUED_MAX

    def _after(self, link: Link) -> None:
        """Something has completed on the connection."""
        if link.place < 0:
            self._bury(link)
        elif link.number < 0:  # The preamble did not come.
            self._free(link)
        elif self.settling:
            self._go_on(link)
        elif link.plan.role is Role.ECHO and not link.eof and self._goes_on(link) and self._has_room(link):
            self._read(link, self._timeout())

    def _go_on(self, link: Link) -> None:
        """On the way to the end: read until it comes, then free."""
        if link.number < 0 or link.reads:
            return
        if not (link.eof or link.reset):
            self._read(link)
        elif not link.writes:
            self._free(link)

    # The swap buffer.

    def _keep(self, link: Link, done: Completion) -> None:
        """Keep what is to be used at once: it must not change, or must say that it is over."""
        self._stale = done
        if self._random.random() < 0.002:
            if len(self._held) == HELD_MAX:
                self._let_go()
            self._held.append((done.data[:], link.plan.to_watcher, link.taken - done.size))

    def _let_go(self) -> None:
        view, start, position = self._held.popleft()
        if not self._streams.matches(view, start, position):
            self.judge.violate(f"a slice of the swap buffer, of {len(view)} bytes, changed while it was held")

    def _check_stale(self) -> None:
        stale, self._stale = self._stale, None
        if stale is None:
            return
        try:
            stale.buffer  # noqa: B018 - to be asked for is to raise
        except ValueError:
            return
        self.judge.violate("the swap buffer of a completion could still be had after the next wait_io")
