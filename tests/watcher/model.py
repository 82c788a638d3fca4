"""A model of the watcher's contract: no sockets, no clock, no kernel.

It is told what is asked, what the peers do and how time goes, and is then shown every completion that the watcher hands
out. Each has to be one that the contract allows; an `AssertionError` says what is not.

Reads are foretold: what has arrived is known, so is when an operation is tried (as it is asked, when no older one of
its direction waits; once for a timeout of 0; in each `wait_io`), and hence who gets which bytes. Of writes only the
kernel knows how much of them it takes, so they are judged by what must hold whatever that is: their order, their sizes,
what may end them, and that the peer gets exactly the bytes that they say have moved.

Lives here: what must be. Must not live here: how it is brought about, and how it is looked at.
"""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

CONTENT: Final = random.Random("content").randbytes(1 << 20)


def content(seed: int, start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of stream `seed`. A shift, a gap or a mix-up shows in any few of them."""
    offset = (seed * 7919 + start) % (len(CONTENT) // 2)
    assert size <= len(CONTENT) // 2
    return CONTENT[offset : offset + size]


class Kind(enum.Enum):
    READ = "read"
    READ_FULL = "read_full"
    WRITE = "write"
    SLEEP = "sleep"


class Fate(enum.Enum):
    """How an operation ends, as the completion's `error` tells it."""

    DONE = "none"
    END = "EOFError"
    RESET = "ECONNRESET"
    PIPE = "EPIPE"
    NOWHERE = "EBADF"
    DEADLINE = "DeadlineExceeded"
    BROKEN = "ConnectionBroken"
    FREED = "ConnectionFreed"
    CLOSED = "WatcherClosed"
    LOST = "ECONNRESET, but EOFError where another life of the connection has met it"  # Foretold only.


COUNTED_AS: Final = {
    Fate.DONE: "ok",
    Fate.END: "eof",
    Fate.RESET: "reset",
    Fate.PIPE: "reset",
    Fate.NOWHERE: "error",
    Fate.BROKEN: "error",
    Fate.DEADLINE: "deadline",
    Fate.FREED: "cancelled",
    Fate.CLOSED: "cancelled",
}


@dataclass(eq=False, slots=True, repr=False)
class Asked:
    """One operation. `size` is that of its buffer or data; None for a read into the swap buffer."""

    number: int
    kind: Kind
    conn: Conn | None = None
    size: int | None = None
    data: bytes = b""
    due_s: float | None = None
    once: bool = False  # Its timeout is 0.
    refused: Fate | None = None  # What it ends with at once, untried.
    behind_reset: bool = False  # Asked when the peer was gone already.
    life: int = 0  # Of the connection.
    start: int = 0  # Where in the peer's stream the bytes of a read begin.
    moved: int = 0  # Known at once for a read, and for a write when it ends.
    answered: bool = False

    def __repr__(self) -> str:
        where = "" if self.conn is None else f" on {self.conn.name}"
        return f"{self.kind.value} #{self.number}{where}, moved {self.moved} of {self.size}"


@dataclass(eq=False, slots=True)
class Conn:
    """One connection: what its peer has done, and what waits on it."""

    name: str
    seed: int
    unix: bool
    # The peer.
    arrived: int = 0  # Bytes that it has sent.
    mark: int | None = None  # Where in them its last urgent byte stood, which is itself no part of the stream.
    ended: bool = False
    reset: bool = False
    error_waits: bool = False  # The kernel's one report of the reset, for whom it comes to first.
    told_life: int | None = None  # The life in which the watcher has met it, and so remembers it.
    # Our end.
    adopted: bool = False
    freed: bool = False
    gone: bool = False  # Its socket is closed, and no watcher's.
    life: int = 0  # It begins anew when the descriptor was given back.
    broken_life: int | None = None
    taken: int = 0  # Bytes of `arrived` that reads have got.
    met_end: bool = False
    reads: list[Asked] = field(default_factory=list)  # Those that wait.
    foretold: deque[list[tuple[Asked, Fate]]] = field(default_factory=deque)  # In groups, ordered one to another.
    reads_to_free: int = 0  # Freed, and not answered yet.
    writes: deque[Asked] = field(default_factory=deque)  # Those that are not answered yet.
    outward: deque[Asked] = field(default_factory=deque)  # Those whose bytes the peer has not got yet, or not all.
    outward_got: int = 0  # Of the first of `outward`.
    got: bytearray = field(default_factory=bytearray)  # By the peer, and not compared yet.

    @property
    def available(self) -> int:
        """The bytes that one receive can get: it stops at the urgent mark, and the next skips what stands there."""
        if self.mark is not None and self.taken < self.mark:
            return self.mark - self.taken
        return self.arrived - self.taken

    @property
    def unread(self) -> int:
        return self.arrived - self.taken

    @property
    def refuses(self) -> Fate | None:
        return Fate.NOWHERE if self.gone else Fate.FREED if self.freed else None

    def send(self, size: int) -> bytes:
        """What the peer sends next."""
        self.arrived += size
        return content(self.seed, self.arrived - size, size)


class Model:
    """One watcher."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.closed = False
        self.conns: list[Conn] = []
        self.submitted = 0
        self.handed_out = 0
        self.outcomes: Counter[str] = Counter()
        self.sent_bytes = 0  # By writes that are answered.
        self.swap_ready = 0  # Bytes in the swap buffer, of reads that are complete and not handed out.
        self.swap_lent = 0  # Of those that are handed out, until the next `wait_io`.
        self._sleeps: list[Asked] = []
        self._slept: deque[Asked] = deque()

    # What is asked.

    def connect(self, name: str, *, unix: bool) -> Conn:
        conn = Conn(name, len(self.conns), unix)
        self.conns.append(conn)
        return conn

    def read(self, conn: Conn, size: int | None, timeout: float | None, *, full: bool = False) -> Asked:
        asked = self._ask(Kind.READ_FULL if full else Kind.READ, conn, timeout)
        asked.size = size
        if asked.refused is not None:
            self._foretell(asked, asked.refused)
            return asked
        conn.reads.append(asked)
        if asked.once or conn.reads[0] is asked:
            self._advance(conn)
        if asked.once and asked in conn.reads:
            self._end_read(asked, Fate.DEADLINE)
        return asked

    def read_of_former(self, conn: Conn) -> Asked:
        """A read with a key whose descriptor was given back."""
        asked = self._ask(Kind.READ, None, None)
        asked.conn = conn
        self._foretell(asked, Fate.NOWHERE)
        return asked

    def write(self, conn: Conn, data: bytes | None, size: int, timeout: float | None) -> Asked:
        """`data` None: `size` bytes of the model's choice, then in `data` of what is returned."""
        asked = self._ask(Kind.WRITE, conn, timeout)
        asked.size = size
        asked.data = content(asked.number + 1000, 0, size) if data is None else data
        asked.behind_reset = conn.reset
        conn.writes.append(asked)
        conn.outward.append(asked)
        return asked

    def sleep(self, seconds: float) -> Asked:
        asked = self._ask(Kind.SLEEP, None, seconds)
        asked.due_s = self.now_s + seconds
        self._sleeps.append(asked)
        return asked

    def free(self, conn: Conn) -> None:
        if conn.refuses is None:
            conn.freed = True
            conn.adopted = False
            conn.reads_to_free = len(conn.reads)
            for asked in list(conn.reads):
                self._end_read(asked, Fate.FREED)

    def detach(self, conn: Conn) -> None:
        """It succeeded: so nothing was pending."""
        assert not conn.reads, f"{conn.name} was given back while {conn.reads} waited"
        conn.adopted = False
        conn.met_end = False
        conn.life += 1

    def close(self) -> None:
        self.closed = True
        for conn in self.conns:
            conn.adopted = False
            for asked in list(conn.reads):
                self._end_read(asked, Fate.CLOSED)

    def wait(self) -> None:
        """A `wait_io` begins: first what the kernel has, then who is too late."""
        for conn in self.conns:
            self._advance(conn)
            late = [asked for asked in conn.reads if self._is_late(asked)]
            conn.reads = [asked for asked in conn.reads if asked not in late]
            if late:
                conn.foretold.append([(asked, Fate.DEADLINE) for asked in late])
        slept = sorted(filter(self._is_late, self._sleeps), key=lambda asked: asked.due_s or 0.0)
        self._sleeps = [asked for asked in self._sleeps if asked not in slept]
        self._slept += slept

    # What the peer does.

    def reset(self, conn: Conn, *, error_waits: bool) -> None:
        conn.reset = True
        conn.error_waits = error_waits

    # What the watcher answers.

    def take_back(self) -> None:
        """The caller comes back: the swap buffers that it was handed are its own no more."""
        self.swap_lent = 0

    def answer(self, asked: Asked, fate: Fate, size: int, data: bytes) -> None:
        """A completion that was handed out. `data`: the bytes of a read."""
        assert not asked.answered, f"{asked} completes twice"
        asked.answered = True
        said = f"{asked} ends with {fate.name} and {size} bytes"
        match asked.kind:
            case Kind.READ | Kind.READ_FULL:
                self._judge_read(asked, fate, size, data, said)
            case Kind.WRITE:
                self._judge_write(asked, fate, size, said)
            case Kind.SLEEP:
                self._judge_sleep(asked, fate, size, said)
        self.handed_out += 1
        self.outcomes[COUNTED_AS[fate]] += 1

    def settle(self) -> None:
        """The `wait_io` is over: what had to complete has, and the peers got what they should."""
        for conn in self.conns:
            missing = [asked for group in conn.foretold for asked, _ in group]
            missing += [asked for asked in conn.writes if self._must_have_ended(asked, conn)]
            assert not missing, f"not completed: {missing}"
            self._compare(conn)
        assert not self._slept, f"not completed: {list(self._slept)}"

    # What the statistics must say.

    @property
    def completed(self) -> int:
        """At least so many have their completion; any of `writes_open` may have, too."""
        foretold = sum(len(group) for conn in self.conns for group in conn.foretold)
        return self.handed_out + foretold + sum(map(self._is_complete, self._writes()))

    @property
    def writes_open(self) -> int:
        return sum(1 for asked in self._writes() if not self._is_complete(asked))

    @property
    def writes_open_bytes(self) -> int:
        return sum(asked.size or 0 for asked in self._writes() if asked.refused is None)

    @property
    def deadlines(self) -> int:
        """Those that are armed, when every write that is not answered waits."""
        waiting = [asked for conn in self.conns for asked in (*conn.reads, *conn.writes)]
        return sum(1 for asked in waiting if asked.due_s is not None) + len(self._sleeps)

    # Inside.

    def _ask(self, kind: Kind, conn: Conn | None, timeout: float | None) -> Asked:
        asked = Asked(self.submitted, kind, conn)
        self.submitted += 1
        if timeout == 0.0:
            asked.once = True
        elif timeout is not None:
            asked.due_s = self.now_s + timeout
        if conn is not None:
            asked.life = conn.life
            asked.refused = conn.refuses
            conn.adopted = asked.refused is None
        return asked

    def _is_late(self, asked: Asked) -> bool:
        return asked.due_s is not None and asked.due_s <= self.now_s

    def _writes(self) -> Iterator[Asked]:
        return (asked for conn in self.conns for asked in conn.writes)

    def _is_complete(self, asked: Asked) -> bool:
        """Whether a write, though not answered yet, has its completion for certain."""
        conn = asked.conn
        assert conn is not None
        return (
            self.closed or conn.freed or conn.gone or asked.refused is not None or asked.once or asked.life < conn.life
        )

    def _must_have_ended(self, asked: Asked, conn: Conn) -> bool:
        """Whether a write cannot still wait after a `wait_io`."""
        broken = conn.broken_life == asked.life
        return self._is_complete(asked) or self._is_late(asked) or conn.reset or broken

    def _advance(self, conn: Conn) -> None:
        """Try the reads of a connection in their order."""
        while conn.reads:
            asked = conn.reads[0]
            if conn.available:
                room = conn.available if asked.size is None else asked.size - asked.moved
                size = min(room, conn.available)
                if not asked.moved:
                    asked.start = conn.taken
                asked.moved += size
                conn.taken += size
                if asked.kind is Kind.READ_FULL and size < room:
                    continue
                self._end_read(asked, Fate.DONE)
            elif conn.met_end or (conn.ended and not conn.error_waits and conn.told_life != asked.life):
                conn.met_end = True
                self._end_read(asked, Fate.END)
            elif conn.reset:
                self._end_read(asked, Fate.LOST)
            else:
                return

    def _end_read(self, asked: Asked, fate: Fate) -> None:
        conn = asked.conn
        assert conn is not None
        conn.reads.remove(asked)
        self._foretell(asked, fate)
        if asked.size is None:
            self.swap_ready += asked.moved

    def _foretell(self, asked: Asked, fate: Fate) -> None:
        assert asked.conn is not None
        asked.conn.foretold.append([(asked, fate)])

    def _judge_read(self, asked: Asked, fate: Fate, size: int, data: bytes, said: str) -> None:
        conn = asked.conn
        assert conn is not None
        group = dict(conn.foretold[0]) if conn.foretold else {}
        assert asked in group, f"{said}, though it waits, or an older one does"
        expected = group[asked]
        if expected is Fate.LOST:
            if conn.error_waits:
                conn.told_life = asked.life
            expected = Fate.RESET if conn.told_life == asked.life else Fate.END
            conn.error_waits = False
        assert (fate, size) == (expected, asked.moved), f"{said}, not with {expected.name} and {asked.moved} bytes"
        assert data == content(conn.seed, asked.start, size), f"{said}: they are not what the peer has sent"
        conn.foretold[0].remove((asked, group[asked]))
        if not conn.foretold[0]:
            conn.foretold.popleft()
        if fate is Fate.FREED and conn.reads_to_free:
            conn.reads_to_free -= 1
        if asked.size is None:
            self.swap_ready -= size
            self.swap_lent += size

    def _judge_write(self, asked: Asked, fate: Fate, size: int, said: str) -> None:
        conn = asked.conn
        assert conn is not None
        assert asked.size is not None
        first = conn.writes[0] is asked
        unbroken = conn.broken_life != asked.life
        match fate:
            case Fate.DONE:
                allowed = first and unbroken and not asked.behind_reset and size == asked.size
            case Fate.DEADLINE:
                late = not asked.behind_reset if asked.once else self._is_late(asked) and not conn.reset
                allowed = late and unbroken and (first or size == 0)
            case Fate.BROKEN:
                allowed = first and not unbroken and size == 0
            case Fate.RESET:
                allowed = first and unbroken and conn.error_waits and not conn.unix
                conn.error_waits = False
                conn.told_life = asked.life
            case Fate.PIPE:
                allowed = first and unbroken and conn.reset and (conn.unix or not conn.error_waits)
            case Fate.FREED:
                assert not conn.reads_to_free, f"{said} before a read that was asked on {conn.name}"
                allowed = first and unbroken and conn.freed
            case Fate.CLOSED:
                allowed = first and unbroken and self.closed and not conn.freed
            case _:
                allowed = False
        if asked.refused is not None:
            allowed = first and fate is asked.refused and size == 0
        assert allowed, f"{said}; behind it {list(conn.writes)}"
        assert fate is Fate.DONE or size < asked.size, said
        asked.moved = size
        conn.writes.remove(asked)
        self.sent_bytes += size
        if size and fate not in (Fate.DONE, Fate.FREED, Fate.CLOSED):
            conn.broken_life = asked.life

    def _judge_sleep(self, asked: Asked, fate: Fate, size: int, said: str) -> None:
        assert size == 0, said
        if self._slept and self._slept[0] is asked:
            self._slept.popleft()
            assert fate is Fate.DONE, said
        else:
            assert self.closed, f"{said}, not {list(self._slept)[:1]}"
            assert fate is Fate.CLOSED, said
            self._sleeps.remove(asked)

    def _compare(self, conn: Conn) -> None:
        """What the peer got against what the writes say. To be called when no completion waits."""
        got = memoryview(conn.got)
        while conn.outward:
            asked = conn.outward[0]
            limit = asked.moved if asked.answered else len(asked.data)
            size = min(limit - conn.outward_got, len(got))
            expected = asked.data[conn.outward_got : conn.outward_got + size]
            assert got[:size] == expected, f"the peer of {conn.name} got other bytes than those of {asked}"
            got = got[size:]
            conn.outward_got += size
            if conn.outward_got < limit or not asked.answered:
                break
            conn.outward.popleft()
            conn.outward_got = 0
        assert not got, f"the peer of {conn.name} got {len(got)} bytes that no write has moved"
        conn.got = bytearray()
