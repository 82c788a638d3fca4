"""From one generation of workers to the next, as the fleet decides it."""

from __future__ import annotations

import signal

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
    ReloadBegan,
    Reloaded,
    ReloadFailed,
    ReloadWaits,
    Renew,
    Respawn,
    Serve,
    Serving,
    Stopping,
)
from shardnet.supervisor.events import (
    Ending,
    Exited,
    ForkFailed,
    Leaving,
    Misspoke,
    Ready,
    Reason,
    ReloadAsked,
    RenewalFailed,
    Renewed,
    StopAsked,
)
from shardnet.supervisor.orders import BOOT_STOP_S, DISCARD_S, KILL_GRACE_S
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

ENDED_WELL = Ending(status=0)


def serving(shards: int = 2, *, exporter: bool = False) -> Story:
    """A fleet that serves, with children from 1 on."""
    story = Story(shards, exporter=exporter)
    story.boot()
    return story


def reloading(shards: int = 2) -> Story:
    """The same with a second generation booting, its children following the first one's."""
    story = serving(shards)
    story.turn(ReloadAsked())
    return story


def living(story: Story) -> set[int]:
    return {worker.generation for slot in story.fleet.slots for worker in slot.workers}


# The way that it should go.


def test_reload_forks_a_held_worker_for_each_shard_and_none_for_the_exporter() -> None:
    story = serving(2, exporter=True)
    assert story.turn(ReloadAsked()) == [ReloadBegan(2), Fork(4, 0, 2, held=True), Fork(5, 1, 2, held=True)]
    assert story.states() == ["serving", "serving"]
    assert story.fleet.generation == 1


def test_reload_waits_for_every_worker_then_serves_and_drains_in_one_pass() -> None:
    story = reloading()
    assert story.turn(Ready(3), after_s=0.5) == [Promoted(3, 0, 0.5, held=True)]
    assert story.turn(Ready(4), after_s=0.5) == [
        Promoted(4, 1, 1.0, held=True),
        Reloaded(2, 1.0),
        Serve(3),
        Serve(4),
        Drain(1, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True),
        Drain(2, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True),
    ]
    assert story.states() == ["serving", "serving"]
    assert story.fleet.generation == 2
    assert story.turn(Exited(1, ENDED_WELL), after_s=2.0) == [Ended(1, 0, ENDED_WELL, 3.0, None, "")]
    story.turn(Exited(2, ENDED_WELL))
    assert story.fleet.next_deadline_s() is None


def test_reload_kills_an_old_worker_that_does_not_drain() -> None:
    story = reloading(1)
    story.turn(Ready(2))
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S
    assert story.sleep() == [Kill(1, signal.SIGKILL, "drain timeout")]


def test_worker_of_the_new_generation_that_crashes_later_is_made_good_in_its_generation() -> None:
    story = reloading(1)
    story.turn(Ready(2))
    assert story.turn(Exited(2, KILLED), after_s=1.0) == [
        Ended(2, 0, KILLED, 1.0, Reason.SIGNAL, ""),
        Respawn(0, 0.0, 1),
        Fork(3, 0, 2),
    ]


def test_reload_ends_a_crash_loop() -> None:
    story = serving(2)
    for child in (1, 3):
        story.turn(Exited(child, KILLED))
    assert story.states() == ["backoff", "serving"]
    assert story.turn(ReloadAsked()) == [ReloadBegan(2), Fork(4, 0, 2, held=True), Fork(5, 1, 2, held=True)]
    actions = story.turn(Ready(4), Ready(5))
    assert of(Serve, actions) == [Serve(4), Serve(5)]
    assert story.states() == ["serving", "serving"]
    story.turn(Exited(2, ENDED_WELL))
    assert story.fleet.next_deadline_s() is None
    assert of(Respawn, story.turn(Exited(4, KILLED))) == [Respawn(0, 0.0, 1)]


def test_reload_of_a_fleet_that_was_never_complete_announces_that_it_serves() -> None:
    story = Story(shards=2)
    story.turn(Ready(1), Exited(2, KILLED), Exited(3, KILLED))
    assert of(Serving, story.done) == []
    story.turn(ReloadAsked())
    assert of(Serving, story.turn(Ready(4), Ready(5))) == [Serving()]


# A generation that does not come up.


@pytest.mark.parametrize("other_is_up", [False, True])
def test_failed_worker_discards_its_generation_and_the_old_one_serves_on(other_is_up: bool) -> None:
    story = reloading()
    if other_is_up:
        story.turn(Ready(4))
    failure = failed_app(3)
    actions = story.turn(failure)
    assert actions[0] == ReloadFailed(1, failure.message, failure.detail)
    if other_is_up:
        assert actions[1:] == [Drain(4, DISCARD_S)]
    else:
        assert actions[1:] == [Drain(4, DISCARD_S), Kill(4, signal.SIGTERM, "discarded while booting")]
    ends = story.turn(Exited(3, Ending(status=4)), Exited(4, ENDED_WELL))
    assert [ended.reason for ended in of(Ended, ends)] == [None, None]
    assert len(ends) == 2
    assert story.states() == ["serving", "serving"]
    assert story.fleet.generation == 1
    assert story.fleet.next_deadline_s() is None


@pytest.mark.parametrize(
    ("ending", "why"),
    [(Ending(status=3), "exit status 3"), (KILLED, "signal 9 SIGKILL"), (ENDED_WELL, "exit status 0")],
)
@pytest.mark.parametrize("after_ready", [False, True])
def test_held_worker_that_ends_discards_its_generation(ending: Ending, why: str, after_ready: bool) -> None:
    story = reloading()
    if after_ready:
        story.turn(Ready(4))
    ended, failed, *_ = story.turn(Exited(4, ending))
    assert ended == Ended(4, 1, ending, 0.0, None, "")
    assert failed == ReloadFailed(1, f"shard 1: {why}", "")
    assert of(Respawn, story.done) == []


def test_boot_timeout_discards_the_generation() -> None:
    story = reloading()
    story.turn(Ready(3), after_s=1.0)
    actions = story.sleep()
    assert story.now_s == 1000.0 + BOOT_TIMEOUT_S
    assert actions == [
        Kill(4, signal.SIGKILL, "boot timeout"),
        ReloadFailed(1, "shard 1: boot timeout", ""),
        Drain(3, DISCARD_S),
    ]
    assert story.turn(Exited(4, KILLED)) == [Ended(4, 1, KILLED, BOOT_TIMEOUT_S, None, "boot timeout")]


def test_refused_fork_discards_the_generation_at_once() -> None:
    story = reloading()
    story.fleet.apply(ForkFailed(4, "fork failed: EAGAIN"), story.now_s)
    assert story.fleet.next_deadline_s() == story.now_s
    assert story.turn() == [
        ReloadFailed(1, "shard 1: fork failed: EAGAIN", ""),
        Drain(3, DISCARD_S),
        Kill(3, signal.SIGTERM, "discarded while booting"),
    ]


def test_held_worker_that_speaks_rubbish_discards_its_generation() -> None:
    story = reloading()
    story.turn(Ready(3))
    kill, failed = story.turn(Misspoke(3))[:2]
    assert kill == Kill(3, signal.SIGKILL, "corrupt control messages")
    assert failed == ReloadFailed(1, "shard 0: corrupt control messages", "")


def test_whole_generation_that_fails_at_once_is_one_failure_and_nobody_is_told_anything() -> None:
    story = reloading(3)
    actions = story.turn(*(event for child in (4, 5, 6) for event in (failed_app(child), Exited(child, KILLED))))
    assert len(of(ReloadFailed, actions)) == 1
    assert len(of(Ended, actions)) == 3
    assert len(actions) == 4


@pytest.mark.parametrize("came_up", [False, True])
def test_discarded_worker_that_does_not_go_is_killed(came_up: bool) -> None:
    story = reloading()
    if came_up:
        story.turn(Ready(3))
    story.turn(Exited(4, KILLED))
    within_s = DISCARD_S + KILL_GRACE_S if came_up else BOOT_STOP_S
    assert story.fleet.next_deadline_s() == story.now_s + within_s
    why = "drain timeout" if came_up else "discarded while booting"
    assert story.sleep() == [Kill(3, signal.SIGKILL, why)]


def test_discarded_worker_that_comes_up_after_all_never_serves() -> None:
    story = reloading()
    story.turn(Exited(4, KILLED))
    assert story.turn(Ready(3)) == [Promoted(3, 0, 0.0, held=True)]  # It has been told already.
    assert story.turn(Exited(3, ENDED_WELL)) == [Ended(3, 0, ENDED_WELL, 0.0, None, "")]
    assert of(Serve, story.done) == []


def test_number_of_a_discarded_generation_is_not_used_again() -> None:
    story = reloading(1)
    story.turn(Exited(2, KILLED))
    assert story.turn(ReloadAsked()) == [ReloadBegan(3), Fork(3, 0, 3, held=True)]
    story.turn(Ready(3))
    assert story.fleet.generation == 3


def test_app_that_does_not_load_in_a_new_generation_is_no_reason_to_stop() -> None:
    story = reloading(1)
    story.turn(Exited(1, KILLED))
    story.turn(failed_app(2))
    assert not story.fleet.stopping


# Old workers that end or leave meanwhile.


def test_old_worker_that_dies_during_a_reload_gets_an_old_successor_at_once() -> None:
    story = reloading()
    story.turn(Ready(3))
    assert story.turn(Exited(1, KILLED))[1:] == [Respawn(0, 0.0, 1), Fork(5, 0, 1)]
    assert story.turn(Ready(5)) == [Promoted(5, 0, 0.0)]
    actions = story.turn(Ready(4))
    assert of(Serve, actions) == [Serve(3), Serve(4)]
    assert {drain.child for drain in of(Drain, actions)} == {5, 2}


def test_old_successor_that_still_boots_is_sent_away_when_the_new_generation_serves() -> None:
    story = reloading(1)
    story.turn(Exited(1, KILLED))
    actions = story.turn(Ready(2))
    assert actions[2:] == [
        Serve(2),
        Drain(3, DRAIN_TIMEOUT_S),
        Kill(3, signal.SIGTERM, "replaced while booting"),
    ]
    # What it accepted, if it came up just then, is not cut.
    assert story.turn(Ready(3)) == [Promoted(3, 0, 0.0)]
    assert story.fleet.next_deadline_s() == story.now_s + DRAIN_TIMEOUT_S + KILL_GRACE_S
    assert story.turn(Exited(3, ENDED_WELL)) == [Ended(3, 0, ENDED_WELL, 0.0, None, "")]
    assert story.states() == ["serving"]


def test_old_crash_loop_goes_on_beside_a_reload_and_costs_it_nothing() -> None:
    story = reloading(1)
    story.turn(Exited(1, KILLED), Exited(3, KILLED))
    story.turn(Exited(3, Ending(status=1)))
    assert story.states() == ["booting"]
    assert of(Fork, story.sleep()) == [Fork(4, 0, 1)]
    assert of(Serve, story.turn(Ready(2))) == [Serve(2)]


def test_leaver_waits_for_the_reload_that_is_under_way() -> None:
    story = reloading(1)
    assert story.turn(Leaving(1)) == []
    assert of(Drain, story.turn(Ready(2))) == [Drain(1, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)]
    assert story.turn(Exited(1, ENDED_WELL)) == [Ended(1, 0, ENDED_WELL, 0.0, None, "")]


def test_leaver_gets_its_own_successor_when_the_reload_fails() -> None:
    story = reloading(1)
    story.turn(Leaving(1))
    assert of(Fork, story.turn(Exited(2, KILLED))) == [Fork(3, 0, 1)]
    assert of(Drain, story.turn(Ready(3))) == [Drain(1, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)]


def test_leaver_whose_successor_boots_is_drained_with_the_others() -> None:
    story = serving(1)
    story.turn(Leaving(1))
    story.turn(ReloadAsked())
    actions = story.turn(Ready(3))
    assert of(Serve, actions) == [Serve(3)]
    assert of(Drain, actions) == [Drain(1, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True), Drain(2, DRAIN_TIMEOUT_S)]
    assert of(Kill, actions) == [Kill(2, signal.SIGTERM, "replaced while booting")]


def test_held_worker_that_leaves_serves_until_its_successor_does() -> None:
    story = reloading(1)
    story.turn(Ready(2), Leaving(2))
    story.turn(Exited(1, ENDED_WELL))
    assert of(Fork, story.done)[-1] == Fork(3, 0, 2)
    assert of(Drain, story.turn(Ready(3))) == [Drain(2, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)]


# One after the other.


def test_reloads_asked_for_during_one_are_one_and_say_what_they_wait_for_once() -> None:
    story = reloading()
    for _ in range(5):
        story.turn(ReloadAsked())
    assert of(ReloadWaits, story.done) == [ReloadWaits("generation 2 boots")]
    story.turn(Ready(3), Ready(4))
    story.turn(ReloadAsked())
    assert of(ReloadBegan, story.done) == [ReloadBegan(2)]
    story.turn(Exited(1, ENDED_WELL))
    assert living(story) == {1, 2}
    _, *begun = story.turn(Exited(2, ENDED_WELL))
    assert begun == [ReloadBegan(3), Fork(5, 0, 3, held=True), Fork(6, 1, 3, held=True)]
    story.turn(Ready(5), Ready(6), Exited(3, ENDED_WELL), Exited(4, ENDED_WELL))
    assert len(of(ReloadWaits, story.done)) == 1
    assert len(of(ReloadBegan, story.done)) == 2


def test_reload_asked_for_while_the_old_generation_drains_waits_for_it() -> None:
    story = reloading(1)
    story.turn(Ready(2))
    assert story.turn(ReloadAsked()) == [ReloadWaits("generation 1 drains")]
    assert of(Fork, story.turn(Exited(1, ENDED_WELL))) == [Fork(3, 0, 3, held=True)]


def test_reload_asked_for_while_a_generation_is_discarded_waits_for_it() -> None:
    story = reloading()
    story.turn(Exited(3, KILLED))
    assert story.turn(ReloadAsked()) == [ReloadWaits("generation 2 is being discarded")]
    assert of(Fork, story.turn(Exited(4, KILLED))) == [Fork(5, 0, 3, held=True), Fork(6, 1, 3, held=True)]


def test_reload_asked_for_during_the_first_boot_comes_after_it() -> None:
    story = Story(shards=2)
    assert story.turn(ReloadAsked(), ReloadAsked()) == [ReloadWaits("the first workers boot")]
    assert of(ReloadBegan, story.turn(Ready(1))) == []
    assert story.turn(Ready(2))[1:] == [
        Serving(),
        ReloadBegan(2),
        Fork(3, 0, 2, held=True),
        Fork(4, 1, 2, held=True),
    ]


def test_reload_does_not_wait_for_a_shard_that_never_comes_up() -> None:
    story = Story(shards=2)
    story.turn(Ready(1), ReloadAsked())
    assert of(ReloadBegan, story.turn(Exited(2, KILLED))) == [ReloadBegan(2)]


# With a new program.


def test_renewing_fleet_asks_for_a_program_before_it_forks_a_generation() -> None:
    story = Story(2, exporter=True, renews=True)
    story.boot()
    assert story.turn(ReloadAsked()) == [Renew()]
    drain, began, exporter, *held = story.renew(Renewed())
    assert drain == Drain(3, EXPORTER_STOP_S)  # The exporter is of the program that was.
    assert began == ReloadBegan(2)
    assert exporter == Fork(4, None, 1)
    assert held == [Fork(5, 0, 2, held=True), Fork(6, 1, 2, held=True)]
    actions = story.turn(Ready(5), Ready(6), Exited(3, ENDED_WELL), after_s=2.0)
    assert of(Reloaded, actions) == [Reloaded(2, 2.0)]
    assert of(Serving, actions) == []
    assert {drain.child for drain in of(Drain, actions)} == {1, 2}
    story.turn(Exited(1, ENDED_WELL), Exited(2, ENDED_WELL))
    assert story.turn(ReloadAsked()) == [Renew()]
    assert of(ReloadBegan, story.renew(Renewed())) == [ReloadBegan(3)]


def test_upgrade_is_a_reload_that_starts_with_a_new_program() -> None:
    story = Story(2)
    story.boot()
    assert story.turn(ReloadAsked(upgrade=True)) == [Renew()]
    assert story.renew(Renewed())[0] == ReloadBegan(2)
    story.turn(*(Ready(fork.child) for fork in of(Fork, story.done) if fork.held))
    story.turn(Exited(1, ENDED_WELL), Exited(2, ENDED_WELL))
    assert story.turn(ReloadAsked())[0] == ReloadBegan(3)  # The next one is an ordinary one.


def test_upgrade_that_is_refused_leaves_everything_as_it_was() -> None:
    story = Story(2)
    story.boot()
    story.turn(ReloadAsked(upgrade=True))
    assert of(ReloadFailed, story.turn(RenewalFailed("it does not start", ""))) == [
        ReloadFailed(1, "it does not start", "")
    ]
    assert story.states() == ["serving", "serving"]


def test_upgrade_that_is_asked_for_while_a_reload_is_under_way_follows_it() -> None:
    story = Story(1)
    story.boot()
    story.turn(ReloadAsked())
    assert of(Renew, story.turn(ReloadAsked(upgrade=True))) == []
    story.turn(Ready(2))
    assert of(Renew, story.turn(Exited(1, ENDED_WELL))) == [Renew()]


def test_renewed_fleet_wants_to_plan_at_once() -> None:
    story = Story(renews=True)
    story.boot()
    story.turn(ReloadAsked())
    story.fleet.apply(Renewed(), story.now_s)
    assert story.fleet.next_deadline_s() == story.now_s


def test_renewal_that_fails_leaves_everything_as_it_was() -> None:
    story = Story(2, renews=True)
    story.boot()
    story.turn(ReloadAsked())
    assert story.renew(RenewalFailed("app:handler does not import", "why")) == [
        ReloadFailed(1, "app:handler does not import", "why")
    ]
    assert story.states() == ["serving", "serving"]
    assert story.turn(Exited(1, KILLED), after_s=1.0)[1:] == [Respawn(0, 0.0, 1), Fork(3, 0, 1)]
    story.turn(Ready(3))
    assert story.turn(ReloadAsked()) == [Renew()]
    assert story.renew(Renewed())[0] == ReloadBegan(2)


def test_program_that_cannot_be_replaced_goes_on_with_the_fleet_that_it_has() -> None:
    story = Story(renews=True)
    story.boot()
    story.turn(ReloadAsked())
    assert story.turn(RenewalFailed("no memory", "")) == [ReloadFailed(1, "no memory", "")]
    assert story.turn(Exited(1, KILLED))[1:] == [Respawn(0, 0.0, 1), Fork(2, 0, 1)]


def test_new_program_knows_deadlines_backoff_and_who_leaves() -> None:
    story = Story(3, renews=True)
    story.boot()
    story.turn(Exited(1, KILLED))
    story.turn(Exited(4, KILLED))  # Shard 0 backs off.
    story.turn(Leaving(2))  # Shard 1 has a leaver and, since now, a successor that boots.
    story.turn(ReloadAsked())
    story.renew(RenewalFailed("no", ""))
    assert story.states() == ["backoff", "serving", "serving"]
    assert of(Fork, story.sleep()) == [Fork(6, 0, 1)]
    assert of(Drain, story.turn(Ready(5))) == [Drain(2, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)]
    story.turn(Exited(2, ENDED_WELL), Exited(5, ENDED_WELL))
    story.turn(Ready(7))
    assert story.sleep() == [Kill(6, signal.SIGKILL, "boot timeout")]


def test_stop_that_comes_with_the_new_program_forks_nobody() -> None:
    story = Story(renews=True)
    story.boot()
    story.turn(ReloadAsked())
    assert of(Fork, story.turn(Renewed(), StopAsked())) == []
    assert story.turn(Exited(1, ENDED_WELL))[-1] == Finish(ExitCode.OK)


# Stopping.


def test_stop_during_a_reload_stops_both_generations_without_a_spread() -> None:
    story = reloading()
    story.turn(Ready(3), ReloadAsked())
    assert story.turn(StopAsked()) == [
        Stopping(False, "asked to stop", ExitCode.OK),
        Drain(1, DRAIN_TIMEOUT_S),
        Drain(3, DRAIN_TIMEOUT_S),
        Drain(2, DRAIN_TIMEOUT_S),
        Drain(4, DRAIN_TIMEOUT_S),
        Kill(4, signal.SIGTERM, "stopped while booting"),
        CloseListeners(),
    ]
    actions = story.turn(*(Exited(child, ENDED_WELL) for child in (1, 2, 3, 4)))
    assert story.fleet.finished
    assert of(ReloadFailed, actions) == []
    assert {ended.reason for ended in of(Ended, actions)} == {None}


def test_stop_lets_a_held_worker_serve_what_is_queued_where_nobody_else_does() -> None:
    story = reloading()
    story.turn(Ready(3), Exited(1, KILLED))
    actions = story.turn(StopAsked())
    assert of(Serve, actions) == [Serve(3)]
    assert actions.index(Serve(3)) < actions.index(Drain(3, DRAIN_TIMEOUT_S))


def test_reload_asked_for_during_a_stop_is_none() -> None:
    story = serving(1)
    story.turn(StopAsked())
    assert story.turn(ReloadAsked()) == []
    story.turn(Exited(1, ENDED_WELL))
    assert of(ReloadBegan, story.done) == []
    assert story.fleet.finished


def test_quick_stop_during_a_reload_kills_both_generations() -> None:
    story = reloading()
    actions = story.turn(StopAsked(quick=True))
    assert {kill.child for kill in of(Kill, actions)} == {1, 2, 3, 4}


# Laws.

STEP_NAMES = (
    "reload", "reload", "up", "up", "ready", "ready", "app", "boot", "leaving", "misspoke", "borrowed",
    "loan refused", "scale", "scale", "upgrade", "exit", "exit", "kill",
    "die", "refuse", "refuse renewal",
)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from(STEP_NAMES),
        st.integers(0, 30),
        st.sampled_from([0.0, 0.0, 0.0, 0.05, 1.0, 3.0, 12.0, 33.0, 61.0, 121.0]),
    ),
    max_size=60,
)


@given(shards=st.integers(1, 3), exporter=st.booleans(), renews=st.booleans(), steps=STEPS, jitter=st.floats(0, 1))
@settings(deadline=None, derandomize=True, max_examples=700)  # The same ones each time: a red run is a bug.
def test_fleet_keeps_its_laws_through_reloads(
    shards: int, exporter: bool, renews: bool, steps: list[tuple[str, int, float]], jitter: float
) -> None:
    """The laws that `World` checks after each turn: at most two generations live; no slot has two workers that accept,
    or none without one that boots or waits for its turn; held workers never accept, and their ends are no restarts. A
    stop always ends; and left alone in a world that works, every fleet gets to serve whole, in its last generation."""
    world = World(shards, shards_max=3, exporter=exporter, random=lambda: jitter, renews=renews)
    world.turn()
    for step, pick, after_s in steps:
        world.now_s += after_s
        world.turn(*events_of(world, step, pick))
        if world.finish:
            return
    settle(world)
    if world.finish is None:
        world.turn(ReloadAsked())
        settle(world)
        assert world.finish is None
        assert {worker.generation for slot in world.fleet.slots for worker in slot.workers} == {world.fleet.generation}
        stopped_s = world.now_s
        world.turn(StopAsked())
        while world.finish is None:
            deadline_s = world.fleet.next_deadline_s()
            assert deadline_s is not None
            world.now_s = deadline_s
            world.turn(*(Exited(child, KILLED) for child in sorted(world.dying)[1:]))
        bound_s = BOOT_STOP_S + DRAIN_TIMEOUT_S + KILL_GRACE_S + EXPORTER_STOP_S + REAP_S
        assert world.now_s - stopped_s <= bound_s + 1e-6


def settle(world: World) -> None:
    """From now on forks succeed, workers come up, and those that are told to go, go."""
    world.refuse_forks = world.refuse_renewals = False
    for _ in range(100):
        world.turn(*(Ready(child) for child, shard in sorted(world.alive.items()) if shard is not None))
        world.turn(*(Exited(child, ENDED_WELL) for child in sorted(world.told_to_go & world.alive.keys())))
        world.turn(*(Exited(child, KILLED) for child in sorted(world.dying)))
        deadline_s = world.fleet.next_deadline_s()
        if world.finish or deadline_s is None:
            return
        world.now_s = deadline_s
    raise AssertionError("the fleet does not come to rest")
