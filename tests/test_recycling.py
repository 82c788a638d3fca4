"""Which workers are replaced for their age or size, when, and how many at a time."""

from __future__ import annotations

import os

import pytest

from shardnet.memory import proportional_bytes
from shardnet.supervisor.actions import Drain, Fork, Recycle
from shardnet.supervisor.events import Ending, Exited, Ready, Reason, ReloadAsked, Seen, Weighed
from shardnet.supervisor.lifecycle import Fleet
from shardnet.supervisor.orders import Patience
from shardnet.supervisor.recycling import JITTER
from tests.fleet_kit import KILLED, Story, of

LIFETIME_S = 1000.0
MEMORY_MAX_BYTES = 1 << 30
ENDED_WELL = Ending(status=0)


class Aging(Story):
    """Three shards, by the children 1 to 3. `random`: how much below the limits each of them is replaced, in turn."""

    def __init__(self, *random: float) -> None:
        rest = list(random)
        patience = Patience(120.0, 30.0, lifetime_s=LIFETIME_S, memory_max_bytes=MEMORY_MAX_BYTES)
        self.fleet = Fleet(3, patience, exporter=False, random=lambda: rest.pop(0) if rest else 0.0)
        self.now_s = 0.0
        self.done = []
        self.turn()
        self.boot()


def test_worker_that_has_reached_its_lifetime_is_succeeded_and_then_drains() -> None:
    story = Aging()
    actions = story.sleep()
    assert story.now_s == LIFETIME_S
    assert of(Recycle, actions) == [Recycle(1, Reason.LIFETIME, "it has reached its lifetime")]
    assert of(Fork, actions) == [Fork(4, 0, 1)]
    assert of(Drain, actions) == []
    assert [drain.child for drain in of(Drain, story.turn(Ready(4)))] == [1]


def test_one_at_a_time() -> None:
    story = Aging()
    story.sleep()
    assert of(Recycle, story.turn(after_s=5.0)) == []
    assert of(Recycle, story.turn(Ready(4))) == [Recycle(2, Reason.LIFETIME, "it has reached its lifetime")]
    assert of(Recycle, story.turn(Exited(1, ENDED_WELL))) == []


def test_ages_differ_so_that_they_do_not_go_together() -> None:
    story = Aging(1.0, 0.5, 0.0)
    times_s = []
    for child in (4, 5, 6):
        assert len(of(Recycle, story.sleep())) == 1
        times_s.append(story.now_s)
        story.turn(Ready(child))
        story.turn(*(Exited(drain.child, ENDED_WELL) for drain in of(Drain, story.done)))
    assert times_s == pytest.approx([LIFETIME_S * (1 - JITTER), LIFETIME_S * (1 - JITTER / 2), LIFETIME_S])


def test_worker_that_has_grown_is_replaced() -> None:
    story = Aging(0.0, 1.0)
    assert of(Recycle, story.turn(Weighed(1, MEMORY_MAX_BYTES))) == []
    grown = int(MEMORY_MAX_BYTES * (1 - JITTER)) + 2
    assert of(Recycle, story.turn(Weighed(2, grown))) == [Recycle(2, Reason.MEMORY, f"it has {grown} bytes of memory")]


def test_nobody_is_recycled_during_a_reload_or_while_a_shard_has_nobody() -> None:
    story = Aging()
    story.turn(ReloadAsked())
    held = [fork.child for fork in of(Fork, story.done) if fork.held]
    assert of(Recycle, story.turn(Weighed(1, 1 << 40))) == []
    story.turn(*map(Ready, held))
    story.turn(*(Exited(child, ENDED_WELL) for child in (1, 2, 3)))
    assert of(Recycle, story.turn(Exited(held[0], KILLED))) == []
    assert of(Recycle, story.turn(Weighed(held[1], 1 << 40))) == []
    successor = max(fork.child for fork in of(Fork, story.done))
    assert of(Recycle, story.turn(Ready(successor))) == [
        Recycle(held[1], Reason.MEMORY, f"it has {1 << 40} bytes of memory")
    ]


def test_worker_that_is_stuck_makes_the_others_wait() -> None:
    story = Aging()
    story.turn(Seen(1, 7, queued=True))
    story.turn(Seen(1, 7, queued=True))
    story.turn(Seen(1, 7, queued=True), after_s=1.0)
    assert of(Recycle, story.turn(Weighed(2, 1 << 40))) == []
    assert of(Recycle, story.turn(Seen(1, 8, queued=False))) == [
        Recycle(2, Reason.MEMORY, f"it has {1 << 40} bytes of memory")
    ]


def test_memory_is_asked_of_the_kernel() -> None:
    before = proportional_bytes(os.getpid())
    assert before is not None
    ballast = b"x" * (32 << 20)
    after = proportional_bytes(os.getpid())
    assert after is not None
    assert (24 << 20) < after - before < (64 << 20)
    del ballast
    assert proportional_bytes(0) is None
