"""Operations, which were asked of a watcher, and completions, which answer them.

Lives here: what both are, and the one place where an operation ends. Must not live here: how it comes about.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from shardnet.errors import ConnectionFreed, DeadlineExceeded, ShardnetError, WatcherClosed
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.endpoint import outcome_of
from shardnet.watcher.swap import Loan, Swap
from shardnet.watcher.timers import Timer

if TYPE_CHECKING:
    from shardnet.watcher.channel import Channel

COMPLETIONS_PER_WAIT_MAX: Final = 4096

Error = OSError | EOFError | ShardnetError


class Completion:
    """The answer to one operation. To be read only.

    `op` says what was asked, and `ctx` is what was passed with it. `conn` is the connection: the object that was
    passed, or for ACCEPT and CONNECT the new `Channel`; None for TIMER, and where accepting or connecting failed.
    `error` is None, or why the operation ended without having done all that was asked; `size` is the number of bytes
    that moved all the same.

    `buffer` is the buffer that was passed. A read without one has `is_swap_buffer` true, and its bytes are the caller's
    only until the next `wait_io()`: asking for them later raises `ValueError`.
    """

    __slots__ = ("_buffer", "conn", "ctx", "error", "is_swap_buffer", "op", "size")

    def __init__(self, asked: Operation, conn: socket.socket | Channel | None, error: Error | None) -> None:
        self.op = asked.op
        self.ctx = asked.ctx
        self.conn = conn
        self.error = error
        self.size = asked.moved
        self.is_swap_buffer = asked.is_swap
        self._buffer = asked.buffer

    @property
    def buffer(self) -> Any:
        """The buffer that was passed; of a read without one, the part of the swap buffer that it filled, exactly."""
        buffer = self._buffer
        if not isinstance(buffer, Loan):
            return buffer
        if buffer.over:
            raise ValueError("a swap buffer is to be used before the next wait_io(): copy what you keep")
        return buffer.view

    @property
    def data(self) -> memoryview:
        """The bytes that moved: the first `size` of `buffer`."""
        buffer = self.buffer
        if self.is_swap_buffer:
            return buffer  # type: ignore[no-any-return]  # one view for all who ask, or the others could not be released
        return memoryview(b"") if buffer is None else memoryview(buffer).cast("B")[: self.size]

    def __repr__(self) -> str:
        error = "" if self.error is None else f" {self.error!r}"
        return f"<Completion {self.op.name} of {self.conn!r}: {self.size} bytes{error}>"


class Operation:
    """One that was asked. It stands in at most one queue, and is completed once."""

    __slots__ = (
        "_after",
        "_before",
        "buffer",
        "conn",
        "ctx",
        "done",
        "full",
        "is_swap",
        "moved",
        "op",
        "queue",
        "rest",
        "timer",
    )

    def __init__(
        self,
        op: Op,
        ctx: object,
        conn: socket.socket | Channel | None = None,
        buffer: Any = None,
        rest: Any = None,
        *,
        full: bool = False,
    ) -> None:
        self.op = op
        self.ctx = ctx
        self.conn = conn  # Held, so that nobody's connection ends while something is pending.
        self.buffer = buffer  # As it was passed.
        # A view of what is still to be moved; None to read into the swap buffer. For CONNECT, the address.
        self.rest = rest
        self.full = full  # Not complete before all of it is moved.
        self.is_swap = op is Op.READ and rest is None
        self.moved = 0
        self.done = False
        self.timer: Timer | None = None
        self.queue: OperationQueue | None = None
        self._before: Operation | None = None
        self._after: Operation | None = None


class OperationQueue:
    """Operations in the order in which they were asked. Linked by themselves: an empty queue owns no memory, and one
    whose deadline has passed leaves from the middle in no time."""

    __slots__ = ("_last", "first")

    def __init__(self) -> None:
        self.first: Operation | None = None
        self._last: Operation | None = None

    def append(self, asked: Operation) -> None:
        asked.queue = self
        asked._before = self._last
        if self._last is None:
            self.first = asked
        else:
            self._last._after = asked
        self._last = asked

    def remove(self, asked: Operation) -> None:
        before, after = asked._before, asked._after
        if before is None:
            self.first = after
        else:
            before._after = after
        if after is None:
            self._last = before
        else:
            after._before = before
        asked.queue = asked._before = asked._after = None

    def __iter__(self) -> Iterator[Operation]:
        """In order. The one that was given out last may leave meanwhile."""
        asked = self.first
        while asked is not None:
            after = asked._after
            yield asked
            asked = after


class Outbox:
    """Completions on their way to the caller, and what they count."""

    __slots__ = ("_handed_out", "done", "outcomes", "submitted", "swap")

    def __init__(self, swap: Swap) -> None:
        self.swap = swap
        self.submitted = 0
        self.outcomes = [0] * len(Outcome)
        self.done: deque[Completion] = deque()
        self._handed_out = 0  # Views of the swap buffer that are in the caller's hands.

    def complete(
        self, asked: Operation, error: Error | None = None, conn: socket.socket | Channel | None = None
    ) -> None:
        """End an operation. `conn` is what ACCEPT and CONNECT have made. The one place where an operation ends."""
        assert not asked.done
        if asked.is_swap and asked.buffer is None:
            asked.buffer = memoryview(b"")
        completion = Completion(asked, asked.conn if conn is None else conn, error)
        outcome = _outcome(error)
        # An interrupt does not come between these three, and may come before and after.
        asked.done = True
        self.outcomes[outcome] += 1
        self.done.append(completion)
        if asked.queue is not None:
            asked.queue.remove(asked)
        if asked.timer is not None:
            asked.timer.cancel()
            asked.timer = None
        asked.rest = None  # The export that kept the caller's buffer from being resized.

    def refuse(self, asked: Operation, error: Error) -> None:
        """End an operation before it has begun."""
        self.submitted += 1
        self.complete(asked, error)

    def cancel_all(self, queue: OperationQueue, error: Callable[[], Error]) -> None:
        """End everything in a queue, each with an error of its own."""
        for asked in queue:
            if not asked.done:  # An interrupt may have kept it from leaving the queue.
                self.complete(asked, error())

    def hand_out(self) -> list[Completion]:
        """The oldest completions. Their swap buffers are the caller's until `take_back`."""
        done = self.done
        if len(done) <= COMPLETIONS_PER_WAIT_MAX:
            batch = list(done)
            done.clear()
            self._handed_out = self.swap.lent  # What is lent and not in `done` was handed out, and taken back since.
        else:
            batch = [done.popleft() for _ in range(COMPLETIONS_PER_WAIT_MAX)]
            self._handed_out = sum(1 for completion in batch if completion.is_swap_buffer and completion.size)
        return batch

    def take_back(self) -> None:
        """The caller has come back: what it was handed is no more its own."""
        count, self._handed_out = self._handed_out, 0
        if count:
            self.swap.give_back(count)


def _outcome(error: Error | None) -> Outcome:
    match error:
        case None:
            return Outcome.OK
        case EOFError():
            return Outcome.EOF
        case DeadlineExceeded():
            return Outcome.DEADLINE
        case ConnectionFreed() | WatcherClosed():
            return Outcome.CANCELLED
        case OSError():
            return outcome_of(error)
        case _:
            return Outcome.ERROR
