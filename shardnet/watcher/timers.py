"""Timers that are due later, most of which never fire.

A deadline is armed for many operations and almost always cancelled, because the bytes arrive first. So cancelling
only marks the entry, O(1); marked entries leave the heap when they come up, or all at once when they are the
majority.

Lives here: which timer is due when. Must not live here: clocks, sleeping, what lateness means.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Final

COMPACT_MIN: Final = 64  # Below so many dead entries, sweeping the heap costs more than carrying them.


class Timer:
    """One armed timer. `due_s` is on the clock of whoever armed it."""

    __slots__ = ("_queue", "callback", "due_s")

    def __init__(self, queue: TimerQueue, due_s: float, callback: Callable[[], object]) -> None:
        self._queue: TimerQueue | None = queue
        self.due_s = due_s
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> bool:
        """Make it never fire: True when that was still possible. Idempotent."""
        queue = self._queue
        if queue is None:
            return False
        self._queue = None
        self.callback = None
        queue._bury_one()
        return True

    def _take(self) -> Callable[[], object]:
        callback = self.callback
        assert callback is not None
        self._queue = None
        self.callback = None
        return callback


class TimerQueue:
    """Armed timers in the order in which they are due; equal ones in the order in which they were armed."""

    __slots__ = ("_dead", "_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def add(self, due_s: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(self, due_s, callback)
        heapq.heappush(self._heap, (due_s, next(self._serial), timer))
        return timer

    def next_due_s(self) -> float | None:
        """When the first armed timer is due; None without one."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def take_due(self, now_s: float) -> Callable[[], object] | None:
        """The callback of the first timer that is due at `now_s`, which thereby has fired; None without one."""
        due_s = self.next_due_s()
        if due_s is None or due_s > now_s:
            return None
        return heapq.heappop(self._heap)[2]._take()

    def clear(self) -> int:
        """Cancel every armed timer; how many there were."""
        armed = [timer for _, _, timer in self._heap if timer.callback is not None]
        self._heap = []
        self._dead = 0
        for timer in armed:
            timer._take()
        return len(armed)

    def _bury_one(self) -> None:
        self._dead += 1
        if self._dead > COMPACT_MIN and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._dead = 0
