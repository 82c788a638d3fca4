"""The life of a fleet's workers; reloads are in test_reload.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.errors import ExitCode
from shardnet.supervisor.actions import (
    CloseListeners,
    Drain,
    Ended,
    Finish,
    Fork,
    Kill,
    Promoted,
    Respawn,
    Serving,
    Stopping,
)
from shardnet.supervisor.events import Ending, Exited, Failed, ForkFailed, Leaving, Misspoke, Ready, Reason, StopAsked
from shardnet.supervisor.lifecycle import (
    FAILED_EXIT_S,
    HEALTHY_S,
    UNSERVED_S,
)
from shardnet.supervisor.orders import BOOT_STOP_S, KILL_GRACE_S
from shardnet.supervisor.slot import NEXT, Cue, State, backoff_s
from shardnet.supervisor.stop import EXPORTER_STOP_S, REAP_S
from tests.fleet_kit import (
    BOOT_TIMEOUT_S,
    DRAIN_SPREAD_S,
    DRAIN_TIMEOUT_S,
    KILLED,
    Story,
    World,
    events_of,
    failed_app,
    of,
)

# Coming up.


def test_start_forks_one_worker_per_shard_and_the_exporter() -> None:
    story = Story(shards=2, exporter=True)
    assert story.done == [Fork(1, 0, 1), Fork(2, 1, 1), Fork(3, None, 1)]
    assert story.states() == ["booting", "booting"]


def test_start_is_announced_once_when_every_shard_is_ready() -> None:
    story = Story(shards=2)
    assert story.turn(Ready(1), after_s=0.5) == [Promoted(1, 0, 0.5)]
    assert story.turn(Ready(2)) == [Promoted(2, 1, 0.5), Serving()]
    assert story.states() == ["serving", "serving"]
    story.turn(Exited(1, KILLED))
    story.turn(Ready(3))
    assert of(Serving, story.done) == [Serving()]


def test_nothing_is_due_when_all_serve() -> None:
    story = Story(shards=3, exporter=True)
    story.boot()
    assert story.turn(after_s=1e6) == []
    assert story.fleet.next_deadline_s() is None


def test_ready_means_nothing_the_second_time() -> None:
    story = Story()
    story.boot()
    assert story.turn(Ready(1)) == []


def test_boot_timeout_kills_and_counts_as_a_crash() -> None:
    story = Story()
    assert story.fleet.next_deadline_s() == story.now_s + BOOT_TIMEOUT_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "boot timeout")]
    ended, respawn, fork = story.turn(Exited(1, KILLED))
    assert ended == Ended(1, 0, KILLED, BOOT_TIMEOUT_S, Reason.CRASH, "boot timeout")
    assert respawn == Respawn(0, 0.0, 1)
    assert fork == Fork(2, 0, 1)


def test_app_that_does_not_load_at_the_first_start_stops_everything() -> None:
    story = Story(shards=3, exporter=True)
    failure = failed_app(2)
    stopping, *kills, close = story.turn(failure)
    assert stopping == Stopping(True, failure.message, ExitCode.APP)
    assert {kill.child for kill in of(Kill, kills)} == {1, 2, 3, 4}
    assert close == CloseListeners()
    actions = story.turn(*(Exited(child, KILLED) for child in (1, 2, 3, 4)))
    assert actions[-1] == Finish(ExitCode.APP, failure.message, failure.detail)
    assert {ended.reason for ended in of(Ended, actions)} == {None}
    assert of(Fork, story.done[4:]) == []


def test_app_that_stops_loading_later_backs_off_and_hurts_no_other_shard() -> None:
    story = Story(shards=2)
    story.turn(Ready(1))
    assert story.turn(failed_app(2)) == []
    story.turn(Exited(2, Ending(status=4)))
    assert not story.fleet.stopping
    assert story.states() == ["serving", "booting"]


def test_failed_worker_is_killed_when_it_does_not_exit() -> None:
    story = Story()
    story.turn(Failed(1, "boot", "lifespan raised", ""))
    assert story.fleet.next_deadline_s() == story.now_s + FAILED_EXIT_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "lifespan raised")]
    ended = story.turn(Exited(1, KILLED))[0]
    assert ended == Ended(1, 0, KILLED, FAILED_EXIT_S, Reason.CRASH, "lifespan raised")


# Crashes.


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(status=0), Reason.CRASH),  # Unasked, a clean exit is a crash too.
        (Ending(status=1), Reason.CRASH),
        (Ending(signum=signal.SIGKILL), Reason.SIGNAL),
        (Ending(signum=signal.SIGSEGV), Reason.SIGNAL),
    ],
)
def test_end_that_nobody_asked_for_is_counted_and_made_good(ending: Ending, reason: Reason) -> None:
    story = Story()
    story.boot()
    ended, respawn, fork = story.turn(Exited(1, ending), after_s=5.0)
    assert ended == Ended(1, 0, ending, 5.0, reason, "")
    assert respawn == Respawn(0, 0.0, 1)
    assert fork == Fork(2, 0, 1)


def crash_delays(story: Story, count: int, *, at_boot: bool) -> Iterator[float]:
    """Crash so many times; the delays before the attempts that follow."""
    for child in range(1, count + 1):
        if not at_boot:
            story.turn(Ready(child))
        [respawn] = of(Respawn, story.turn(Exited(child, Ending(status=1))))
        assert respawn.failures == child
        if respawn.delay_s:
            assert story.states() == ["backoff"]
            assert of(Fork, story.sleep()) == [Fork(child + 1, 0, 1)]
        yield respawn.delay_s


@pytest.mark.parametrize("random", [0.0, 0.25, 1.0])
def test_backoff_doubles_up_to_ten_seconds_with_jitter(random: float) -> None:
    story = Story(random=lambda: random)
    steady = [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    factor = 0.8 + 0.4 * random
    assert list(crash_delays(story, len(steady), at_boot=False)) == pytest.approx([s * factor for s in steady])


def test_backoff_applies_to_crashes_at_boot_too() -> None:
    assert list(crash_delays(Story(), 5, at_boot=True)) == pytest.approx([0, 0.1, 0.2, 0.4, 0.8])


def test_backoff_stays_bounded_when_a_crash_loop_lasts_for_ever() -> None:
    assert backoff_s(10**9, 1.0) == pytest.approx(12.0)


def test_backoff_starts_over_when_a_worker_was_healthy() -> None:
    story = Story()
    assert list(crash_delays(story, 4, at_boot=False)) == pytest.approx([0, 0.1, 0.2, 0.4])
    story.turn(Ready(5))
    assert of(Respawn, story.turn(Exited(5, KILLED), after_s=HEALTHY_S + 0.1)) == [Respawn(0, 0.0, 1)]


def test_backoff_goes_on_when_a_worker_was_healthy_too_short() -> None:
    story = Story()
    assert list(crash_delays(story, 4, at_boot=False))
    story.turn(Ready(5))
    assert of(Respawn, story.turn(Exited(5, KILLED), after_s=HEALTHY_S - 0.1)) == [Respawn(0, 0.8, 5)]


def test_fork_that_fails_is_a_failed_attempt() -> None:
    story = Story(shards=2)
    assert story.turn(ForkFailed(1, "fork failed: EAGAIN")) == [Respawn(0, 0.0, 1), Fork(3, 0, 1)]
    assert story.turn(ForkFailed(3, "fork failed: EAGAIN")) == [Respawn(0, 0.1, 2)]
    assert story.states() == ["backoff", "booting"]
    assert story.sleep() == [Fork(4, 0, 1)]


@pytest.mark.fault("F34")
def test_child_that_speaks_rubbish_is_killed_and_counted_as_a_crash() -> None:
    story = Story()
    story.boot()
    assert story.turn(Misspoke(1)) == [Kill(1, signal.SIGKILL, "corrupt control messages")]
    ended = story.turn(Exited(1, KILLED))[0]
    assert ended == Ended(1, 0, KILLED, 0.0, Reason.CRASH, "corrupt control messages")


def test_what_is_said_of_a_dead_child_is_ignored() -> None:
    story = Story()
    story.boot()
    story.turn(Exited(1, KILLED))
    for event in (Ready(1), Leaving(1), failed_app(1), Misspoke(1), Exited(1, KILLED), ForkFailed(1, "")):
        assert story.turn(event) == []


# Nobody serves.


def test_supervisor_gives_up_when_nobody_has_served_for_too_long() -> None:
    story = Story(shards=2)
    first_failure_s = story.now_s
    forks = of(Fork, story.done)
    while not story.fleet.finished:
        actions = story.turn(*(Exited(fork.child, Ending(status=1)) for fork in forks))
        forks = of(Fork, actions)
        if not forks:
            forks = of(Fork, story.sleep())
    assert story.done[-1] == Finish(
        ExitCode.UNSERVED, "no worker could serve for 30 s; the last attempt, shard 1: exit status 1"
    )
    assert story.now_s - first_failure_s == pytest.approx(UNSERVED_S)


def test_supervisor_waits_for_a_boot_under_way_before_it_gives_up() -> None:
    story = Story()
    story.turn(Exited(1, Ending(status=1)))
    assert story.turn(after_s=UNSERVED_S * 2) == []
    actions = story.turn(Exited(2, Ending(status=1)))
    assert actions[-1] == Finish(
        ExitCode.UNSERVED, "no worker could serve for 30 s; the last attempt, shard 0: exit status 1"
    )


def test_supervisor_does_not_give_up_for_one_slow_boot_that_fails() -> None:
    """The first failure after a long import starts the count; it does not end it."""
    story = Story()
    story.turn(Exited(1, Ending(status=1)), after_s=UNSERVED_S * 3)
    assert not story.fleet.stopping
    assert story.states() == ["booting"]


def test_supervisor_never_gives_up_while_one_shard_serves() -> None:
    story = Story(shards=2)
    story.turn(Ready(1))
    for child in range(2, 40):
        story.turn(Exited(child, Ending(status=1)))
        if not of(Fork, story.done[-1:]):
            story.sleep()
    assert story.now_s > 1000.0 + 10 * UNSERVED_S
    assert not story.fleet.stopping
    # And once that one is gone too, the count begins, whatever the other has been failing for.
    story.turn(Exited(1, KILLED))
    story.turn(Exited(39, Ending(status=1)), Exited(40, Ending(status=1)), after_s=1.0)
    assert not story.fleet.stopping


# Leaving.


def test_leaver_serves_until_its_successor_is_ready() -> None:
    story = Story(shards=2)
    story.boot()
    assert story.turn(Leaving(1)) == [Fork(3, 0, 1)]
    assert story.states() == ["serving", "serving"]
    promoted, drain = story.turn(Ready(3))
    assert promoted == Promoted(3, 0, 0.0)
    assert drain == Drain(1, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)
    assert story.turn(Exited(1, Ending(status=0))) == [Ended(1, 0, Ending(status=0), 0.0, None, "")]
    assert story.states() == ["serving", "serving"]


def test_leaver_is_killed_when_it_does_not_drain_in_time() -> None:
    story = Story()
    story.boot()
    story.turn(Leaving(1))
    story.turn(Ready(2))
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "drain timeout")]
    assert story.turn(Exited(1, KILLED)) == [Ended(1, 0, KILLED, 32.0, None, "drain timeout")]


def test_leaver_serves_on_while_its_successor_cannot_boot() -> None:
    story = Story()
    story.boot()
    story.turn(Leaving(1))
    for child in range(2, 30):
        story.turn(failed_app(child), Exited(child, Ending(status=4)))
        if not of(Fork, story.done[-1:]):
            story.sleep()
    assert of(Drain, story.done) == []
    assert story.states() == ["serving"]
    assert not story.fleet.stopping


def test_leaver_that_ends_before_its_successor_is_up_leaves_it_the_slot() -> None:
    story = Story()
    story.boot()
    story.turn(Leaving(1))
    assert story.turn(Exited(1, Ending(status=0))) == [Ended(1, 0, Ending(status=0), 0.0, None, "")]
    assert story.states() == ["booting"]


def test_second_leaver_waits_while_the_first_still_drains() -> None:
    story = Story()
    story.boot()
    story.turn(Leaving(1))
    story.turn(Ready(2))
    assert story.turn(Leaving(2)) == []
    assert story.turn(Exited(1, Ending(status=0)))[1:] == [Fork(3, 0, 1)]


def test_worker_that_leaves_while_it_boots_backs_off() -> None:
    """An app that sends itself a TERM at every start must not become a fork bomb."""
    story = Story()
    story.turn(Leaving(1), Exited(1, Ending(status=0)))
    story.turn(Leaving(2), Exited(2, Ending(status=0)))
    assert story.states() == ["backoff"]
    assert {ended.reason for ended in of(Ended, story.done)} == {None}


# Stopping.


def test_stop_drains_workers_then_the_exporter_then_finishes() -> None:
    story = Story(shards=2, exporter=True)
    story.boot()
    assert story.turn(StopAsked()) == [
        Stopping(False, "asked to stop", ExitCode.OK),
        Drain(1, DRAIN_TIMEOUT_S),
        Drain(2, DRAIN_TIMEOUT_S),
        CloseListeners(),
    ]
    assert story.states() == ["draining", "draining"]
    assert of(Drain, story.turn(Exited(1, Ending(status=0)))) == []
    assert of(Drain, story.turn(Exited(2, Ending(status=0)))) == [Drain(3, EXPORTER_STOP_S)]
    assert not story.fleet.finished
    assert story.turn(Exited(3, Ending(status=0)))[-1] == Finish(ExitCode.OK)
    assert story.fleet.finished


def test_stop_kills_what_has_not_drained_in_time() -> None:
    story = Story(exporter=True)
    story.boot()
    story.turn(StopAsked())
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "drain timeout")]
    story.turn(Exited(1, KILLED))
    assert story.fleet.next_deadline_s() == story.now_s + EXPORTER_STOP_S
    assert story.sleep() == [Kill(2, signal.SIGKILL, "drain timeout")]
    assert story.turn(Exited(2, KILLED))[-1] == Finish(ExitCode.OK)
    assert {ended.reason for ended in of(Ended, story.done)} == {None}


def test_stop_ends_a_booting_worker_by_term_and_soon_by_kill() -> None:
    story = Story()
    _, drain, kill, close = story.turn(StopAsked())
    assert drain == Drain(1, DRAIN_TIMEOUT_S)
    assert kill == Kill(1, signal.SIGTERM, "stopped while booting")
    assert close == CloseListeners()
    assert story.fleet.next_deadline_s() == story.now_s + BOOT_STOP_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "stopped while booting")]
    assert story.turn(Exited(1, KILLED))[-1] == Finish(ExitCode.OK)


def test_stop_drains_a_worker_that_came_up_while_it_was_being_stopped() -> None:
    """It may have accepted connections before it saw the TERM: they are not cut."""
    story = Story()
    story.turn(StopAsked())
    assert story.turn(Ready(1), after_s=1.0) == [Promoted(1, 0, 1.0)]  # It has been told already.
    assert story.states() == ["draining"]
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S


def test_stop_finishes_at_once_when_every_slot_is_in_backoff() -> None:
    story = Story()
    story.turn(Exited(1, Ending(status=1)))
    story.turn(Exited(2, Ending(status=1)))
    assert story.states() == ["backoff"]
    assert story.turn(StopAsked()) == [
        Stopping(False, "asked to stop", ExitCode.OK),
        CloseListeners(),
        Finish(ExitCode.OK),
    ]


@pytest.mark.parametrize("again", [StopAsked(), StopAsked(quick=True)])
def test_stop_asked_twice_kills_at_once(again: StopAsked) -> None:
    story = Story(shards=2, exporter=True)
    story.boot()
    story.turn(StopAsked())
    actions = story.turn(again)
    assert {kill.child for kill in of(Kill, actions)} == {1, 2, 3}
    assert story.turn(*(Exited(child, KILLED) for child in (1, 2, 3)))[-1] == Finish(ExitCode.OK)


def test_quick_stop_kills_at_once() -> None:
    story = Story(exporter=True)
    story.boot()
    stopping, *kills, close = story.turn(StopAsked(quick=True))
    story.turn(Exited(1, KILLED))
    assert of(Drain, story.done) == []
    assert stopping == Stopping(True, "asked to stop", ExitCode.OK)
    assert {kill.child for kill in of(Kill, kills)} == {1, 2}
    assert close == CloseListeners()


def test_stop_gives_up_on_a_process_that_hangs_in_the_kernel() -> None:
    story = Story()
    story.boot()
    story.turn(StopAsked(quick=True))
    assert story.fleet.next_deadline_s() == story.now_s + REAP_S
    assert story.sleep() == [Finish(ExitCode.OK)]


def test_crash_during_a_stop_is_not_made_good() -> None:
    story = Story(shards=2, exporter=True)
    story.boot()
    story.turn(StopAsked())
    story.turn(Exited(1, Ending(signum=signal.SIGSEGV)), Exited(3, Ending(status=1)))
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S
    assert of(Fork, story.turn(Exited(2, Ending(status=0)))) == []
    assert story.fleet.finished


def test_stop_asked_during_a_failed_start_keeps_the_failures_code() -> None:
    story = Story(shards=2)
    story.turn(failed_app(1), StopAsked())
    assert story.turn(Exited(1, KILLED), Exited(2, KILLED))[-1] == Finish(
        ExitCode.APP, failed_app(1).message, failed_app(1).detail
    )


# The exporter.


def test_exporter_is_restarted_with_backoff_and_hurts_nobody() -> None:
    story = Story(exporter=True)
    story.turn(Ready(1))
    ended, respawn, fork = story.turn(Exited(2, Ending(status=1)))
    assert ended == Ended(2, None, Ending(status=1), 0.0, Reason.CRASH, "")
    assert respawn == Respawn(None, 0.0, 1)
    assert fork == Fork(3, None, 1)
    assert story.turn(Exited(3, Ending(status=1)))[1] == Respawn(None, 0.1, 2)
    assert story.sleep() == [Fork(4, None, 1)]
    assert of(Respawn, story.turn(Exited(4, KILLED), after_s=HEALTHY_S + 0.1)) == [Respawn(None, 0.0, 1)]
    assert story.states() == ["serving"]


def test_exporter_cannot_leave() -> None:
    story = Story(exporter=True)
    story.boot()
    assert story.turn(Leaving(2)) == []


def test_exporter_that_fails_is_not_the_app() -> None:
    story = Story(exporter=True)
    story.turn(failed_app(2))
    assert not story.fleet.stopping


def test_exporters_failures_do_not_count_as_nobody_serving() -> None:
    story = Story(exporter=True)
    story.turn(Exited(2, Ending(status=1)))
    story.turn(Exited(1, Ending(status=1)), after_s=UNSERVED_S + 1)
    assert not story.fleet.stopping


# Laws.


def test_every_state_has_its_row_and_only_gone_is_final() -> None:
    assert set(NEXT) == set(State)
    assert [state for state in State if not NEXT[state]] == [State.GONE]
    assert all(NEXT[state].get(Cue.EXITED) is State.GONE for state in State if state is not State.GONE)


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        (Ending(status=1), "exit status 1"),
        (Ending(signum=9), "signal 9 SIGKILL"),
        (Ending(signum=40), "signal 40"),
    ],
)
def test_ending_says_how(ending: Ending, how: str) -> None:
    assert str(ending) == how


STEP_NAMES = [
    "ready",
    "ready",
    "app",
    "boot",
    "leaving",
    "misspoke",
    "borrowed",
    "loan refused",
    "scale",
    "exit",
    "kill",
    "die",
    "refuse",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(STEP_NAMES),
        st.integers(0, 30),
        st.sampled_from([0.0, 0.0, 0.0, 0.05, 1.0, 12.0, 33.0, 61.0, 121.0]),
    ),
    max_size=60,
)


@given(
    shards=st.integers(1, 3),
    exporter=st.booleans(),
    steps=STEPS,
    stops=st.lists(st.booleans(), min_size=1, max_size=2),
    after_stop=STEPS,
    jitter=st.floats(0, 1),
)
@settings(deadline=None, derandomize=True, max_examples=500)  # The same ones each time: a red run is a bug.
def test_fleet_keeps_its_laws_whatever_happens(
    shards: int,
    exporter: bool,
    steps: list[tuple[str, int, float]],
    stops: list[bool],
    after_stop: list[tuple[str, int, float]],
    jitter: float,
) -> None:
    """One worker serves a slot at a time; nothing is forked once a stop has begun; a stop always ends, also if no
    child does anything about it and one does not even die when killed."""
    world = World(shards, shards_max=3, exporter=exporter, random=lambda: jitter)
    world.turn()
    for step, pick, after_s in steps:
        world.now_s += after_s
        world.turn(*events_of(world, step, pick))
        if world.finish:
            return
    stopped_s = world.now_s
    for quick in stops:
        if world.finish is None:
            world.turn(StopAsked(quick))
    for step, pick, _ in after_stop:
        if world.finish is None:
            world.turn(*events_of(world, step, pick))
    while world.finish is None:
        deadline_s = world.fleet.next_deadline_s()
        assert deadline_s is not None
        world.now_s = deadline_s
        world.turn(*(Exited(child, KILLED) for child in sorted(world.dying)[1:]))
    bound_s = BOOT_STOP_S + DRAIN_TIMEOUT_S + KILL_GRACE_S + EXPORTER_STOP_S + REAP_S
    assert world.now_s - stopped_s <= bound_s + 1e-6
