"""Deadlines: the queue against a model, and a watcher's on a clock that moves when it is told to."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from shardnet.watcher import ConnectionFreed, DeadlineExceeded, Op
from shardnet.watcher.operations import COMPLETIONS_PER_WAIT_MAX
from shardnet.watcher.timers import COMPACT_MIN, Timer, TimerQueue
from tests.watcher.kit import Bench

MANY = 100_000


class CountedTime(float):
    """A time that counts how often one was compared."""

    comparisons = 0

    def __lt__(self, other: object) -> bool:
        CountedTime.comparisons += 1
        return float(self) < float(other)  # type: ignore[arg-type]

    def __add__(self, other: float) -> CountedTime:
        return CountedTime(float(self) + float(other))


class Clock:
    """A watcher's clock."""

    def __init__(self, bench: Bench) -> None:
        self.now_s = 1000.0
        self.bench = bench
        bench.watcher._clock = lambda: self.now_s

    def expired_at(self, now_s: float) -> list[object]:
        """Whose deadline passes when the clock goes to this."""
        self.now_s = now_s
        completions = self.bench.watcher.wait_io(0)
        for completion in completions:
            assert isinstance(completion.error, DeadlineExceeded) or completion.op is Op.TIMER
        return [completion.ctx for completion in completions]


@pytest.fixture
def clock(bench: Bench) -> Clock:
    return Clock(bench)


# The queue.


def nothing() -> None: ...


@pytest.mark.parametrize("seed", range(5))
def test_heap_order_and_index_hold_whoever_leaves(seed: int) -> None:
    """gaio's two cases, against a model: what comes out is the least that is armed, and any entry can be cancelled,
    wherever in the heap it is, without disturbing the rest."""
    chance = random.Random(seed)
    queue = TimerQueue()
    armed: dict[int, tuple[float, Timer]] = {}
    fired: list[int] = []
    now_s = 0.0

    def arm(number: int) -> None:
        due_s = now_s + chance.choice([0.0, 1.0, 1.0, chance.random() * 100])
        armed[number] = due_s, queue.add(due_s, lambda: fired.append(number))

    for number in range(5000):
        what = chance.random()
        if what < 0.5 or not armed:
            arm(number)
        elif what < 0.8:
            cancelled = chance.choice(list(armed))
            assert armed.pop(cancelled)[1].cancel()
        else:
            now_s += chance.random()
            due = sorted((due_s, number) for number, (due_s, _) in armed.items() if due_s <= now_s)
            fired.clear()
            while (callback := queue.take_due(now_s)) is not None:
                callback()
            assert fired == [number for _, number in due]
            for _, number in due:
                assert not armed.pop(number)[1].cancel()
        assert len(queue) == len(armed)
        assert queue.next_due_s() == min((due_s for due_s, _ in armed.values()), default=None)
        assert len(queue._heap) <= max(COMPACT_MIN, 2 * len(armed)) + 1


@pytest.mark.parametrize("descending", [False, True])
def test_heap_gives_back_in_order_what_came_in_any(descending: bool) -> None:
    queue = TimerQueue()
    times = sorted((random.Random(3).random() for _ in range(1000)), reverse=descending)
    for due_s in times:
        queue.add(due_s, nothing)
    out = []
    while (due_s := queue.next_due_s()) is not None:  # type: ignore[assignment]
        assert queue.take_due(due_s) is nothing
        out.append(due_s)
    assert out == sorted(times)


def test_queue_that_is_cleared_is_empty_and_usable() -> None:
    queue = TimerQueue()
    timers = [queue.add(float(number), nothing) for number in range(10)]
    timers[3].cancel()
    assert queue.clear() == 9
    assert (len(queue), queue.next_due_s(), queue.clear()) == (0, None, 0)
    assert not any(timer.cancel() for timer in timers)
    assert len(queue) == 0
    queue.add(1.0, nothing)
    assert queue.next_due_s() == 1.0


# A watcher's deadlines.


@pytest.mark.slow
def test_deadlines_of_a_hundred_thousand_operations_cost_no_search(bench: Bench) -> None:
    """Armed for each and hardly ever met: cancelling compares nothing, and leaves no heap behind."""
    ours, _ = bench.unix()
    watcher = bench.watcher
    watcher._clock = lambda: CountedTime(0.0)
    chance = random.Random(1)
    CountedTime.comparisons = 0
    for _ in range(MANY):
        watcher.read(ours, timeout=chance.random() + 1.0)
    assert watcher.statistics().deadlines == MANY
    assert CountedTime.comparisons < 5 * MANY  # Of which the heap takes its O(log n), mostly far less.
    CountedTime.comparisons = 0
    watcher.free(ours)
    assert watcher.statistics().deadlines == 0
    assert CountedTime.comparisons < 5 * MANY  # Sweeping when half is dead, and again at half of that: a series.
    assert len(watcher._deadlines._heap) <= COMPACT_MIN
    handed_out = 0
    while handed_out < MANY:
        batch = watcher.wait_io(0)
        assert {type(completion.error) for completion in batch} == {ConnectionFreed}
        handed_out += len(batch)
    assert handed_out == MANY


def test_deadlines_of_operations_that_complete_one_by_one_leave_no_heap(bench: Bench) -> None:
    ours, theirs = bench.unix()
    watcher = bench.watcher
    watcher.sleep(30.0)  # Stays in front, so that none behind it leaves the heap by coming up.
    longest = 0
    for _ in range(1000):
        theirs.send(b"x")
        watcher.read(ours, timeout=60.0)  # Complete at once: nothing is armed for it.
        watcher.read(ours, timeout=60.0)
        assert watcher.statistics().deadlines == 2
        theirs.send(b"x")
        bench.collect(2)
        longest = max(longest, len(watcher._deadlines._heap))
    assert longest <= 2 * COMPACT_MIN
    assert watcher.statistics().deadlines == 1


def test_deadlines_pass_in_the_order_in_which_they_are_due(bench: Bench, clock: Clock) -> None:
    """Across connections and kinds; equal ones in the order in which they were asked."""
    listener = bench.listener()
    conns = [bench.unix()[0] for _ in range(3)]
    watcher = bench.watcher
    ask: list[Callable[[str, float], None]] = [
        lambda ctx, timeout: watcher.read(conns[0], ctx=ctx, timeout=timeout),
        lambda ctx, timeout: watcher.read_full(conns[1], bytearray(3), ctx=ctx, timeout=timeout),
        lambda ctx, timeout: watcher.accept(listener, ctx=ctx, timeout=timeout),
        lambda ctx, timeout: watcher.read(conns[2], bytearray(3), ctx=ctx, timeout=timeout),
        lambda ctx, timeout: watcher.sleep(timeout, ctx=ctx),
    ]
    expected = []
    for number, due_s in enumerate([5.0, 1.0, 3.0, 3.0, 1.0, 4.0, 2.0, 3.0, 1.0, 5.0]):
        ask[number % len(ask)](f"{number}", due_s)
        expected.append((due_s, number))
    assert clock.expired_at(1010.0) == [f"{number}" for _, number in sorted(expected)]


def test_deadline_passes_at_its_time_and_not_before(bench: Bench, clock: Clock) -> None:
    ours, _ = bench.unix()
    bench.watcher.read(ours, ctx="read", timeout=2.0)
    bench.watcher.sleep(3.0, ctx="sleep")
    assert clock.expired_at(math.nextafter(1002.0, 0)) == []
    assert clock.expired_at(1002.0) == ["read"]
    assert clock.expired_at(math.nextafter(1003.0, 0)) == []
    assert clock.expired_at(1003.0) == ["sleep"]
    assert bench.watcher.statistics().deadlines == 0


def test_deadline_in_the_middle_of_a_queue_takes_only_its_own(bench: Bench, clock: Clock) -> None:
    ours, theirs = bench.unix()
    for ctx, timeout in (("a", None), ("b", 2.0), ("c", 9.0), ("d", 1.0), ("e", None)):
        bench.watcher.read(ours, bytearray(1), ctx=ctx, timeout=timeout)
    assert clock.expired_at(1005.0) == ["d", "b"]
    theirs.sendall(b"xyz")
    assert [(answer.ctx, answer.data) for answer in bench.collect(3)] == [("a", b"x"), ("c", b"y"), ("e", b"z")]
    assert clock.expired_at(2000.0) == []


def test_data_that_is_there_wins_over_a_deadline_long_past(bench: Bench, clock: Clock) -> None:
    """The clock has gone on while nobody waited. The older operations are served first, with what there is."""
    ours, theirs = bench.unix()
    for ctx in "abc":
        bench.watcher.read(ours, bytearray(1), ctx=ctx, timeout=1.0)
    theirs.sendall(b"xy")
    clock.now_s = 5000.0
    answers = bench.collect(3)
    assert [(answer.ctx, answer.data) for answer in answers] == [("a", b"x"), ("b", b"y"), ("c", b"")]
    assert isinstance(answers[2].error, DeadlineExceeded)


def test_operations_asked_of_a_clock_that_stands_still_expire_in_their_order(bench: Bench, clock: Clock) -> None:
    ours, _ = bench.unix()
    for ctx in range(500):
        bench.watcher.read(ours, ctx=ctx, timeout=1.0)
    assert clock.expired_at(1001.0) == list(range(500))


def test_deadlines_that_are_all_due_at_once_pass_in_portions_and_in_order(bench: Bench, clock: Clock) -> None:
    ours, _ = bench.unix()
    count = 2 * COMPLETIONS_PER_WAIT_MAX + 10
    for ctx in range(count):
        bench.watcher.read(ours, ctx=ctx, timeout=1.0)
    portions = [clock.expired_at(2000.0) for _ in range(4)]
    assert [len(portion) for portion in portions] == [COMPLETIONS_PER_WAIT_MAX, COMPLETIONS_PER_WAIT_MAX, 10, 0]
    assert [ctx for portion in portions for ctx in portion] == list(range(count))


def test_timeout_of_infinity_or_none_arms_nothing(bench: Bench, clock: Clock) -> None:
    ours, _ = bench.unix()
    bench.watcher.read(ours, timeout=math.inf)
    bench.watcher.read(ours)
    assert bench.watcher.statistics().deadlines == 0
    assert clock.expired_at(1e18) == []


@pytest.mark.parametrize("seconds", [-1.0, math.nan, -math.inf, math.inf])
def test_sleep_takes_seconds_and_not_for_ever(bench: Bench, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        bench.watcher.sleep(seconds)
    assert bench.watcher.statistics().submitted == 0


def test_wait_ends_with_a_deadline_or_with_its_own_time(bench: Bench) -> None:
    ours, _ = bench.unix()
    bench.watcher.read(ours, timeout=0.01)
    assert isinstance(bench.one().error, DeadlineExceeded)
    bench.watcher.read(ours, timeout=60.0)
    assert bench.watcher.wait_io(0.01) == []
    bench.watcher.sleep(0.01)
    (slept,) = bench.watcher.wait_io(60.0)
    assert slept.op is Op.TIMER
