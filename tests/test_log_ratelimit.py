"""The token bucket that limits what peers can make us log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.log import RateLimit


def test_burst_is_allowed_then_suppressed_then_told() -> None:
    limit = RateLimit(burst=3, per_s=1.0)
    assert [limit.allow(100.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert limit.allow(100.9) is None
    assert limit.allow(101.0) == 3
    assert limit.allow(101.0) is None


def test_rest_saves_no_more_than_a_burst() -> None:
    limit = RateLimit(burst=2, per_s=10.0)
    assert [limit.allow(0.0) for _ in range(2)] == [0, 0]
    assert [limit.allow(1e9) for _ in range(3)] == [0, 0, None]


def test_clock_that_steps_back_gives_nothing_and_takes_nothing() -> None:
    limit = RateLimit(burst=1, per_s=1.0)
    assert limit.allow(10.0) == 0
    assert limit.allow(5.0) is None
    assert limit.allow(10.5) is None
    assert limit.allow(11.0) == 2


def test_rate_far_below_one_a_second() -> None:
    limit = RateLimit(burst=1, per_s=0.1)
    assert limit.allow(0.0) == 0
    assert limit.allow(9.5) is None
    assert limit.allow(10.5) == 1


@pytest.mark.parametrize(("burst", "per_s"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_limit_that_lets_nothing_through_is_refused(burst: int, per_s: float) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        RateLimit(burst, per_s)


@given(st.integers(1, 5), st.floats(0.01, 100.0), st.lists(st.floats(0.0, 2.0), max_size=60))
def test_every_call_is_allowed_or_told_of_later_and_the_rate_holds(
    burst: int, per_s: float, gaps_s: list[float]
) -> None:
    limit = RateLimit(burst, per_s)
    now_s = 0.0
    allowed = told = suppressed = 0
    for gap_s in gaps_s:
        now_s += gap_s
        answer = limit.allow(now_s)
        if answer is None:
            suppressed += 1
        else:
            allowed += 1
            told += answer
            assert told == suppressed
    assert allowed <= burst + now_s * per_s + 1e-6
