"""When connections were accepted, by their numbers: roughly, and in little memory however many there are.

A time in each connection would be a twentieth of what an idle one costs. Numbers ascend, so a few points of number and
time say of any number when it was given: between two points the time is interpolated. Points are set at most every
`TICK_S`. When there are too many, every second one of the older half goes, so they are the denser the younger: the
error is a few percent of the age.

Lives here: numbers and times. Must not live here: clocks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Final

__all__ = ["Ages"]

TICK_S: Final = 0.002
POINTS_MAX: Final = 1024


class Ages:
    """The ages of things that are numbered in the order in which they begin."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._times_s = array("d")

    def note(self, number: int, now_s: float) -> None:
        """The thing of this number, the highest so far, begins now."""
        times_s = self._times_s
        if times_s and now_s < times_s[-1] + TICK_S:
            return
        self._numbers.append(number)
        times_s.append(now_s)
        if len(times_s) > POINTS_MAX:
            half = POINTS_MAX // 2
            self._numbers = self._numbers[:half:2] + self._numbers[half:]
            self._times_s = times_s[:half:2] + times_s[half:]

    def age_s(self, number: int, now_s: float) -> float:
        """How long ago the thing of this number began; it was noted."""
        after = bisect_right(self._numbers, number)
        at_s = self._times_s[after - 1]
        if after < len(self._numbers):
            first, next_ = self._numbers[after - 1], self._numbers[after]
            at_s += (self._times_s[after] - at_s) * (number - first) / (next_ - first)
        return max(0.0, now_s - at_s)
