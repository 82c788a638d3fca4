"""Latencies by size, in a log-linear histogram after Gil Tene's HdrHistogram.

The theory. Values below 2048 have a bucket each. From there on every power of two is cut into 1024 buckets of equal
width, so that a bucket is never wider than a thousandth of the values in it: three significant digits from a
nanosecond to an hour, in 33,792 counters that never grow. To record is to add one to a counter, whatever the value;
histograms of several processes are merged by adding them up.

HdrHistogram's own port to Python was not taken: it records in 0.7 µs where this takes 0.17 (and 10 µs are a whole
message here), keeps its counters where no other process sees them, and depends on setuptools and pbr at run time.

Lives here: buckets and percentiles. Must not live here: clocks, units, texts.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from typing import Final

SUB_BITS: Final = 10  # 1024 buckets for each power of two.
EXACT_BELOW: Final = 2 << SUB_BITS
LONGEST_BITS: Final = 42  # 2**42 ns are 73 minutes. What is longer counts in the last bucket.
BUCKETS: Final = (LONGEST_BITS - SUB_BITS - 1 << SUB_BITS) + EXACT_BELOW
LAST: Final = BUCKETS - 1


class Histogram:
    """Counts of values, at least 0. `counts` has `BUCKETS` items, and may be memory that others read meanwhile."""

    __slots__ = ("counts",)

    def __init__(self, counts: MutableSequence[int] | memoryview) -> None:
        self.counts = counts

    def record(self, value: int) -> None:
        """Count one value."""
        if value < EXACT_BELOW:
            self.counts[value] += 1
            return
        shift = value.bit_length() - SUB_BITS - 1
        index = (shift << SUB_BITS) + (value >> shift)
        self.counts[index if index < LAST else LAST] += 1


class Distribution:
    """What histograms say when they are added up. The values given are the largest of their buckets."""

    __slots__ = ("_filled", "count")

    def __init__(self, histograms: Iterable[Sequence[int]]) -> None:
        """From the counters of histograms, copied."""
        sums = [sum(counts) for counts in zip(*histograms, strict=True)]
        self._filled = [(index, count) for index, count in enumerate(sums) if count]
        self.count = sum(count for _, count in self._filled)

    def at(self, percent: float) -> int:
        """The value that `percent` of all values do not exceed, to three digits; 0 when there is none."""
        wanted = percent * self.count / 100.0
        seen = 0
        for index, count in self._filled:
            seen += count
            if seen >= wanted:
                return bounds(index)[1]
        return 0

    def least(self) -> int:
        return bounds(self._filled[0][0])[0] if self._filled else 0

    def mean(self) -> float:
        """To three digits: every value counts as the middle of its bucket."""
        total = sum(sum(bounds(index)) / 2 * count for index, count in self._filled)
        return total / self.count if self.count else 0.0


def bounds(index: int) -> tuple[int, int]:
    """The smallest and the largest value that bucket `index` counts."""
    if index < EXACT_BELOW:
        return index, index
    shift = (index >> SUB_BITS) - 1
    least = index - (shift << SUB_BITS) << shift
    return least, least + (1 << shift) - 1
