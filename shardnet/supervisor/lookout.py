"""Looking at workers that say nothing: whether their loops turn, whether anybody waits for them, how large they are.
And, for the board, at what only the holder of the listeners can see.

Lives here: what is looked at, and how often. Must not live here: what follows from it (`vigil`, `recycling`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from shardnet.listen import ListenerBank
from shardnet.supervisor.events import Event, Seen, Weighed
from shardnet.supervisor.ledger import Ledger
from shardnet.supervisor.slot import Slot, State
from shardnet.supervisor.steering import Steering
from shardnet.supervisor.system import System

__all__ = ["Lookout"]

SHOW_S: Final = 1.0  # Who scrapes comes less often.
WEIGH_S: Final = 10.0  # Within so long every worker's memory is looked at once: that takes the kernel a while.


class Lookout:
    """Looks at the workers that serve."""

    def __init__(self, system: System, bank: ListenerBank, ledger: Ledger, steering: Steering, *, weighs: bool) -> None:
        """`weighs`: also at their memory."""
        self._system = system
        self._bank = bank
        self._ledger = ledger
        self._steering = steering
        self._show_at_s = float("-inf")
        self._weighs = weighs
        self._beats: dict[int, int] = {}  # By child, as last looked at.
        self._weigh_at_s = float("-inf")
        self._weighed = 0  # Who was the last.

    def look(self, slots: Sequence[Slot], now_s: float) -> Iterator[Event]:
        """What there is to be seen now."""
        beats: dict[int, int] = {}
        for slot in slots:
            worker = slot.first(State.SERVING)
            if worker is not None and slot.shard is not None:
                beat = beats[worker.child] = self._ledger.heartbeat(worker.child)
                # Who waits is asked of the kernel only where the loop has not turned since the last look.
                queued = beat == self._beats.get(worker.child) and self._bank.waiting(slot.shard) > 0
                yield Seen(worker.child, beat, queued)
        self._beats = beats
        if now_s >= self._show_at_s:
            self._show_at_s = now_s + SHOW_S
            self._show(slots)
        if self._weighs and beats and now_s >= self._weigh_at_s:
            self._weigh_at_s = now_s + WEIGH_S / len(beats)
            yield from self._weigh(sorted(beats))

    def _show(self, slots: Sequence[Slot]) -> None:
        for shard in range(len(slots)):
            self._ledger.show_queues(shard, self._bank.queues(shard))
        self._ledger.show_steering(self._steering.dealt(slots))

    def _weigh(self, serving: Sequence[int]) -> Iterator[Event]:
        """One of them, another one each time."""
        self._weighed = next((child for child in serving if child > self._weighed), serving[0])
        memory_bytes = self._system.memory_bytes(self._weighed)
        if memory_bytes is not None:
            yield Weighed(self._weighed, memory_bytes)
