"""How many shards are served, out of those that the server has listeners for.

Whatever the number, no listener is closed: a vacant shard's are lent to those that serve, as a crashed one's are. So
nothing is refused or reset when the fleet becomes smaller, and nothing has to be bound when it grows.

Pure, like `lifecycle`, which owns it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shardnet.supervisor.actions import Scaled
from shardnet.supervisor.orders import Orders
from shardnet.supervisor.slot import Slot, State

__all__ = ["Scaling"]


class Scaling:
    """The size of the fleet."""

    def __init__(self, slots: Sequence[Slot], orders: Orders) -> None:
        self._slots = slots
        self._orders = orders

    @property
    def shards(self) -> int:
        """How many are to be served. They are the first ones."""
        return sum(slot.in_size for slot in self._slots)

    def to(self, shards: int) -> None:
        """Serve so many from now on, at least one, and at most all that there are listeners for."""
        before = self.shards
        shards = min(max(shards, 1), len(self._slots))
        for slot in self._slots[before:shards]:
            _occupy(slot)
        for index, slot in enumerate(self._slots):
            slot.in_size = index < shards
        self._orders.add(Scaled(shards, before, len(self._slots)))

    def keep_out(self, shard: int, *, out: bool) -> None:
        """Let the shard be empty, whatever the size, or no longer."""
        slot = self._slots[shard]
        if slot.kept_out and not out:
            _occupy(slot)
        slot.kept_out = out

    def plan(self) -> None:
        """Send away who is not wanted; who serves, when somebody wanted does."""
        others_accept = any(slot.accepts for slot in self._slots if slot.wanted)
        for slot in self._slots:
            if not slot.wanted:
                self._vacate(slot, others_accept=others_accept)

    def _vacate(self, slot: Slot, *, others_accept: bool) -> None:
        for worker in slot.workers:
            if worker.dismissed:
                continue
            if worker.state is State.SERVING and others_accept:
                self._orders.drain(worker, succeeded=True)  # By whom its listeners are lent to.
            elif worker.held:
                self._orders.discard(worker, "its shard is no longer wanted")
            elif worker.state is State.BOOTING:
                self._orders.dismiss(worker, "its shard is no longer wanted")


def _occupy(slot: Slot) -> None:
    slot.failures, slot.fork_at_s, slot.was_vacant = 0, -math.inf, True
