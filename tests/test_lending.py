"""Whose listeners are lent to whom, and until when; that nothing stays unread whatever happens, `World` checks."""

from __future__ import annotations

import signal

import pytest

from shardnet.supervisor.actions import Drain, Fork, GiveBack, Lend, Promoted, Respawn
from shardnet.supervisor.events import (
    Borrowed,
    Ending,
    Exited,
    Leaving,
    LoanRefused,
    Ready,
    ReloadAsked,
    Renewed,
    StopAsked,
)
from shardnet.supervisor.lending import ANSWER_S, REFUSED_S
from tests.fleet_kit import KILLED, Story, of

EXITED = Ending(status=0)


def serving(shards: int, *, renews: bool = False) -> Story:
    """All shards serve, by the children 1 to `shards`."""
    story = Story(shards, lends=True, renews=renews)
    story.boot()
    return story


def test_crashed_workers_listeners_are_lent_before_its_successor_is_forked() -> None:
    story = serving(2)
    respawn, lend, fork = story.turn(Exited(1, KILLED))[1:]
    assert respawn == Respawn(0, 0.0, 1)
    assert lend == Lend(2, 0, 1)
    assert fork == Fork(3, 0, 1)


def test_listeners_are_taken_back_when_the_successor_is_ready() -> None:
    story = serving(2)
    story.turn(Exited(1, KILLED))
    assert story.turn(Borrowed(2, 1)) == []
    assert story.turn(Ready(3), after_s=0.5) == [Promoted(3, 0, 0.5), GiveBack(2, 1)]
    assert story.turn(after_s=100.0) == []


def test_nobody_lends_while_the_first_workers_boot() -> None:
    story = Story(3, lends=True)
    assert of(Lend, story.turn(Ready(1))) == []
    assert of(Lend, story.turn(Exited(2, KILLED))) == [Lend(1, 1, 1)]


def test_one_shard_alone_has_nobody_to_lend_to() -> None:
    story = serving(1)
    assert of(Lend, story.turn(Exited(1, KILLED))) == []


def test_listeners_wait_for_somebody_who_accepts() -> None:
    story = serving(2)
    assert of(Lend, story.turn(Exited(1, KILLED), Exited(2, KILLED))) == []
    assert of(Lend, story.turn(Ready(4))) == [Lend(4, 0, 1)]


def test_loans_are_spread() -> None:
    story = serving(6)
    lends = of(Lend, story.turn(*(Exited(child, KILLED) for child in (1, 2, 3, 4))))
    assert sorted(lend.child for lend in lends) == [5, 5, 6, 6]
    assert [lend.shard for lend in lends] == [0, 1, 2, 3]


def test_borrower_that_dies_is_replaced_at_once() -> None:
    story = serving(3)
    story.turn(Exited(1, KILLED))
    story.turn(Borrowed(2, 1))
    assert of(Lend, story.turn(Exited(2, KILLED))) == [Lend(3, 0, 2), Lend(3, 1, 3)]


def test_borrower_that_refuses_is_passed_over_for_a_while() -> None:
    story = serving(3)
    story.turn(Exited(1, KILLED))
    assert story.turn(LoanRefused(2, 1, "too many open files")) == [Lend(3, 0, 2)]
    assert story.turn(LoanRefused(3, 2, "too many open files"), after_s=0.1) == []
    assert story.turn(after_s=REFUSED_S - 0.1) == [Lend(2, 0, 3)]


def test_loan_that_is_refused_by_the_only_sibling_is_tried_again_when_that_is_due() -> None:
    story = serving(2)
    story.turn(Exited(1, KILLED))
    story.turn(LoanRefused(2, 1, "too many open files"))
    refused_s = story.now_s
    assert story.sleep() == [Lend(2, 0, 2)]
    assert story.now_s == pytest.approx(refused_s + REFUSED_S)


def test_borrower_that_does_not_answer_is_not_waited_for() -> None:
    story = serving(3)
    story.turn(Exited(1, KILLED))
    assert story.sleep() == [Lend(3, 0, 2)]
    assert story.turn(Borrowed(3, 2), after_s=ANSWER_S) == []
    assert story.turn(Ready(4))[1:] == [GiveBack(2, 1), GiveBack(3, 2)]


def test_answer_to_another_loan_means_nothing() -> None:
    story = serving(3)
    story.turn(Exited(1, KILLED))
    story.turn(Borrowed(3, 1), LoanRefused(2, 7, "what?"), LoanRefused(3, 1, "what?"))
    assert story.sleep() == [Lend(3, 0, 2)]


def test_one_that_leaves_is_asked_last() -> None:
    story = serving(3)
    story.turn(Leaving(2))
    assert of(Lend, story.turn(Exited(1, KILLED))) == [Lend(3, 0, 1)]


def test_borrower_that_drains_hands_on_what_it_was_lent() -> None:
    story = serving(3)
    story.turn(Exited(1, KILLED))
    story.turn(Borrowed(2, 1))
    story.turn(Leaving(2))  # Child 5 boots to succeed it.
    actions = story.turn(Ready(5))
    assert [drain.child for drain in of(Drain, actions)] == [2]
    assert of(Lend, actions) == [Lend(3, 0, 2)]


def test_new_generation_takes_over_what_the_old_one_was_lent() -> None:
    story = serving(2)
    story.turn(Exited(1, KILLED))
    story.turn(ReloadAsked())
    held = [fork.child for fork in of(Fork, story.done) if fork.held]
    actions = story.turn(*map(Ready, held))
    assert 2 in {drain.child for drain in of(Drain, actions)}
    assert of(Lend, actions) == []
    assert of(GiveBack, actions) == []  # The one who drains closes them by itself.


def test_loans_are_known_to_the_program_that_goes_on() -> None:
    story = serving(2, renews=True)
    story.turn(Exited(1, KILLED))
    story.turn(Borrowed(2, 1))
    story.turn(ReloadAsked())
    story.renew(Renewed())
    assert of(Lend, story.turn(after_s=1.0)) == []
    assert of(GiveBack, story.turn(Ready(3))) == [GiveBack(2, 1)]
    assert of(Lend, story.turn(Exited(3, KILLED))) == [Lend(2, 0, 2)]


def test_stop_lends_nothing_more() -> None:
    story = serving(2)
    story.turn(StopAsked())
    assert of(Lend, story.turn(Exited(1, Ending(signum=signal.SIGTERM)))) == []
    assert of(Lend, story.turn(Exited(2, EXITED))) == []
