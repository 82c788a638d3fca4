"""One series: a counter, gauge or histogram under one combination of labels. Compiled, a call takes some 30 ns.

Lives here: what a call adds to which cell. Must not live here: names, and where the cells are.
"""

from __future__ import annotations

from array import array

from shardnet.errors import UsageError
from shardnet.metrics.registry import Place
from shardnet.watcher import _sys

__all__ = ["CounterSeries", "GaugeSeries", "HistogramSeries", "Series"]


class Series:
    """Where one series is counted; nowhere, as long as labels are missing."""

    __slots__ = ("_at", "_counts", "_counts_kept", "_values", "_values_kept")

    def __init__(self) -> None:
        self._at = -1  # The first of its cells.

    def settle(self, place: Place) -> None:
        """Count there from now on."""
        self._counts_kept, self._values_kept = place.counts, place.values
        self._counts = _sys.cells_of(self._counts_kept)
        self._values = _sys.values_of(self._values_kept)
        self._at = place.first

    def _unplaced(self) -> UsageError:
        return UsageError("this metric has labels: call .labels(...) first, which gives the series to be counted in")


class CounterSeries(Series):
    """A number that grows: how often something happened, or how much of it there was."""

    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`, at least 0.

        Raises:
            UsageError: it is negative, or no number; or labels are missing.
        """
        if not amount >= 0.0:
            raise UsageError(f"a counter cannot grow by {amount}: it takes 0 or more; a gauge goes down as well")
        if self._at < 0:
            raise self._unplaced()
        self._values[self._at] += amount

    @property
    def value(self) -> float:
        """What this process has counted."""
        if self._at < 0:
            raise self._unplaced()
        return self._values[self._at]


class GaugeSeries(Series):
    """A number that goes up and down: how much of something there is now. It is gone when its worker ends."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Make it `value`."""
        if self._at < 0:
            raise self._unplaced()
        self._values[self._at] = value

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`."""
        if self._at < 0:
            raise self._unplaced()
        self._values[self._at] += amount

    def dec(self, amount: float = 1.0) -> None:
        """Take `amount` away."""
        if self._at < 0:
            raise self._unplaced()
        self._values[self._at] -= amount

    @property
    def value(self) -> float:
        """What this process says."""
        if self._at < 0:
            raise self._unplaced()
        return self._values[self._at]


class HistogramSeries(Series):
    """How many observations fell into which bucket, and their sum."""

    __slots__ = ("_bounds", "_bounds_kept", "_buckets")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are the upper ones of the buckets, in ascending order."""
        super().__init__()
        self._bounds_kept = memoryview(array("d", bounds)).cast("B").cast("d")
        self._bounds = _sys.values_of(self._bounds_kept)
        self._buckets = len(bounds)

    def observe(self, value: float) -> None:
        """Count `value`.

        Raises:
            UsageError: it is no number, or labels are missing.
        """
        if self._at < 0:
            raise self._unplaced()
        if value != value:
            raise UsageError("a histogram cannot observe NaN, which belongs to no bucket")
        self._counts[self._at + _sys.bucket_of(self._bounds, self._buckets, value)] += 1
        self._values[self._at + self._buckets + 1] += value

    @property
    def count(self) -> int:
        """How many values this process has observed."""
        if self._at < 0:
            raise self._unplaced()
        return sum(self._counts[self._at + bucket] for bucket in range(self._buckets + 1))

    @property
    def sum(self) -> float:
        """What they add up to."""
        if self._at < 0:
            raise self._unplaced()
        return self._values[self._at + self._buckets + 1]
