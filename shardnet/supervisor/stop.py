"""The end of a fleet: from the decision to stop to the last exit.

Workers drain, each within its time, or are killed at once; the exporter goes last, so that the drain can be watched. A
stop always ends, also when a killed process hangs in the kernel.

Pure, like `lifecycle`, which owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shardnet.errors import ExitCode
from shardnet.supervisor.actions import CloseListeners, Finish, Stopping
from shardnet.supervisor.orders import BOOT_STOP_S, KILL_GRACE_S, Orders
from shardnet.supervisor.slot import Cue, Slot, State

__all__ = ["EXPORTER_STOP_S", "REAP_S", "Stop"]

EXPORTER_STOP_S: Final = 1.0
REAP_S: Final = 5.0  # A killed process that is still there after this hangs in the kernel: go without it.


class Stop:
    """Whether the fleet is coming to its end, and how far it is."""

    def __init__(self, slots: Sequence[Slot], exporter: Slot | None, orders: Orders) -> None:
        self.begun = False
        self.finished = False
        self._slots = slots
        self._exporter = exporter
        self._orders = orders
        self._times_asked = 0
        self._give_up_s: float | None = None
        self._finish = Finish(ExitCode.OK)

    def ask(self, *, quick: bool) -> None:
        """Somebody wants the fleet to stop; whoever asks twice wants it at once."""
        self._times_asked += 1
        quick = quick or self._times_asked > 1
        if not self.begun:
            self.begin("asked to stop", Finish(ExitCode.OK), quick=quick)
        elif quick:
            self._orders.add(Stopping(True, "asked to stop at once", self._finish.code))
            self._kill_all()

    def begin(self, why: str, finish: Finish, *, quick: bool = False) -> None:
        """Stop, to end with `finish`."""
        self.begun, self._finish = True, finish
        self._orders.add(Stopping(quick, why, finish.code))
        if quick:
            self._kill_all()
        else:
            drain_s = self._orders.patience.drain_timeout_s
            longest_s = BOOT_STOP_S + drain_s + KILL_GRACE_S + EXPORTER_STOP_S
            self._give_up_s = self._orders.now_s + longest_s + REAP_S
            for slot in self._slots:
                self._stop_slot(slot)
        self._orders.add(CloseListeners())

    def plan(self) -> None:
        """Go as far as can be gone now."""
        exporter = self._exporter.first(State.SERVING) if self._exporter else None
        if exporter is not None and not exporter.asked and not any(slot.workers for slot in self._slots):
            exporter.asked = True
            exporter.take(Cue.DRAIN)
            self._orders.tell_to_drain(exporter, EXPORTER_STOP_S)
            self._orders.limit(exporter, EXPORTER_STOP_S, "drain timeout")
        gave_up = self._give_up_s is not None and self._give_up_s <= self._orders.now_s
        everybody_gone = not any(slot.workers for slot in self._all_slots())
        if not self.finished and (gave_up or everybody_gone):
            self.finished = True
            self._orders.add(self._finish)

    @property
    def deadline_s(self) -> float | None:
        """When `plan` has something to do even if nothing happens."""
        return self._give_up_s

    def _kill_all(self) -> None:
        for slot in self._all_slots():
            for worker in slot.workers:
                worker.asked = True
                self._orders.kill(worker, "stop at once")
        self._give_up_s = self._orders.now_s + REAP_S

    def _stop_slot(self, slot: Slot) -> None:
        unserved = slot.first(State.SERVING) is None
        for worker in slot.workers:
            if worker.state is State.BOOTING:
                self._orders.dismiss(worker, "stopped while booting")
                continue
            if unserved:
                self._orders.serve(worker)  # One that is held is all that there is for what is queued.
            self._orders.drain(worker)

    def _all_slots(self) -> Sequence[Slot]:
        return [*self._slots, *([self._exporter] if self._exporter else [])]
