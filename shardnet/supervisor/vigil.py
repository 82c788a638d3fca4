"""The vigil over workers whose loops do not turn.

A worker's loop stores the time into the board at every turn, an idle one every few seconds. The supervisor looks many
times a second whether that has changed, and whether connections wait at the worker's listeners. Two things follow:

- A loop that has not turned while connections waited, for LEND_AFTER_S, is *stuck*: its listeners are lent. That costs
  nothing if it was only busy, and is undone by its next turn.
- One that has not turned for the hang timeout, whatever waits, *hangs*: its stacks are asked for, then it is killed.

Rule 1: time counts from when the supervisor last saw the loop turn, on the supervisor's clock, which stands still while
the supervisor does not run. So a machine that sleeps, or a group of processes that is frozen, kills nobody.
Rule 2: only a worker that serves is watched. Importing may take as long as the boot timeout says, and draining as its
own.

Pure, like `lifecycle`, which owns it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shardnet.supervisor.actions import DumpStacks
from shardnet.supervisor.orders import Orders
from shardnet.supervisor.slot import State, Worker

__all__ = ["LEND_AFTER_S", "STACKS_S", "Vigil"]

LEND_AFTER_S: Final = 0.25
STACKS_S: Final = 2.0  # From asking for a worker's stacks to killing it.


class Vigil:
    """Watches, and says who is stuck, and who hangs."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def saw(self, worker: Worker, beat: int, *, queued: bool) -> None:
        """The worker's heartbeat is this, and connections wait at its listeners, or not."""
        now_s = self._orders.now_s
        pulse = worker.pulse
        if beat != pulse.beat or pulse.turned_s is None or worker.state is not State.SERVING:
            pulse.beat, pulse.turned_s = beat, now_s
            pulse.queued_s = pulse.stacks_asked_s = None
        elif not queued:
            pulse.queued_s = None
        elif pulse.queued_s is None:
            pulse.queued_s = now_s
        worker.stuck = pulse.queued_s is not None and now_s - pulse.queued_s >= LEND_AFTER_S

    def plan(self, workers: Iterable[Worker]) -> None:
        """Do what has to be done about those who hang."""
        timeout_s = self._orders.patience.hang_timeout_s
        now_s = self._orders.now_s
        for worker in workers:
            pulse = worker.pulse
            if worker.state is not State.SERVING or pulse.turned_s is None or now_s - pulse.turned_s < timeout_s:
                continue
            if pulse.stacks_asked_s is None:
                pulse.stacks_asked_s = now_s
                self._orders.add(DumpStacks(worker.child, now_s - pulse.turned_s))
            elif now_s - pulse.stacks_asked_s >= STACKS_S and not worker.hung:
                worker.hung = True
                self._orders.blame(worker, f"hung: its loop did not turn for {now_s - pulse.turned_s:.1f} s")
