"""The life of every process that a supervisor has: who is forked when, told what, and killed.

A slot is the supervisor's record of one shard; the exporter has one too. In a slot at most one worker serves, at
most one boots to succeed it, and drainers finish the connections they have. Whatever a slot lacks is forked, on the
same listener, after a delay that grows with every failure in a row.

Rule 1: a worker gets its cues here and nowhere else; the table that they go by is in `slot`.
Rule 2: nothing in this file forks, kills, logs, or reads a clock; time arrives as an argument, in seconds of any
steady clock, decisions leave as actions, and somebody else performs them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from shardnet.errors import ExitCode
from shardnet.supervisor.events import (
    Action,
    CloseListeners,
    Drain,
    Ended,
    Ending,
    Event,
    Exited,
    Failed,
    Finish,
    Fork,
    ForkFailed,
    Kill,
    Leaving,
    Misspoke,
    Promoted,
    Ready,
    Reason,
    Respawn,
    Serving,
    StopAsked,
    Stopping,
)
from shardnet.supervisor.slot import Cue, Slot, State, Worker, backoff_s

__all__ = ["Fleet", "Patience"]

FIRST_GENERATION: Final = 1

HEALTHY_S: Final = 60.0  # A worker that has served so long is no evidence of a crash loop.

UNSERVED_S: Final = 30.0  # Attempts have failed for so long while nobody serves: whoever runs us must know.
KILL_GRACE_S: Final = 2.0  # Beyond the drain timeout, at which a worker cuts its connections by itself.
BOOT_STOP_S: Final = 2.0  # A worker that a stop finds booting: TERM ends it, unless it has just come up.
FAILED_EXIT_S: Final = 2.0  # From "failed" to the exit that must follow.
EXPORTER_STOP_S: Final = 1.0
REAP_S: Final = 5.0  # A killed process that is still there after this hangs in the kernel: go without it.


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker may take."""

    boot_timeout_s: float
    drain_timeout_s: float


class Fleet:
    """All slots, and the way from the first fork to the last exit.

    Feed it what happened with `apply`, perform what `plan` returns, in order, and be back at `next_deadline_s()` at
    the latest; until `finished`.
    """

    def __init__(self, shards: int, patience: Patience, *, exporter: bool, random: Callable[[], float]) -> None:
        self.slots = tuple(Slot(shard) for shard in range(shards))
        self.generation = FIRST_GENERATION
        self.finished = False
        self.stopping = False
        self._exporter = Slot(None) if exporter else None
        self._patience = patience
        self._random = random
        self._now_s = 0.0
        self._children: dict[int, tuple[Slot, Worker]] = {}
        self._last_child = 0
        self._actions: list[Action] = []
        self._announced = False
        self._failing_since_s: float | None = None  # The first failed attempt since somebody served.
        self._last_failure = ""
        self._stops_asked = 0
        self._give_up_s: float | None = None
        self._finish = Finish(ExitCode.OK)

    def apply(self, event: Event, now_s: float) -> None:
        """Take note of what has happened. What is said of a child that is gone is ignored."""
        self._now_s = now_s
        if isinstance(event, StopAsked):
            self._on_stop_asked(event.quick)
            return
        if event.child not in self._children:
            return
        slot, worker = self._children[event.child]
        match event:
            case Ready():
                self._on_ready(slot, worker)
            case Failed():
                self._on_failed(slot, worker, event)
            case Leaving():
                # The exporter has no such wish: it ignores TERM, and has no successor that could come up first.
                worker.asked = worker.asked or slot.shard is not None
            case Misspoke():
                self._blame(worker, "corrupt control messages")
            case Exited():
                self._on_exited(slot, worker, event.ending)
            case ForkFailed():
                self._remove(slot, worker)
                self._attempt_failed(slot, event.error)
            case _:
                assert_never(event)

    def plan(self, now_s: float) -> list[Action]:
        """What is to be done now, in order. The caller has done it all when it calls again."""
        self._now_s = now_s
        self._kill_overdue()
        if (unserved_until_s := self._unserved_until_s()) is not None and unserved_until_s <= now_s:
            why = f"no worker could serve for {UNSERVED_S:.0f} s; the last attempt, {self._last_failure}"
            self._stop(why, Finish(ExitCode.UNSERVED, why))
        if self.stopping:
            self._plan_end()
        else:
            self._plan_forks()
        actions, self._actions = self._actions, []
        return actions

    def next_deadline_s(self) -> float | None:
        """When `plan` has something to do even if nothing happens; None: never."""
        return min(self._deadlines(), default=None)

    # Events.

    def _on_ready(self, slot: Slot, worker: Worker) -> None:
        if slot.shard is None or not worker.take(Cue.READY):
            return
        worker.ready_s, worker.kill_at_s = self._now_s, None
        slot.was_ready = True
        self._failing_since_s = None
        self._actions.append(Promoted(worker.child, slot.shard, self._now_s - worker.forked_s))
        for other in slot.workers:
            if other is not worker and other.state is State.SERVING:
                self._drain(other)  # It was leaving, and only waited for this.
        if self.stopping:
            self._drain(worker)
        elif not self._announced and all(slot.was_ready for slot in self.slots):
            self._announced = True
            self._actions.append(Serving())

    def _on_failed(self, slot: Slot, worker: Worker, event: Failed) -> None:
        worker.trouble = event.message
        self._limit(worker, FAILED_EXIT_S, event.message)
        # An app that has come up once is not broken as such, whatever has now happened to it in one shard.
        app_is_broken = event.kind == "app" and not any(slot.was_ready for slot in self.slots)
        if app_is_broken and slot.shard is not None and not self.stopping:
            self._stop(event.message, Finish(ExitCode.APP, event.message, event.detail), quick=True)

    def _on_exited(self, slot: Slot, worker: Worker, ending: Ending) -> None:
        self._remove(slot, worker)
        reason = None
        if not worker.asked:
            reason = Reason.CRASH if ending.signum is None or worker.blamed else Reason.SIGNAL
        ran_s = self._now_s - worker.forked_s
        self._actions.append(Ended(worker.child, slot.shard, ending, ran_s, reason, worker.trouble))
        if worker.ready_s is None:
            # Also if somebody had asked it to go: an app that sends itself a TERM at every start loops like any other.
            self._attempt_failed(slot, worker.trouble or str(ending))
        elif not worker.asked:
            if self._now_s - worker.ready_s >= HEALTHY_S:
                slot.failures = 0
            self._back_off(slot)

    def _on_stop_asked(self, quick: bool) -> None:
        self._stops_asked += 1
        quick = quick or self._stops_asked > 1
        if not self.stopping:
            self._stop("asked to stop", Finish(ExitCode.OK), quick=quick)
        elif quick:
            self._actions.append(Stopping(True, "asked to stop at once", self._finish.code))
            self._kill_all()

    # Failures.

    def _attempt_failed(self, slot: Slot, why: str) -> None:
        if slot.shard is not None:
            self._last_failure = f"shard {slot.shard}: {why}"
            if self._failing_since_s is None and not self._any(State.SERVING):
                self._failing_since_s = self._now_s
        self._back_off(slot)

    def _back_off(self, slot: Slot) -> None:
        if self.stopping:
            return
        slot.failures += 1
        delay_s = backoff_s(slot.failures, self._random())
        slot.fork_at_s = self._now_s + delay_s
        self._actions.append(Respawn(slot.shard, delay_s, slot.failures))

    def _unserved_until_s(self) -> float | None:
        """When to give up, if attempts have failed and nothing that might yet succeed is under way."""
        if self.stopping or self._failing_since_s is None:
            return None
        if self._any(State.SERVING) or self._any(State.BOOTING):
            return None
        return self._failing_since_s + UNSERVED_S

    def _any(self, state: State) -> bool:
        return any(slot.first(state) for slot in self.slots)

    # Forking, killing, stopping.

    def _plan_forks(self) -> None:
        for slot in self._all_slots():
            if not slot.lacks_worker or slot.fork_at_s > self._now_s:
                continue
            self._last_child += 1
            worker = Worker(self._last_child, State.BOOTING, forked_s=self._now_s)
            if slot.shard is None:
                worker.state, worker.ready_s = State.SERVING, self._now_s
            else:
                self._limit(worker, self._patience.boot_timeout_s, "boot timeout")
            slot.workers.append(worker)
            self._children[worker.child] = (slot, worker)
            self._actions.append(Fork(worker.child, slot.shard, self.generation))

    def _drain(self, worker: Worker) -> None:
        if worker.take(Cue.DRAIN):
            worker.asked = True
            self._tell_to_drain(worker, self._patience.drain_timeout_s)
            self._limit(worker, self._patience.drain_timeout_s + KILL_GRACE_S, "drain timeout")

    def _tell_to_drain(self, worker: Worker, timeout_s: float) -> None:
        if not worker.told:
            worker.told = True
            self._actions.append(Drain(worker.child, timeout_s))

    def _limit(self, worker: Worker, within_s: float, why: str) -> None:
        """Kill it after this time, unless an earlier end was set already."""
        at_s = self._now_s + within_s
        if worker.kill_at_s is None or at_s < worker.kill_at_s:
            worker.kill_at_s, worker.kill_why = at_s, why

    def _kill_overdue(self) -> None:
        for _, worker in self._children.values():
            if worker.kill_at_s is not None and worker.kill_at_s <= self._now_s:
                self._blame(worker, worker.kill_why)

    def _blame(self, worker: Worker, why: str) -> None:
        worker.blamed, worker.trouble = True, why
        self._kill(worker, why)

    def _kill(self, worker: Worker, why: str) -> None:
        worker.kill_at_s = None
        self._actions.append(Kill(worker.child, signal.SIGKILL, why))

    def _kill_all(self) -> None:
        for _, worker in self._children.values():
            worker.asked = True
            self._kill(worker, "stop at once")
        self._give_up_s = self._now_s + REAP_S

    def _stop(self, why: str, finish: Finish, *, quick: bool = False) -> None:
        self.stopping, self._finish = True, finish
        self._actions.append(Stopping(quick, why, finish.code))
        if quick:
            self._kill_all()
        else:
            longest_s = BOOT_STOP_S + self._patience.drain_timeout_s + KILL_GRACE_S + EXPORTER_STOP_S
            self._give_up_s = self._now_s + longest_s + REAP_S
            for slot in self.slots:
                for worker in slot.workers:
                    self._stop_worker(worker)
        self._actions.append(CloseListeners())

    def _stop_worker(self, worker: Worker) -> None:
        if worker.state is not State.BOOTING:
            self._drain(worker)
            return
        # While it boots, TERM ends it by default. If it has come up, and we do not know yet, it handles TERM and
        # reads what it is told: what it has accepted meanwhile is not cut.
        worker.asked = True
        self._tell_to_drain(worker, self._patience.drain_timeout_s)
        self._actions.append(Kill(worker.child, signal.SIGTERM, "stopped while booting"))
        self._limit(worker, BOOT_STOP_S, "stopped while booting")

    def _plan_end(self) -> None:
        exporter = self._exporter.first(State.SERVING) if self._exporter else None
        if exporter is not None and not exporter.asked and not any(slot.workers for slot in self.slots):
            # The last to go, so that the drain of the others can be watched.
            exporter.asked = True
            exporter.take(Cue.DRAIN)
            self._tell_to_drain(exporter, EXPORTER_STOP_S)
            self._limit(exporter, EXPORTER_STOP_S, "drain timeout")
        gave_up = self._give_up_s is not None and self._give_up_s <= self._now_s
        if not self.finished and (gave_up or not self._children):
            self.finished = True
            self._actions.append(self._finish)

    def _remove(self, slot: Slot, worker: Worker) -> None:
        worker.take(Cue.EXITED)
        slot.workers.remove(worker)
        del self._children[worker.child]

    def _all_slots(self) -> Iterator[Slot]:
        yield from self.slots
        if self._exporter is not None:
            yield self._exporter

    def _deadlines(self) -> Iterator[float]:
        for _, worker in self._children.values():
            if worker.kill_at_s is not None:
                yield worker.kill_at_s
        if self.stopping:
            if self._give_up_s is not None:
                yield self._give_up_s
            return
        yield from (slot.fork_at_s for slot in self._all_slots() if slot.lacks_worker)
        if (unserved_until_s := self._unserved_until_s()) is not None:
            yield unserved_until_s
