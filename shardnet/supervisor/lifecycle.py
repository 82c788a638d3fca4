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
from shardnet.supervisor.actions import Action, Ended, Finish, Fork, Promoted, Renew, Respawn, Serving
from shardnet.supervisor.events import (
    Borrowed,
    Ending,
    Event,
    Exited,
    Failed,
    ForkFailed,
    KeepOutAsked,
    LameDuckAsked,
    Leaving,
    LoanRefused,
    Misspoke,
    Ready,
    Reason,
    ReloadAsked,
    RenewalFailed,
    Renewed,
    ScaleAsked,
    Seen,
    StopAsked,
    Weighed,
)
from shardnet.supervisor.handover import FleetState
from shardnet.supervisor.lending import Lending
from shardnet.supervisor.orders import Orders, Patience
from shardnet.supervisor.recycling import Recycling
from shardnet.supervisor.reload import Reload
from shardnet.supervisor.scaling import Scaling
from shardnet.supervisor.slot import Cue, Slot, State, Worker, backoff_s
from shardnet.supervisor.stop import EXPORTER_STOP_S, Stop
from shardnet.supervisor.vigil import Vigil

__all__ = ["Fleet"]

HEALTHY_S: Final = 60.0  # A worker that has served so long is no evidence of a crash loop.

UNSERVED_S: Final = 30.0  # Attempts have failed for so long while nobody serves: whoever runs us must know.
FAILED_EXIT_S: Final = 2.0  # From "failed" to the exit that must follow.


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
        shards_max: int | None = None,
        renews: bool = False,
        lends: bool = True,
        state: FleetState | None = None,
    ) -> None:
        """`shards_max`: what it may grow to; None: no more than `shards`. `renews`: a reload starts with a new program.
        `lends`: each shard has listeners of its own. `state`: what the fleet was when it asked for this one."""
        slots = (Slot(shard, in_size=shard < shards) for shard in range(max(shards, shards_max or 0)))
        self.slots = state.slots if state else tuple(slots)
        self._exporter = (state.exporter if state else Slot(None)) if exporter else None
        self._patience = patience
        self._random = random
        self._orders = Orders(patience)
        self._reload = Reload(self.slots, self._orders, renews=renews)
        self.lame_duck = False  # It serves, and wants no new clients.
        self._recycling = Recycling(self.slots, self._orders, random)
        self._scaling = Scaling(self.slots, self._orders)
        self._vigil = Vigil(self._orders)
        self._lending = Lending(self.slots, self._orders, lends=lends)
        self._now_s = 0.0
        self._children: dict[int, tuple[Slot, Worker]] = {}
        self._last_child = 0
        self._announced = False
        self._failing_since_s: float | None = None  # The first failed attempt since somebody served.
        self._last_failure = ""
        self._end = Stop(self.slots, self._exporter, self._orders)
        if state is not None:
            self._resume(state)

    def _resume(self, state: FleetState) -> None:
        self._children = {worker.child: (slot, worker) for slot in self._all_slots() for worker in slot.workers}
        self._last_child, self._announced = state.last_child, state.announced
        self.lame_duck = state.lame_duck
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
            lame_duck=self.lame_duck,
            failing_since_s=self._failing_since_s,
            last_failure=self._last_failure,
            slots=self.slots,
            exporter=self._exporter,
        )

    @property
    def stopping(self) -> bool:
        return self._end.begun

    @property
    def finished(self) -> bool:
        return self._end.finished

    @property
    def shards(self) -> int:
        """How many are to be served."""
        return self._scaling.shards

    @property
    def reload_stage(self) -> str | None:
        """Where the reload is that is under way, or is asked for; None: there is none."""
        return self._reload.stage

    @property
    def reload_failure(self) -> str:
        """Why the last reload that failed did; "" if none has."""
        return self._reload.last_failure

    @property
    def generation(self) -> int:
        """The one that serves, or was the last to."""
        return self._reload.generation

    def apply(self, event: Event, now_s: float) -> None:
        """Take note of what has happened. What is said of a child that is gone is ignored."""
        self._set_now(now_s)
        match event:
            case StopAsked(quick):
                self._reload.cancel()
                self._end.ask(quick=quick)
            case ReloadAsked(upgrade):
                if not self.stopping:
                    self._reload.ask(upgrade=upgrade)
            case ScaleAsked(shards):
                if not self.stopping:
                    self._scaling.to(shards)
            case LameDuckAsked(on):
                self.lame_duck = on
            case KeepOutAsked(shard, out):
                self._scaling.keep_out(shard, out=out)
            case Renewed():
                self._replace_exporter()
                self._reload.renewed()
            case RenewalFailed(why, detail):
                self._reload.renewal_failed(why, detail)
            case _:
                self._apply_to_child(event)

    def _apply_to_child(
        self, event: Ready | Failed | Leaving | Misspoke | Exited | ForkFailed | Borrowed | LoanRefused | Seen | Weighed
    ) -> None:
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
            case Borrowed(child, loan):
                self._lending.accepted(child, loan)
            case LoanRefused(child, loan):
                self._lending.refused(child, loan)
            case Weighed(_, memory_bytes):
                self._recycling.weighed(worker, memory_bytes)
            case Seen(_, beat, queued):
                self._vigil.saw(worker, beat, queued=queued)
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
            self._end.plan()
        else:
            self._vigil.plan(worker for slot in self.slots for worker in slot.workers)
            if self._reload.plan():
                self._note_serving()
            self._scaling.plan()
            self._recycling.plan(reloading=self.reload_stage is not None)
            self._lending.plan()  # First: a fork takes its time.
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
        if not self._announced and all(slot.was_ready for slot in self.slots if slot.wanted):
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
        if worker.hung:
            reason = Reason.HANG
        elif not (worker.asked or worker.held):
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
                if slot.wanted and slot.of_generation(self._reload.next) is None:
                    self._fork(slot, self._reload.next, held=True)

    def _replace_exporter(self) -> None:
        """The one that is there runs the program that was."""
        exporter = self._exporter.first(State.SERVING) if self._exporter else None
        if exporter is not None:
            self._orders.drain(exporter, timeout_s=EXPORTER_STOP_S)

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

    def _stop(self, why: str, finish: Finish, *, quick: bool = False) -> None:
        self._reload.cancel()
        self._end.begin(why, finish, quick=quick)

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
            if self._end.deadline_s is not None:
                yield self._end.deadline_s
            return
        if self._reload.is_due:
            yield self._now_s
        reloading = self._reload.next is not None
        yield from (slot.fork_at_s for slot in self._all_slots() if slot.lacks_worker(reloading=reloading))
        yield from self._lending.deadlines()
        yield from self._recycling.deadlines()
        if (unserved_until_s := self._unserved_until_s()) is not None:
            yield unserved_until_s
