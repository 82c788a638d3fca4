"""How a fleet grows and shrinks among the listeners that it has."""

from __future__ import annotations

import signal

import pytest

from shardnet.supervisor.actions import Drain, Fork, GiveBack, Kill, Lend, Reloaded, ReloadWaits, Scaled, Serving
from shardnet.supervisor.events import Borrowed, Ending, Exited, Ready, ReloadAsked, ScaleAsked, StopAsked
from tests.fleet_kit import DRAIN_SPREAD_S, DRAIN_TIMEOUT_S, KILLED, Story, of

ENDED_WELL = Ending(status=0)


def serving(shards: int, shards_max: int) -> Story:
    story = Story(shards, shards_max=shards_max, lends=True)
    story.boot()
    return story


def test_vacant_shards_are_lent_from_the_start_and_evenly() -> None:
    story = serving(2, 6)
    assert story.states() == ["serving", "serving", *["vacant"] * 4]
    assert sorted(lend.child for lend in of(Lend, story.done)) == [1, 1, 2, 2]
    assert len(of(Fork, story.done)) == 2
    assert of(Serving, story.done) == [Serving()]


def test_shard_that_is_wanted_takes_its_listeners_back_when_it_is_ready() -> None:
    story = serving(1, 2)
    story.turn(Borrowed(1, 1))
    assert story.turn(ScaleAsked(2)) == [Scaled(2, 1, 2), Fork(2, 1, 1)]
    assert of(GiveBack, story.turn(Ready(2), after_s=1.0)) == [GiveBack(1, 1)]
    assert story.states() == ["serving", "serving"]


def test_shard_that_is_no_longer_wanted_is_lent_and_drains() -> None:
    story = serving(2, 2)
    scaled, drain, lend = story.turn(ScaleAsked(1))
    assert scaled == Scaled(1, 2, 2)
    assert drain == Drain(2, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)
    assert lend == Lend(1, 1, 1)
    assert story.states() == ["serving", "draining"]
    assert of(Fork, story.turn(Exited(2, ENDED_WELL))) == []
    assert story.states() == ["serving", "vacant"]


@pytest.mark.parametrize(("asked", "shards"), [(-3, 1), (0, 1), (1, 1), (3, 3), (9, 3)])
def test_fleet_stays_between_one_shard_and_all(asked: int, shards: int) -> None:
    story = serving(2, 3)
    assert of(Scaled, story.turn(ScaleAsked(asked))) == [Scaled(shards, 2, 3)]
    assert story.fleet.shards == shards


def test_last_one_that_serves_goes_only_when_another_does() -> None:
    story = serving(2, 2)
    story.turn(Exited(1, KILLED))
    assert of(Drain, story.turn(ScaleAsked(1))) == []
    assert of(Drain, story.turn(Ready(3))) == [Drain(2, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, succeeded=True)]


def test_worker_that_boots_for_a_shard_no_longer_wanted_is_sent_away() -> None:
    story = serving(1, 2)
    story.turn(ScaleAsked(2))
    assert Kill(2, signal.SIGTERM, "its shard is no longer wanted") in story.turn(ScaleAsked(1))
    assert of(Fork, story.turn(Exited(2, Ending(signum=signal.SIGTERM)))) == []
    assert of(Fork, story.turn(ScaleAsked(2))) == [Fork(3, 1, 1)]


def test_borrower_that_dies_while_a_vacant_shard_boots_is_replaced() -> None:
    story = serving(2, 3)
    [borrower] = [lend.child for lend in of(Lend, story.done)]
    story.turn(ScaleAsked(3))
    lends = of(Lend, story.turn(Exited(borrower, KILLED)))
    assert {lend.shard for lend in lends} == {borrower - 1, 2}


def test_no_shard_has_more_drainers_than_the_board_has_rows() -> None:
    story = serving(1, 2)
    for child in (2, 3):
        story.turn(ScaleAsked(2))
        story.turn(Ready(child))
        story.turn(ScaleAsked(1))
    assert of(Fork, story.turn(ScaleAsked(2))) == []
    assert of(ReloadWaits, story.turn(ReloadAsked())) == [ReloadWaits("2 workers of shard 1 drain")]
    assert Fork(4, 1, 1) in story.turn(Exited(2, ENDED_WELL))


def test_reload_is_complete_without_vacant_shards_and_with_those_that_came_meanwhile() -> None:
    story = serving(2, 3)
    story.turn(ReloadAsked())
    held = [fork.child for fork in of(Fork, story.done) if fork.held]
    assert len(held) == 2
    more = of(Fork, story.turn(ScaleAsked(3)))
    assert [(fork.shard, fork.held) for fork in more] == [(2, False), (2, True)]
    assert of(Reloaded, story.turn(*map(Ready, held))) == []
    assert len(of(Reloaded, story.turn(*(Ready(fork.child) for fork in more)))) == 1


def test_reload_goes_on_without_a_shard_that_is_no_longer_wanted() -> None:
    story = serving(2, 2)
    story.turn(ReloadAsked())
    first, _second = [fork.child for fork in of(Fork, story.done) if fork.held]
    assert of(Reloaded, story.turn(Ready(first))) == []
    assert len(of(Reloaded, story.turn(ScaleAsked(1)))) == 1
    assert story.states() == ["serving", "draining"]


def test_size_is_no_longer_changed_once_the_stop_has_begun() -> None:
    story = serving(1, 2)
    story.turn(StopAsked())
    assert story.turn(ScaleAsked(2)) == []
