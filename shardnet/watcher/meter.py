"""The meter: how busy a loop is, how late, and in which portions it works.

A turn is the time between two waits for events; all that happens in it, whoever does it, is in its duration. A turn
costs two looks at the clock, and a few additions.

**Lag** is how late a timer would have run. It is not measured with timers, which would wake an idle process: every
10 ms there is a moment for which it is worked out afterwards how late a timer due then would have been. If the loop was
waiting, not at all; if it was at work, until the end of that turn.

Lives here: what a meter adds to which cell. Must not live here: what is done in a turn.
"""

from __future__ import annotations

from array import array
from typing import Final, Protocol

from shardnet.watcher import _sys
from shardnet.watcher.counters import (
    BATCH_BUCKETS,
    BATCH_SIZE,
    COMPLETION_LATENCY_NS,
    LOOP_BUCKETS_NS,
    LOOP_BUSY_NS,
    LOOP_LAG_NS,
    TURN_DURATION_NS,
)

__all__ = ["Meter", "Overseer"]

MOMENT_NS: Final = 10_000_000  # From one moment for which lag is worked out to the next.
NEVER_NS: Final = 2**63
STALL_MAX_NS: Final = 60_000_000_000  # Of a longer stall, only the last minute's moments are looked at.
SAMPLE_EVERY: Final = 64  # Of so many reads, the latency of one is looked at.

LOOP_BUCKETS: Final = len(LOOP_BUCKETS_NS)
BATCHES: Final = len(BATCH_BUCKETS)
LAG_FIRST: Final = LOOP_LAG_NS


class Overseer(Protocol):
    """Looks after turns that take long."""

    def watch(self) -> None:
        """A turn has begun, and `overseen` is not set."""
        ...

    def tell(self, busy_ns: int) -> None:
        """A turn has taken so long: more than `slow_ns`."""
        ...


class Meter:
    """Measures the turns of one engine. All times are nanoseconds of the monotonic clock."""

    __slots__ = (
        "_batch_bounds", "_batch_bounds_kept", "_cells", "_cells_kept", "_loop_bounds", "_loop_bounds_kept",
        "_moment_ns", "_reads_to_sample", "at_work", "overseen", "overseer", "slow_ns", "woke_ns",
    )  # fmt: skip

    def __init__(self, cells: memoryview) -> None:
        """Count in `cells`, an engine's."""
        self._cells_kept = cells
        self._cells = _sys.cells_of(self._cells_kept)
        self._loop_bounds_kept = memoryview(array("Q", LOOP_BUCKETS_NS))
        self._loop_bounds = _sys.cells_of(self._loop_bounds_kept)
        self._batch_bounds_kept = memoryview(array("Q", BATCH_BUCKETS))
        self._batch_bounds = _sys.cells_of(self._batch_bounds_kept)
        self._moment_ns = 0
        self.woke_ns = 0  # When the turn began; 0 before the first.
        self.at_work = False
        self.overseer: Overseer | None = None
        self.overseen = True  # The overseer need not be told of this turn's begin: there is none, or it looks already.
        self.slow_ns = NEVER_NS  # The overseer is told of turns that take longer.
        self._reads_to_sample = SAMPLE_EVERY

    def poll(self, poller: _sys.Poller, wait_s: float | None) -> int:
        """`poller.poll`, which ends a turn, and begins another."""
        self.end_turn(_sys.monotonic_ns())
        count = poller.poll(wait_s)
        self.begin_turn(_sys.monotonic_ns())
        return count

    def begin_turn(self, now_ns: int) -> None:
        """The wait for events is over."""
        self.woke_ns = now_ns
        self.at_work = True
        if not self.overseen and self.overseer is not None:
            self.overseer.watch()

    def end_turn(self, now_ns: int) -> int:
        """The loop is about to wait for events: how long it was at work."""
        self.at_work = False
        woke_ns = self.woke_ns
        if woke_ns == 0:
            self._moment_ns = now_ns + MOMENT_NS
            return 0
        busy_ns = now_ns - woke_ns
        self._cells[LOOP_BUSY_NS] += busy_ns
        _sys.observe(self._cells, TURN_DURATION_NS, self._loop_bounds, LOOP_BUCKETS, busy_ns)
        if now_ns >= self._moment_ns:
            self._look_back(woke_ns, now_ns)
        if busy_ns > self.slow_ns and self.overseer is not None:
            self.overseer.tell(busy_ns)
        return busy_ns

    def note_batch(self, size: int) -> None:
        """So many reads have completed together."""
        if size == 0:
            return
        _sys.observe(self._cells, BATCH_SIZE, self._batch_bounds, BATCHES, size)

    def note_read(self) -> None:
        """A handler is about to be called for a read that completed in this turn."""
        self._reads_to_sample -= 1
        if self._reads_to_sample == 0:
            self._reads_to_sample = SAMPLE_EVERY
            self.sample(_sys.monotonic_ns())

    def sample(self, now_ns: int) -> None:
        """Look at the latency of a read whose handler is called now."""
        _sys.observe(self._cells, COMPLETION_LATENCY_NS, self._loop_bounds, LOOP_BUCKETS, now_ns - self.woke_ns)

    def _look_back(self, woke_ns: int, now_ns: int) -> None:
        """For the moments since the last look: how late a timer would have been."""
        cells = self._cells
        moment_ns = self._moment_ns
        if moment_ns < woke_ns:  # While it waited: on time.
            count = (woke_ns - moment_ns + MOMENT_NS - 1) // MOMENT_NS
            cells[LAG_FIRST] += count
            moment_ns += count * MOMENT_NS
        if moment_ns + STALL_MAX_NS < now_ns:
            moment_ns = now_ns - STALL_MAX_NS
        while moment_ns <= now_ns:
            _sys.observe(cells, LOOP_LAG_NS, self._loop_bounds, LOOP_BUCKETS, now_ns - moment_ns)
            moment_ns += MOMENT_NS
        self._moment_ns = moment_ns
