"""Whose loop is watched, when it counts as stuck, and when as hung."""

from __future__ import annotations

import signal

import pytest

from shardnet.supervisor.actions import Action, DumpStacks, Ended, GiveBack, Kill, Lend
from shardnet.supervisor.clock import LATE_S, SteadyClock
from shardnet.supervisor.events import Borrowed, Exited, Leaving, Ready, Reason, ReloadAsked, Renewed, Seen
from shardnet.supervisor.vigil import LEND_AFTER_S, STACKS_S
from shardnet.testing.clock import FakeClock
from tests.fleet_kit import HANG_TIMEOUT_S, KILLED, Story, of

LOOK_S = 0.1


class Watched(Story):
    """Two shards, by the children 1 and 2, whose loops are looked at."""

    def __init__(self, *, renews: bool = False) -> None:
        super().__init__(2, lends=True, renews=renews)
        self.boot()
        self.beats = {1: 1000, 2: 1000}

    def look(self, *still: int, queued: bool = False, after_s: float = LOOK_S) -> list[Action]:
        """So much later: the loops have turned, but for those of `still`, where connections wait if `queued`."""
        for child in self.beats.keys() - still:
            self.beats[child] += 1
        seen = [Seen(child, beat, queued=queued and child in still) for child, beat in self.beats.items()]
        return self.turn(*seen, after_s=after_s)

    def look_for(self, time_s: float, *still: int, queued: bool = False) -> list[Action]:
        actions: list[Action] = []
        until_s = self.now_s + time_s
        while self.now_s < until_s - 1e-9:
            actions += self.look(*still, queued=queued)
        return actions


def test_loop_that_does_not_turn_while_connections_wait_has_its_listeners_lent_until_it_turns() -> None:
    story = Watched()
    story.look()
    assert story.look_for(LEND_AFTER_S - 0.01, 1, queued=True) == []
    assert of(Lend, story.look_for(0.2, 1, queued=True)) == [Lend(2, 0, 1)]
    story.turn(Borrowed(2, 1))
    assert story.look_for(2.0, 1, queued=True) == []
    assert story.look() == [GiveBack(2, 1)]
    assert story.states() == ["serving", "serving"]


def test_idle_loop_is_not_stuck_however_long_it_sleeps() -> None:
    story = Watched()
    story.look()
    assert story.look_for(4.0, 1) == []
    # A connection has just come: it has had no time to be noticed.
    assert story.look(1, queued=True) == []
    assert story.look() == []


def test_connections_that_come_and_are_taken_are_no_sign_of_being_stuck() -> None:
    story = Watched()
    for _ in range(20):
        story.look(1, queued=True)
        story.look(1)
    assert of(Lend, story.done) == []


def test_loop_that_does_not_turn_at_all_hangs() -> None:
    story = Watched()
    story.look()
    assert story.look_for(HANG_TIMEOUT_S - LOOK_S, 1) == []
    [dump] = story.look(1)
    assert isinstance(dump, DumpStacks)
    assert dump.child == 1
    assert dump.silent_s == pytest.approx(HANG_TIMEOUT_S)
    assert story.look_for(STACKS_S - LOOK_S, 1) == []
    [kill] = story.look(1)
    assert kill == Kill(1, signal.SIGKILL, "hung: its loop did not turn for 22.0 s")
    assert story.look_for(1.0, 1) == []
    ended, *_, lend, _fork = story.turn(Exited(1, KILLED))
    assert isinstance(ended, Ended)
    assert ended.reason is Reason.HANG
    assert lend == Lend(2, 0, 1)


def test_loop_that_turns_again_in_the_last_moment_is_spared() -> None:
    story = Watched()
    story.look()
    story.look_for(HANG_TIMEOUT_S + STACKS_S - LOOK_S, 1)
    assert of(DumpStacks, story.done)
    story.look()
    assert story.look_for(HANG_TIMEOUT_S - LOOK_S, 1) == []
    assert of(Kill, story.done) == []


def test_all_that_hang_together_are_killed() -> None:
    story = Watched()
    story.look()
    story.look_for(HANG_TIMEOUT_S + STACKS_S + LOOK_S, 1, 2, queued=True)
    assert {kill.child for kill in of(Kill, story.done)} == {1, 2}
    assert of(Lend, story.done) == []  # There is nobody.


def test_hang_of_one_that_leaves_is_counted_as_such() -> None:
    story = Watched()
    story.look()
    story.turn(Leaving(1))
    story.look_for(HANG_TIMEOUT_S + STACKS_S + LOOK_S, 1)
    assert of(Ended, story.turn(Exited(1, KILLED)))[0].reason is Reason.HANG


def test_worker_that_boots_or_is_held_has_no_pulse_to_be_watched() -> None:
    story = Watched()
    story.look()
    story.turn(ReloadAsked())
    story.turn(Ready(3))  # Held, until child 4 is ready as well.
    story.turn(Seen(3, 500, queued=True))
    story.turn(Seen(3, 500, queued=True), after_s=HANG_TIMEOUT_S)
    story.turn(Seen(3, 500, queued=True), after_s=HANG_TIMEOUT_S)
    assert of(DumpStacks, [a for a in story.done if isinstance(a, DumpStacks) and a.child == 3]) == []
    story.turn(Ready(4))
    assert of(Kill, story.turn(Seen(3, 500, queued=True), after_s=LOOK_S)) == []


def test_vigil_goes_on_in_a_new_program() -> None:
    story = Watched(renews=True)
    story.look()
    story.look_for(HANG_TIMEOUT_S - LOOK_S, 1)
    story.turn(ReloadAsked())
    story.renew(Renewed())
    assert [dump.child for dump in of(DumpStacks, story.look(1))] == [1]


# The clock.


def test_clock_stands_still_while_a_wait_ends_late() -> None:
    monotonic = FakeClock()
    clock = SteadyClock(lambda: monotonic.now_s)
    before_s = clock.now_s()
    clock.begin_wait(before_s + 1.0)
    monotonic.advance(61.0)  # The machine slept.
    clock.end_wait()
    assert clock.now_s() == pytest.approx(before_s + 1.0)
    assert clock.lost_s == pytest.approx(60.0)


def test_clock_stands_still_while_nothing_happens_between_two_waits() -> None:
    monotonic = FakeClock()
    clock = SteadyClock(lambda: monotonic.now_s)
    clock.begin_wait(clock.now_s() + 1.0)
    clock.end_wait()
    before_s = clock.now_s()
    monotonic.advance(5.0)
    clock.begin_wait(before_s + 1.0)
    assert clock.now_s() == pytest.approx(before_s)


def test_clock_minds_no_lateness_that_a_busy_machine_brings() -> None:
    monotonic = FakeClock()
    clock = SteadyClock(lambda: monotonic.now_s, lost_s=3.0)
    for _ in range(10):
        clock.begin_wait(clock.now_s() + 1.0)
        monotonic.advance(1.0 + LATE_S / 2)
        clock.end_wait()
        monotonic.advance(LATE_S / 2)
    assert clock.lost_s == 3.0


def test_clock_minds_no_wait_that_ends_early_or_was_over_before_it_began() -> None:
    monotonic = FakeClock()
    clock = SteadyClock(lambda: monotonic.now_s)
    for until_s in (1.0, -10.0):
        clock.begin_wait(clock.now_s() + until_s)
        clock.end_wait()
    assert clock.lost_s == 0.0
