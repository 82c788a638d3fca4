"""The queue of timers alone, then timers of an engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest

from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.timers import COMPACT_MIN, Timer, TimerQueue
from tests.engine.kit import Bench, raiser

MANY = 100_000


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def fire_due(queue: TimerQueue, now_s: float) -> int:
    count = 0
    while (callback := queue.take_due(now_s)) is not None:
        callback()
        count += 1
    return count


class CountedTime(float):
    """A time that counts how often it was compared."""

    comparisons = 0

    def __lt__(self, other: object) -> bool:
        CountedTime.comparisons += 1
        return float(self) < float(other)  # type: ignore[arg-type]


class Payload:
    """Something that a callback holds on to."""

    def __call__(self) -> None: ...


# The queue.


def test_queue_fires_in_the_order_of_due_times() -> None:
    queue = TimerQueue()
    fired: list[int] = []
    for due in (5, 1, 4, 2, 3):
        queue.add(float(due), lambda due=due: fired.append(due))  # type: ignore[misc]
    assert queue.next_due_s() == 1.0
    assert fire_due(queue, 3.0) == 3
    assert fired == [1, 2, 3]
    assert fire_due(queue, 9.0) == 2
    assert fired == [1, 2, 3, 4, 5]


def test_queue_fires_equal_times_in_the_order_of_arming() -> None:
    queue = TimerQueue()
    fired: list[int] = []
    for number in range(100):
        queue.add(1.0, lambda number=number: fired.append(number))  # type: ignore[misc]
    fire_due(queue, 1.0)
    assert fired == list(range(100))


def test_queue_fires_nothing_before_its_time_and_at_it() -> None:
    queue = TimerQueue()
    queue.add(1.0, Payload())
    assert queue.take_due(0.999) is None
    assert queue.take_due(1.0) is not None
    assert queue.take_due(2.0) is None


def test_cancel_wins_over_expiry_in_the_same_tick() -> None:
    queue = TimerQueue()
    timer = queue.add(1.0, Payload())
    assert timer.cancel()
    assert queue.take_due(1.0) is None
    assert queue.next_due_s() is None


def test_cancel_is_idempotent_and_too_late_after_firing() -> None:
    queue = TimerQueue()
    cancelled, fired = queue.add(1.0, Payload()), queue.add(2.0, Payload())
    assert [cancelled.cancel(), cancelled.cancel()] == [True, False]
    assert len(queue) == 1
    assert fire_due(queue, 2.0) == 1
    assert not fired.cancel()
    assert len(queue) == 0


def test_cancel_in_a_callback_stops_one_that_is_due_as_well() -> None:
    queue = TimerQueue()
    timers: list[Timer] = []
    queue.add(1.0, lambda: timers[0].cancel())
    timers.append(queue.add(1.0, Payload()))
    assert fire_due(queue, 1.0) == 1


def test_cancel_and_firing_let_go_of_the_callback_at_once() -> None:
    queue = TimerQueue()
    kept, fired = Payload(), Payload()
    seen = [weakref.ref(kept), weakref.ref(fired)]
    timers = [queue.add(9.0, kept), queue.add(1.0, fired)]
    del kept, fired
    timers[0].cancel()
    fire_due(queue, 1.0)
    assert [ref() for ref in seen] == [None, None]


def test_hundred_thousand_armed_and_cancelled_cost_no_search() -> None:
    """The law of deadlines: arming is O(log n), cancelling O(1), and what is cancelled leaves no heap behind."""
    queue = TimerQueue()
    CountedTime.comparisons = 0
    timers = [queue.add(CountedTime(due % 977), Payload()) for due in range(MANY)]
    assert len(queue) == MANY
    assert CountedTime.comparisons < MANY * 20
    CountedTime.comparisons = 0
    assert all(timer.cancel() for timer in timers)
    assert len(queue) == 0
    assert CountedTime.comparisons < MANY * 8  # All sweeps together: a geometric series.
    assert len(queue._heap) <= COMPACT_MIN
    assert queue.next_due_s() is None


def test_steady_arming_and_cancelling_keeps_the_heap_small() -> None:
    """As a server does it: one deadline per operation, none of them ever fires."""
    queue = TimerQueue()
    queue.add(0.5, Payload())  # One that stays, in front.
    longest = 0
    for due in range(MANY):
        queue.add(float(due + 1), Payload()).cancel()
        longest = max(longest, len(queue._heap))
    assert longest <= 2 * COMPACT_MIN
    assert len(queue) == 1


@pytest.mark.parametrize("survivor_of", [2, 3, 10])
def test_cancelling_most_keeps_the_order_of_the_rest(survivor_of: int) -> None:
    queue = TimerQueue()
    fired: list[int] = []
    timers = [
        queue.add(float(number * 7919 % 1009), lambda number=number: fired.append(number))  # type: ignore[misc]
        for number in range(1009)
    ]
    for number, timer in enumerate(timers):
        if number % survivor_of:
            timer.cancel()
    fire_due(queue, 2000.0)
    left = [number for number in range(1009) if number % survivor_of == 0]
    assert fired == sorted(left, key=lambda number: number * 7919 % 1009)


# Timers of an engine.


def test_timer_fires_once_and_is_counted(bench: Bench) -> None:
    fired: list[str] = []
    bench.engine.after(0.001, lambda: fired.append("a"))
    bench.until(lambda: fired)
    bench.settle()
    assert fired == ["a"]
    assert bench.counts(Op.TIMER) == {Outcome.OK: 1}


def test_timer_ends_a_turn_that_waits_for_ever(bench: Bench) -> None:
    fired: list[str] = []
    bench.engine.after(0.001, lambda: fired.append("a"))
    while not fired:
        bench.engine.turn(None)


def test_timer_that_is_cancelled_never_fires_and_is_counted_once(bench: Bench) -> None:
    fired: list[str] = []
    timer = bench.engine.after(0.0, lambda: fired.append("cancelled"))
    bench.engine.cancel(timer)
    bench.engine.cancel(timer)
    late = bench.engine.after(0.0, lambda: fired.append("late"))
    bench.until(lambda: fired)
    bench.engine.cancel(late)
    assert fired == ["late"]
    assert bench.counts(Op.TIMER) == {Outcome.OK: 1, Outcome.CANCELLED: 1}


def test_timer_callback_may_cancel_the_next_and_arm_another(bench: Bench) -> None:
    fired: list[str] = []
    engine = bench.engine

    def first() -> None:
        fired.append("first")
        engine.cancel(second)
        engine.after(0.0, lambda: fired.append("third"))

    engine.after(0.0, first)
    second = engine.after(0.0, lambda: fired.append("second"))
    bench.until(lambda: len(fired) == 2)
    bench.settle()
    assert fired == ["first", "third"]
    assert bench.counts(Op.TIMER) == {Outcome.OK: 2, Outcome.CANCELLED: 1}


@pytest.mark.parametrize("delay_s", [0.0, -1.0, float("-inf"), float("nan")])
def test_timer_that_arms_itself_for_now_or_earlier_lets_others_have_their_turn(bench: Bench, delay_s: float) -> None:
    """A negative delay used to count from the past: such a timer, arming itself again, never left its turn."""
    endpoint, peer = bench.unix()
    endpoint.post_read()
    peer.send(b"x")
    fired: list[str] = []

    def again() -> None:
        assert len(fired) < 100_000
        fired.append("again")
        bench.engine.after(delay_s, again)

    bench.engine.after(delay_s, again)
    bench.engine.after(0.0, lambda: fired.append("other"))
    bench.until(lambda: endpoint.received and "other" in fired)


@pytest.mark.parametrize("delay_s", [30 * 86400.0, 1e12, float("inf")])
def test_timer_far_away_does_not_end_the_turn_with_an_error(bench: Bench, delay_s: float) -> None:
    """epoll takes at most 2^31 ms, 24.8 days: a longer wait used to leave the turn as OverflowError."""
    timer = bench.engine.after(delay_s, raiser(AssertionError("too early")))
    bench.engine.wake()
    bench.engine.turn(None)
    bench.engine.wake()
    bench.engine.turn(delay_s)
    bench.engine.cancel(timer)
    bench.engine.wake()
    bench.engine.turn(delay_s)


def test_timer_that_raises_leaves_the_others_for_the_next_turn(bench: Bench) -> None:
    fired: list[str] = []
    bench.engine.after(0.0, raiser(KeyboardInterrupt()))
    bench.engine.after(0.0, lambda: fired.append("b"))
    with pytest.raises(KeyboardInterrupt):
        bench.until(lambda: fired)
    bench.until(lambda: fired)
    assert bench.counts(Op.TIMER) == {Outcome.OK: 2}


def test_timers_in_order_with_the_clock_of_the_caller(bench: Bench) -> None:
    fired: list[int] = []

    def note(number: int) -> Callable[[], object]:
        return lambda: fired.append(number)

    for number, delay_s in enumerate((0.004, 0.001, 0.003, 0.002)):
        bench.engine.after(delay_s, note(number))
    bench.until(lambda: len(fired) == 4)
    assert fired == [1, 3, 2, 0]


def test_engine_arms_and_cancels_a_hundred_thousand(bench: Bench) -> None:
    engine = bench.engine
    timers = [engine.after(3600.0, raiser(AssertionError("cancelled"))) for _ in range(MANY)]
    for timer in timers:
        engine.cancel(timer)
    bench.settle()
    assert bench.counts(Op.TIMER) == {Outcome.CANCELLED: MANY}
