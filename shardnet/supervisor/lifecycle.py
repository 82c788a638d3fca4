"""The life of every process that a supervisor has: who is forked when, told what, and killed.

A slot is the supervisor's record of one shard; the exporter has one too. In a slot at most one worker serves, at
most one boots to succeed it, and drainers finish the connections they have. Whatever a slot lacks is forked, on the
same listener, after a delay that grows with every failure in a row. How all slots change to new workers together is
decided in `reload`.

Rule 1: a worker gets its cues here, in `orders` and in `reload`; the table that they go by is in `slot`.
Rule 2: nothing in these files forks, kills, logs, or reads a clock; time arrives as an argument, in seconds of any
steady clock, decisions leave as actions, and somebody else performs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, assert_never

from shardnet.errors import ExitCode
from shardnet.supervisor.events import (
    Action,
    CloseListeners,
    Ended,
    Ending,
    Event,
    Exited,
    Failed,
    Finish,
    Fork,
    ForkFailed,
    Leaving,
    Misspoke,
    Promoted,
    Ready,
    Reason,
    ReloadAsked,
    Renew,
    RenewalFailed,
    Renewed,
    Respawn,
    Serving,
    StopAsked,
    Stopping,
)
from shardnet.supervisor.handover import FleetState
from shardnet.supervisor.orders import BOOT_STOP_S, KILL_GRACE_S, Orders, Patience
from shardnet.supervisor.reload import Reload
from shardnet.supervisor.slot import Cue, Slot, State, Worker, backoff_s

__all__ = ["Fleet"]

HEALTHY_S: Final = 60.0  # A worker that has served so long is no evidence of a crash loop.

UNSERVED_S: Final = 30.0  # Attempts have failed for so long while nobody serves: whoever runs us must know.
FAILED_EXIT_S: Final = 2.0  # From "failed" to the exit that must follow.
EXPORTER_STOP_S: Final = 1.0
REAP_S: Final = 5.0  # A killed process that is still there after this hangs in the kernel: go without it.


class Fleet:
    """All slots, and the way from the first fork to the last exit.

    Feed it what happened with `apply`, perform what `plan` returns, in order, and be back at `next_deadline_s()` at
    the latest; until `finished`.
    """

    def __init__(
        self,
        shards: int,
        patience: Patience,
        *,
        exporter: bool,
        random: Callable[[], float],
        renews: bool = False,
        state: FleetState | None = None,
    ) -> None:
        """`renews`: a reload starts with a new program. `state`: what the fleet was when it asked for this one."""
        self.slots = state.slots if state else tuple(Slot(shard) for shard in range(shards))
        self.finished = False
        self.stopping = False
        self._exporter = (state.exporter if state else Slot(None)) if exporter else None
        self._patience = patience
        self._random = random
        self._orders = Orders(patience)
        self._reload = Reload(self.slots, self._orders, renews=renews)
        self._now_s = 0.0
        self._children: dict[int, tuple[Slot, Worker]] = {}
        self._last_child = 0
        self._announced = False
        self._failing_since_s: float | None = None  # The first failed attempt since somebody served.
        self._last_failure = ""
        self._stops_asked = 0
        self._give_up_s: float | None = None
        self._finish = Finish(ExitCode.OK)
        if state is not None:
            self._resume(state)

    def _resume(self, state: FleetState) -> None:
        self._children = {worker.child: (slot, worker) for slot in self._all_slots() for worker in slot.workers}
        self._last_child, self._announced = state.last_child, state.announced
        self._failing_since_s, self._last_failure = state.failing_since_s, state.last_failure
        self._reload.resume(state.generation, state.last_generation, state.reload_began_s)

    def state(self) -> FleetState:
        """Everything about a fleet that has just asked for a new program."""
        return FleetState(
            generation=self._reload.generation,
            last_generation=self._reload.last,
            last_child=self._last_child,
            reload_began_s=self._reload.began_s,
            announced=self._announced,
            failing_since_s=self._failing_since_s,
            last_failure=self._last_failure,
            slots=self.slots,
            exporter=self._exporter,
        )

    @property
    def generation(self) -> int:
        """The one that serves, or was the last to."""
        return self._reload.generation

    def apply(self, event: Event, now_s: float) -> None:
        """Take note of what has happened. What is said of a child that is gone is ignored."""
        self._set_now(now_s)
        match event:
            case StopAsked(quick):
                self._on_stop_asked(quick)
            case ReloadAsked():
                if not self.stopping:
                    self._reload.ask()
            case Renewed():
                self._reload.renewed()
            case RenewalFailed(why, detail):
                self._reload.renewal_failed(why, detail)
            case _:
                self._apply_to_child(event)

    def _apply_to_child(self, event: Ready | Failed | Leaving | Misspoke | Exited | ForkFailed) -> None:
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
                self._blame(slot, worker, "corrupt control messages")
            case Exited():
                self._on_exited(slot, worker, event.ending)
            case ForkFailed():
                self._remove(slot, worker)
                self._attempt_failed(slot, worker, event.error)
            case _:
                assert_never(event)

    def plan(self, now_s: float) -> list[Action]:
        """What is to be done now, in order. The caller has done it all when it calls again."""
        self._set_now(now_s)
        for slot, worker in self._children.values():
            if worker.kill_at_s is not None and worker.kill_at_s <= now_s:
                self._blame(slot, worker, worker.kill_why)
        if (unserved_until_s := self._unserved_until_s()) is not None and unserved_until_s <= now_s:
            why = f"no worker could serve for {UNSERVED_S:.0f} s; the last attempt, {self._last_failure}"
            self._stop(why, Finish(ExitCode.UNSERVED, why))
        if self.stopping:
            self._plan_end()
        else:
            if self._reload.plan():
                self._note_serving()
            self._plan_forks()
            if self._reload.needs_program:
                self._orders.add(Renew())
        return self._orders.take()

    def next_deadline_s(self) -> float | None:
        """When `plan` has something to do even if nothing happens; None: never."""
        return min(self._deadlines(), default=None)

    def _set_now(self, now_s: float) -> None:
        self._now_s = self._orders.now_s = now_s

    # Events.

    def _on_ready(self, slot: Slot, worker: Worker) -> None:
        if slot.shard is None or not worker.take(Cue.HOLD if worker.held else Cue.READY):
            return
        worker.ready_s, worker.kill_at_s = self._now_s, None
        self._orders.add(Promoted(worker.child, slot.shard, self._now_s - worker.forked_s, worker.held))
        if self.stopping or worker.dismissed:
            self._orders.drain(worker)
        elif not worker.held:
            slot.was_ready = True
            for other in slot.workers:
                if other is not worker and other.state is State.SERVING:
                    self._orders.drain(other, succeeded=True)  # It was leaving, and only waited for this.
            self._note_serving()

    def _note_serving(self) -> None:
        self._failing_since_s = None
        if not self._announced and all(slot.was_ready for slot in self.slots):
            self._announced = True
            self._orders.add(Serving())

    def _on_failed(self, slot: Slot, worker: Worker, event: Failed) -> None:
        worker.trouble = event.message
        self._orders.limit(worker, FAILED_EXIT_S, event.message)
        if worker.held and not worker.dismissed:
            self._reload.fail(worker, event.message, event.detail)
        # An app that has come up once is not broken as such, whatever has now happened to it in one shard.
        app_is_broken = event.kind == "app" and not any(slot.was_ready for slot in self.slots)
        if app_is_broken and slot.shard is not None and not self.stopping:
            self._stop(event.message, Finish(ExitCode.APP, event.message, event.detail), quick=True)

    def _on_exited(self, slot: Slot, worker: Worker, ending: Ending) -> None:
        self._remove(slot, worker)
        reason = None
        if not (worker.asked or worker.held):
            reason = Reason.CRASH if ending.signum is None or worker.blamed else Reason.SIGNAL
        ran_s = self._now_s - worker.forked_s
        self._orders.add(Ended(worker.child, slot.shard, ending, ran_s, reason, worker.trouble))
        if worker.held or worker.ready_s is None:
            # Also if somebody had asked it to go: an app that sends itself a TERM at every start loops like any other.
            self._attempt_failed(slot, worker, worker.trouble or str(ending))
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
            self._orders.add(Stopping(True, "asked to stop at once", self._finish.code))
            self._kill_all()

    # Failures.

    def _attempt_failed(self, slot: Slot, worker: Worker, why: str) -> None:
        if worker.dismissed:
            return
        if slot.shard is not None:
            why = f"shard {slot.shard}: {why}"
            if worker.held:
                self._reload.fail(worker, why)
                return
            self._last_failure = why
            if self._failing_since_s is None and not self._any(State.SERVING):
                self._failing_since_s = self._now_s
        self._back_off(slot)

    def _blame(self, slot: Slot, worker: Worker, why: str) -> None:
        self._orders.blame(worker, why)
        if worker.held and not worker.dismissed:
            self._reload.fail(worker, f"shard {slot.shard}: {why}")

    def _back_off(self, slot: Slot) -> None:
        if self.stopping:
            return
        slot.failures += 1
        delay_s = backoff_s(slot.failures, self._random())
        slot.fork_at_s = self._now_s + delay_s
        self._orders.add(Respawn(slot.shard, delay_s, slot.failures))

    def _unserved_until_s(self) -> float | None:
        """When to give up, if attempts have failed and nothing that might yet succeed is under way."""
        if self.stopping or self._failing_since_s is None:
            return None
        if self._any(State.SERVING, State.BOOTING, State.HELD):
            return None
        return self._failing_since_s + UNSERVED_S

    def _any(self, *states: State) -> bool:
        return any(slot.first(*states) for slot in self.slots)

    # Forking, killing, stopping.

    def _plan_forks(self) -> None:
        reloading = self._reload.next is not None
        for slot in self._all_slots():
            if slot.lacks_worker(reloading=reloading) and slot.fork_at_s <= self._now_s:
                self._fork(slot, self.generation)
        if self._reload.next is not None:
            for slot in self.slots:
                if slot.of_generation(self._reload.next) is None:
                    self._fork(slot, self._reload.next, held=True)

    def _fork(self, slot: Slot, generation: int, *, held: bool = False) -> None:
        self._last_child += 1
        worker = Worker(self._last_child, State.BOOTING, self._now_s, generation, held)
        if slot.shard is None:
            worker.state, worker.ready_s = State.SERVING, self._now_s
        else:
            self._orders.limit(worker, self._patience.boot_timeout_s, "boot timeout")
        slot.workers.append(worker)
        self._children[worker.child] = (slot, worker)
        self._orders.add(Fork(worker.child, slot.shard, generation, held))

    def _kill_all(self) -> None:
        for _, worker in self._children.values():
            worker.asked = True
            self._orders.kill(worker, "stop at once")
        self._give_up_s = self._now_s + REAP_S

    def _stop(self, why: str, finish: Finish, *, quick: bool = False) -> None:
        self.stopping, self._finish = True, finish
        self._reload.cancel()
        self._orders.add(Stopping(quick, why, finish.code))
        if quick:
            self._kill_all()
        else:
            longest_s = BOOT_STOP_S + self._patience.drain_timeout_s + KILL_GRACE_S + EXPORTER_STOP_S
            self._give_up_s = self._now_s + longest_s + REAP_S
            for slot in self.slots:
                self._stop_slot(slot)
        self._orders.add(CloseListeners())

    def _stop_slot(self, slot: Slot) -> None:
        unserved = slot.first(State.SERVING) is None
        for worker in slot.workers:
            if worker.state is State.BOOTING:
                self._orders.dismiss(worker, "stopped while booting")
                continue
            if unserved:
                self._orders.serve(worker)  # One that is held is all that there is for what is queued.
            self._orders.drain(worker)

    def _plan_end(self) -> None:
        exporter = self._exporter.first(State.SERVING) if self._exporter else None
        if exporter is not None and not exporter.asked and not any(slot.workers for slot in self.slots):
            # The last to go, so that the drain of the others can be watched.
            exporter.asked = True
            exporter.take(Cue.DRAIN)
            self._orders.tell_to_drain(exporter, EXPORTER_STOP_S)
            self._orders.limit(exporter, EXPORTER_STOP_S, "drain timeout")
        gave_up = self._give_up_s is not None and self._give_up_s <= self._now_s
        if not self.finished and (gave_up or not self._children):
            self.finished = True
            self._orders.add(self._finish)

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
        if self._reload.is_due:
            yield self._now_s
        reloading = self._reload.next is not None
        yield from (slot.fork_at_s for slot in self._all_slots() if slot.lacks_worker(reloading=reloading))
        if (unserved_until_s := self._unserved_until_s()) is not None:
            yield unserved_until_s
