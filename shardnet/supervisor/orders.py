"""What a fleet says to its workers, and how long it waits for each to obey.

Lives here: the actions decided on so far, in order, and what goes with each: a deadline, a note in the worker's
record. Must not live here: who is told what, and when (`lifecycle`, `reload`). Pure, like those.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from typing import Final

from shardnet.supervisor.actions import Action, Drain, Kill, Serve
from shardnet.supervisor.slot import Cue, State, Worker

__all__ = ["Orders", "Patience"]

KILL_GRACE_S: Final = 2.0  # Beyond the drain timeout, at which a worker cuts its connections by itself.
BOOT_STOP_S: Final = 2.0  # A worker that is sent away while it boots: TERM ends it, unless it has just come up.

DISCARD_S: Final = 2.0  # For the end of a worker that has come up, and has no connections.


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker may take."""

    boot_timeout_s: float
    drain_timeout_s: float
    drain_spread_s: float = 0.0  # Of a drain that makes room for a successor.
    lifetime_s: float = math.inf  # Of a worker, before it is replaced.
    memory_max_bytes: float = math.inf  # Of a worker, before it is replaced.
    hang_timeout_s: float = math.inf  # From a loop's last turn to the end of patience with it.


class Orders:
    """Takes down what is to be done. `now_s` is the time of the steady clock, kept by the fleet."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.now_s = 0.0
        self._actions: list[Action] = []

    def add(self, action: Action) -> None:
        self._actions.append(action)

    def take(self) -> list[Action]:
        """Everything that was added since the last time."""
        actions, self._actions = self._actions, []
        return actions

    def serve(self, worker: Worker) -> None:
        """A held worker is to accept."""
        if worker.take(Cue.SERVE):
            worker.held = False
            self.add(Serve(worker.child))

    def drain(self, worker: Worker, *, timeout_s: float | None = None, succeeded: bool = False) -> None:
        """A worker that has come up is to end what it has; `timeout_s` None: the usual.

        `succeeded`: another one accepts on its listeners by now.
        """
        if worker.take(Cue.DRAIN):
            worker.asked = True
            timeout_s = self.patience.drain_timeout_s if timeout_s is None else timeout_s
            self.tell_to_drain(worker, timeout_s, succeeded=succeeded)
            self.limit(worker, timeout_s + KILL_GRACE_S, "drain timeout")

    def dismiss(self, worker: Worker, why: str, *, timeout_s: float | None = None) -> None:
        """A worker that boots is not wanted any more.

        While it boots, TERM ends it by default. If it has come up, and we do not know yet, it handles TERM and reads
        what it is told: what it has accepted meanwhile is not cut.
        """
        if worker.dismissed:
            return
        worker.asked = worker.dismissed = True
        self.tell_to_drain(worker, self.patience.drain_timeout_s if timeout_s is None else timeout_s)
        self.add(Kill(worker.child, signal.SIGTERM, why))
        self.limit(worker, BOOT_STOP_S, why)

    def discard(self, worker: Worker, why: str) -> None:
        """A worker that boots, or is held, is not wanted: it has accepted nothing."""
        if worker.state is State.HELD:
            worker.dismissed = True
            self.drain(worker, timeout_s=DISCARD_S)
        elif worker.trouble:  # It is on its way out already.
            worker.asked = worker.dismissed = True
        else:
            self.dismiss(worker, why, timeout_s=DISCARD_S)

    def tell_to_drain(self, worker: Worker, timeout_s: float, *, succeeded: bool = False) -> None:
        if not worker.told:
            worker.told = True
            spread_s = self.patience.drain_spread_s if succeeded else 0.0
            self.add(Drain(worker.child, timeout_s, spread_s, succeeded))

    def limit(self, worker: Worker, within_s: float, why: str) -> None:
        """Kill it after this time, unless an earlier end was set already."""
        at_s = self.now_s + within_s
        if worker.kill_at_s is None or at_s < worker.kill_at_s:
            worker.kill_at_s, worker.kill_why = at_s, why

    def blame(self, worker: Worker, why: str) -> None:
        """Kill it for what it did, or failed to do."""
        worker.blamed, worker.trouble = True, why
        self.kill(worker, why)

    def kill(self, worker: Worker, why: str) -> None:
        worker.kill_at_s = None
        self.add(Kill(worker.child, signal.SIGKILL, why))
