"""Recycling: workers that are old, or have grown, are replaced while they serve.

As when somebody asks for it: the successor comes up first, then the old one drains. One shard at a time, never during a
reload, and each at a slightly different age or size, so that workers which were started together do not go together.

Pure, like `lifecycle`, which owns it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from shardnet.supervisor.actions import Recycle
from shardnet.supervisor.events import Reason
from shardnet.supervisor.orders import Orders
from shardnet.supervisor.slot import Slot, State, Worker

__all__ = ["Recycling"]

JITTER: Final = 0.1  # Up to so much less than the limit.


class Recycling:
    """Who is to be replaced next."""

    def __init__(self, slots: Sequence[Slot], orders: Orders, random: Callable[[], float]) -> None:
        self._slots = slots
        self._orders = orders
        self._random = random

    def weighed(self, worker: Worker, memory_bytes: int) -> None:
        """The worker has so much memory to itself, shared parts in proportion."""
        if memory_bytes > self._orders.patience.memory_max_bytes * self._share_of_limit(worker):
            worker.retires_why = f"it has {memory_bytes} bytes of memory"
            worker.outgrown = True

    def plan(self, *, reloading: bool) -> None:
        """Begin with the next one, if nobody is being replaced."""
        for worker in self._serving():
            if self._retires_s(worker) <= self._orders.now_s:
                worker.retires_why = worker.retires_why or "it has reached its lifetime"
        due = [worker for worker in self._serving() if worker.retires_why]
        if due and not reloading and not self._is_busy():
            worker = min(due, key=lambda one: one.forked_s)
            worker.asked = True  # From here on as if it had asked to leave.
            reason = Reason.MEMORY if worker.outgrown else Reason.LIFETIME
            self._orders.add(Recycle(worker.child, reason, worker.retires_why))

    def deadlines(self) -> Iterator[float]:
        """When `plan` has something to do even if nothing happens."""
        for worker in self._serving():
            if self._orders.now_s < (at_s := self._retires_s(worker)) < math.inf:
                yield at_s

    def _serving(self) -> list[Worker]:
        found = (slot.first(State.SERVING) for slot in self._slots)
        return [worker for worker in found if worker is not None and not worker.asked]

    def _retires_s(self, worker: Worker) -> float:
        ready_s = worker.forked_s if worker.ready_s is None else worker.ready_s
        return ready_s + self._orders.patience.lifetime_s * self._share_of_limit(worker)

    def _share_of_limit(self, worker: Worker) -> float:
        if worker.limit_share is None:
            worker.limit_share = 1.0 - JITTER * self._random()
        return worker.limit_share

    def _is_busy(self) -> bool:
        """Whether a worker is being replaced already, for whatever reason, or one is missing."""
        for slot in self._slots:
            if slot.wanted and (not slot.accepts or slot.first(State.BOOTING, State.HELD)):
                return True
            if slot.lacks_worker(reloading=False):
                return True
        return False
