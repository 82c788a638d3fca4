"""Ages: right to a few percent, however many things there are, in bounded memory."""

from __future__ import annotations

import random

import pytest

from shardnet.ages import POINTS_MAX, TICK_S, Ages

ERROR_MAX = 0.05


@pytest.mark.parametrize("per_s", [1, 50, 1000, 20000])
def test_ages_are_right_to_a_few_percent(per_s: int) -> None:
    """Law: whatever the rate, and whether a thing is young or old."""
    chance = random.Random(per_s)
    ages, begun_s, now_s = Ages(), {}, 0.0
    for number in range(1, 100_000):
        now_s += chance.expovariate(per_s)
        ages.note(number, now_s)
        if number % 97 == 0:
            begun_s[number] = now_s
    for number, at_s in begun_s.items():
        assert abs(ages.age_s(number, now_s) - (now_s - at_s)) <= max(TICK_S, ERROR_MAX * (now_s - at_s))
    assert len(ages._times_s) <= POINTS_MAX


def test_ages_are_right_when_things_begin_in_bursts() -> None:
    ages = Ages()
    for number in range(1, 1001):
        ages.note(number, 10.0)
    for number in range(1001, 2001):
        ages.note(number, 500.0)
    assert ages.age_s(1, 510.0) == 500.0
    assert ages.age_s(1001, 510.0) == 10.0
    assert ages.age_s(2000, 510.0) == 10.0


def test_age_is_never_negative() -> None:
    ages = Ages()
    ages.note(1, 5.0)
    assert ages.age_s(1, 4.9) == 0.0
