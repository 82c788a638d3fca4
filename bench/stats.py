"""Medians, spreads, ratios and lines: what is made of the rounds' figures, on the standard library alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Line", "Spread", "ratio", "regress", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, and the quartiles: half of the rounds lie between `low` and `high`.

    The least and the greatest are left to the raw results. On a shared machine they tell of its other users, and the
    more rounds there are, the further apart they lie.
    """

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """y = slope * x + intercept, and how much of what y does it explains: 1 is all."""

    slope: float
    intercept: float
    r_squared: float


def spread(values: Iterable[float]) -> Spread | None:
    """The median and the quartiles; None when there are no values."""
    known = list(values)
    return Spread(statistics.median(known), *_quartiles(known)) if known else None


def ratio(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """Ratio of medians, and the quartiles of the ratios within a round, of figures by round.

    Only rounds that both have count: what happened to one alone says nothing. None when there is no such round.
    """
    both = [(mine[number], theirs[number]) for number in sorted(mine.keys() & theirs.keys()) if theirs[number]]
    if not both:
        return None
    middle = statistics.median(own for own, _ in both) / statistics.median(other for _, other in both)
    ratios = [own / other for own, other in both]
    return Spread(middle, *_quartiles(ratios))


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def regress(points: Mapping[int, float]) -> Line | None:
    """The line of least squares; None for fewer than three points, through which there is always one, or nearly."""
    if len(points) < 3:
        return None
    xs, ys = list(points.keys()), list(points.values())
    line = statistics.linear_regression(xs, ys)
    # What does not change has no correlation, and a level line explains it wholly.
    r_squared = 1.0 if len(set(ys)) == 1 else statistics.correlation(xs, ys) ** 2
    return Line(line.slope, line.intercept, r_squared)
