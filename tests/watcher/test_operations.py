"""Operations in their queues, and the place where they end."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from shardnet.errors import (
    ConnectionBroken,
    ConnectionFreed,
    DeadlineExceeded,
    InternalError,
    ShardnetError,
    WatcherClosed,
)
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.operations import COMPLETIONS_PER_WAIT_MAX, Error, Operation, OperationQueue, Outbox
from shardnet.watcher.swap import Swap
from shardnet.watcher.timers import TimerQueue


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(Swap(4096))


def write(ctx: object, data: bytes = b"data") -> Operation:
    return Operation(Op.WRITE, ctx, None, data, memoryview(data))


def filled(names: str) -> tuple[OperationQueue, dict[str, Operation]]:
    queue = OperationQueue()
    operations = {name: write(name) for name in names}
    for asked in operations.values():
        queue.append(asked)
    return queue, operations


def order(queue: OperationQueue) -> str:
    """The names in a queue, checked from both ends."""
    forward = list(queue)
    backward = []
    asked = queue._last
    while asked is not None:
        backward.append(asked)
        asked = asked._before
    assert forward == backward[::-1]
    assert queue.first is (forward[0] if forward else None)
    assert all(asked.queue is queue for asked in forward)
    return "".join(str(asked.ctx) for asked in forward)


# The queue.


def test_queue_gives_operations_in_the_order_in_which_they_came() -> None:
    queue, _ = filled("abcde")
    assert order(queue) == "abcde"


def test_queue_that_is_empty_has_nothing() -> None:
    queue, operations = filled("a")
    queue.remove(operations["a"])
    assert order(queue) == ""
    assert queue.first is None


@pytest.mark.parametrize("leaving", ["".join(names) for names in itertools.permutations("abcd")])
def test_queue_keeps_its_order_whoever_leaves(leaving: str) -> None:
    queue, operations = filled("abcd")
    left = "abcd"
    for name in leaving:
        queue.remove(operations[name])
        left = left.replace(name, "")
        assert order(queue) == left
        assert operations[name].queue is None
    queue.append(write("z"))
    assert order(queue) == "z"


def test_queue_is_right_after_a_thousand_comings_and_goings() -> None:
    chance = random.Random(5)
    queue = OperationQueue()
    model: list[Operation] = []
    for number in range(2000):
        if model and chance.random() < 0.5:
            leaving = model.pop(chance.randrange(len(model)))
            queue.remove(leaving)
        else:
            model.append(write(number))
            queue.append(model[-1])
        assert queue.first is (model[0] if model else None)
    assert list(queue) == model


def test_queue_can_be_walked_while_each_leaves() -> None:
    queue, _ = filled("abcde")
    seen = ""
    for asked in queue:
        queue.remove(asked)
        seen += str(asked.ctx)
    assert (seen, order(queue)) == ("abcde", "")


def test_operation_that_left_holds_nobody() -> None:
    """A chain of those that are done would grow for as long as the connection lives."""
    queue, operations = filled("abc")
    queue.remove(operations["b"])
    assert operations["b"]._before is operations["b"]._after is None


# The outbox.


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.OK),
        (EOFError(), Outcome.EOF),
        (DeadlineExceeded(), Outcome.DEADLINE),
        (ConnectionFreed(), Outcome.CANCELLED),
        (WatcherClosed(), Outcome.CANCELLED),
        (ConnectionBroken(), Outcome.ERROR),
        (InternalError(), Outcome.ERROR),
        (ConnectionResetError(errno.ECONNRESET, ""), Outcome.RESET),
        (BrokenPipeError(errno.EPIPE, ""), Outcome.RESET),
        (ConnectionAbortedError(errno.ECONNABORTED, ""), Outcome.RESET),
        (TimeoutError(errno.ETIMEDOUT, ""), Outcome.ERROR),
        (OSError(errno.EMFILE, ""), Outcome.ERROR),
    ],
)
def test_outbox_counts_how_operations_end(outbox: Outbox, error: Error | None, outcome: Outcome) -> None:
    asked = write("a")
    outbox.refuse(asked, error) if error else outbox.complete(asked)
    assert outbox.outcomes == [int(kind == outcome) for kind in Outcome]
    assert sum(outbox.outcomes) == 1
    (completion,) = outbox.hand_out()
    assert (completion.ctx, completion.error) == ("a", error)


def test_outbox_ends_an_operation_out_of_its_queue_and_with_its_deadline(outbox: Outbox) -> None:
    queue, operations = filled("abc")
    deadlines = TimerQueue()
    asked = operations["b"]
    asked.timer = deadlines.add(1.0, list)
    outbox.complete(asked)
    assert order(queue) == "ac"
    assert len(deadlines) == 0
    assert (asked.done, asked.timer is None, asked.rest is None) == (True, True, True)


def test_outbox_lets_go_of_the_callers_buffer(outbox: Outbox) -> None:
    buffer = bytearray(4)
    asked = Operation(Op.READ, None, None, buffer, memoryview(buffer), full=True)
    with pytest.raises(BufferError):
        buffer.append(0)
    outbox.complete(asked)
    buffer.append(0)
    assert outbox.hand_out()[0].buffer is buffer


def test_outbox_ends_nothing_twice(outbox: Outbox) -> None:
    asked = write("a")
    outbox.complete(asked)
    with pytest.raises(AssertionError):
        outbox.complete(asked)
    assert len(outbox.hand_out()) == 1


def test_outbox_cancels_a_queue_in_its_order(outbox: Outbox) -> None:
    queue, operations = filled("abcde")
    outbox.complete(operations["c"])
    outbox.cancel_all(queue, lambda: ConnectionFreed("why"))
    completions = outbox.hand_out()
    assert [completion.ctx for completion in completions] == list("cabde")
    assert [str(completion.error) for completion in completions[1:]] == ["why"] * 4
    errors = {id(completion.error) for completion in completions}
    assert len(errors) == 5  # Each has its own: who raises one adds to its traceback.
    assert order(queue) == ""
    outbox.cancel_all(queue, lambda: ConnectionFreed("why"))
    assert outbox.hand_out() == []


def test_outbox_cancels_nothing_twice_that_an_interrupt_kept_in_its_queue(outbox: Outbox) -> None:
    queue, operations = filled("abc")
    operations["b"].done = True
    outbox.cancel_all(queue, lambda: ConnectionFreed("why"))
    assert [completion.ctx for completion in outbox.hand_out()] == list("ac")


def test_outbox_hands_out_so_many_at_once_and_no_more(outbox: Outbox) -> None:
    count = 2 * COMPLETIONS_PER_WAIT_MAX + 3
    for number in range(count):
        outbox.complete(write(number))
    batches = [outbox.hand_out() for _ in range(4)]
    assert [len(batch) for batch in batches] == [COMPLETIONS_PER_WAIT_MAX, COMPLETIONS_PER_WAIT_MAX, 3, 0]
    assert [completion.ctx for batch in batches for completion in batch] == list(range(count))


def test_outbox_takes_back_what_was_handed_out_and_nothing_that_waits(outbox: Outbox) -> None:
    swap = outbox.swap
    for number in range(3):
        asked = Operation(Op.READ, number)
        if number != 1:  # The second has met an error: it brings no view to be given back.
            asked.buffer = swap.take(10)
            asked.moved = 10
        outbox.complete(asked, None if number != 1 else ConnectionFreed())
    outbox.take_back()
    assert swap.in_use_bytes == 20
    completions = outbox.hand_out()
    later = Operation(Op.READ, "later")
    later.buffer = swap.take(5)
    later.moved = 5
    outbox.complete(later)
    outbox.take_back()
    assert swap.in_use_bytes == 5
    for number in (0, 2):
        with pytest.raises(ValueError, match=r"wait_io"):
            _ = completions[number].data
    assert bytes(completions[1].data) == b""
    assert len(outbox.hand_out()[0].data) == 5
    outbox.take_back()
    outbox.take_back()
    assert swap.in_use_bytes == 0


# Completions.


def test_completion_shows_the_bytes_that_moved_of_any_buffer(outbox: Outbox) -> None:
    buffer = memoryview(bytearray(b"12345678")).cast("H")
    asked = Operation(Op.READ, None, None, buffer, buffer.cast("B"))
    asked.moved = 3
    outbox.complete(asked)
    completion = outbox.hand_out()[0]
    assert completion.buffer is buffer
    assert bytes(completion.data) == b"123"
    assert not completion.is_swap_buffer


def test_completion_without_a_buffer_shows_no_bytes(outbox: Outbox) -> None:
    outbox.complete(Operation(Op.TIMER, None))
    completion = outbox.hand_out()[0]
    assert (completion.buffer, bytes(completion.data), completion.conn) == (None, b"", None)


@pytest.mark.parametrize(
    ("error", "text"),
    [(None, "<Completion WRITE of None: 0 bytes>"), (ShardnetError("x"), "<Completion WRITE of None: 0 bytes Sh")],
)
def test_completion_says_what_it_is(outbox: Outbox, error: Error | None, text: str) -> None:
    outbox.complete(write("a"), error)
    assert repr(outbox.hand_out()[0]).startswith(text)
