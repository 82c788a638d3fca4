"""The way from one generation of workers to the next.

A new generation boots while the old one serves: one worker for each slot, *held*: it comes up, says so, and accepts
nothing. When all of them have come up they are told to serve, and in the same pass the old ones to drain. If one of
them fails before, all are discarded: they have accepted nothing, so nobody notices, and the old generation serves on.

Rule 1: at most two generations live at any time, a discarded one included. A reload that is asked for too early
waits, and however often it is asked for meanwhile, one follows.
Rule 2: generations do not mix. An old worker that dies while the new generation boots gets a successor of the old
generation at once, as it always would, although the new one for its slot may be up already: to let that one serve
would leave no way back if another of its generation fails. (The successor runs the code that is found by then, like
any respawn: generations number the attempts to change all workers together, not versions of files.) Whichever is
ready first, the successor or the whole new generation, ends the slot's wait.
Rule 3: a number of a generation is given once, also if it is discarded.
Rule 4: for an upgrade, and always with a preloaded app, the supervisor's program is renewed before a new generation is
forked. That happens between two passes: the fleet asks for it, and is told of it, in the same state.

Pure, like `lifecycle`, which owns it and forks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from shardnet.supervisor.actions import ReloadBegan, Reloaded, ReloadFailed, ReloadWaits
from shardnet.supervisor.orders import Orders
from shardnet.supervisor.slot import DRAINERS_MAX, Slot, State, Worker

__all__ = ["Reload"]

FIRST_GENERATION: Final = 1


class Reload:
    """Which generation serves, and whether another one is on its way."""

    def __init__(self, slots: Sequence[Slot], orders: Orders, *, renews: bool) -> None:
        """`renews`: each generation needs a new program."""
        self.generation = self.last = FIRST_GENERATION  # The one that serves, or was the last to; and the last number.
        self.next: int | None = None  # The one that boots, held.
        self.needs_program = False
        self.began_s = 0.0
        self.last_failure = ""
        self._slots = slots
        self._orders = orders
        self._always_renews = renews
        self._wanted = False
        self._wants_program = False
        self._said_to_wait = False
        self._failure: tuple[str, str] | None = None

    def ask(self, *, upgrade: bool = False) -> None:
        """`upgrade`: whatever is installed by now is to run in the supervisor, too."""
        self._wanted = True
        self._wants_program = self._wants_program or upgrade

    def cancel(self) -> None:
        """The server stops: whoever boots for it is the business of the stop."""
        self._wanted, self.next, self._failure = False, None, None
        self.needs_program = self._wants_program = False

    def resume(self, generation: int, last: int, began_s: float) -> None:
        """Go on as the one that asked for a new program, in which this is."""
        self.generation, self.last, self.began_s = generation, last, began_s
        self.needs_program = True

    def renewed(self) -> None:
        """The new program is there."""
        if self.needs_program:
            self.needs_program = False
            self._fork_next()

    def renewal_failed(self, why: str, detail: str) -> None:
        if self.needs_program:
            self.needs_program = False
            self._failure = (why, detail)

    def fail(self, worker: Worker, why: str, detail: str = "") -> None:
        """A held worker will not come up."""
        worker.asked = True  # Its end is part of ours: no crash, and nothing to be made good.
        if self._failure is None:
            self._failure = (why, detail)

    @property
    def is_due(self) -> bool:
        """Whether `plan` has something to do even if nothing happens: workers to fork, or a generation to discard."""
        unforked = self.next is not None and any(slot.of_generation(self.next) is None for slot in self._wanted_slots())
        return unforked or self._failure is not None

    def plan(self) -> bool:
        """Go as far as can be gone now; whether a new generation has just begun to serve."""
        completed = False
        if self._failure is not None:
            self._discard(*self._failure)
        elif self.next is not None:
            workers = (slot.of_generation(self.next) for slot in self._wanted_slots())
            if all(worker is not None and worker.state is State.HELD for worker in workers):
                self._complete(self.next)
                completed = True
        if self._wanted:
            in_the_way = self._in_the_way()
            if in_the_way is None:
                self._begin()
            elif not self._said_to_wait:
                self._said_to_wait = True
                self._orders.add(ReloadWaits(in_the_way))
        return completed

    @property
    def stage(self) -> str | None:
        """In words, what is under way; None: nothing."""
        if self.next is not None:
            workers = [worker for slot in self._wanted_slots() if (worker := slot.of_generation(self.next))]
            ready = sum(worker.state is State.HELD for worker in workers)
            return f"generation {self.next}: {ready} of {len(self._wanted_slots())} workers ready"
        if self.needs_program or self._failure:
            return "starting over"
        if self._wanted:
            return f"waiting: {self._in_the_way() or 'about to begin'}"
        return None

    def _in_the_way(self) -> str | None:
        if self.next is not None:
            return f"generation {self.next} boots"
        for worker in (worker for slot in self._slots for worker in slot.workers):
            if worker.generation < self.generation:
                return f"generation {worker.generation} drains"
            if worker.generation > self.generation:
                return f"generation {worker.generation} is being discarded"
        # Also when one shard never comes up, a reload may mend it: it only waits for the first attempts.
        wanted = self._wanted_slots()
        if not any(slot.was_ready for slot in wanted) or not all(slot.was_ready or slot.failures for slot in wanted):
            return "the first workers boot"
        for slot in wanted:
            if slot.drainers >= DRAINERS_MAX:
                return f"{slot.drainers} workers of shard {slot.shard} drain"
        return None

    def _begin(self) -> None:
        self._wanted = self._said_to_wait = False
        self.began_s = self._orders.now_s
        if self._always_renews or self._wants_program:
            self.needs_program, self._wants_program = True, False
        else:
            self._fork_next()

    def _fork_next(self) -> None:
        self.last += 1
        self.next = self.last
        self._orders.add(ReloadBegan(self.next))

    def _complete(self, generation: int) -> None:
        orders = self._orders
        orders.add(Reloaded(generation, orders.now_s - self.began_s))
        for worker in self._of(generation):
            orders.serve(worker)
        for slot in self._slots:
            slot.was_ready = slot.was_ready or slot.wanted
            slot.failures, slot.fork_at_s = 0, -math.inf  # The code is new: so is its account.
            for worker in slot.workers:
                if worker.generation == generation:
                    continue
                if worker.state is State.BOOTING:
                    orders.dismiss(worker, "replaced while booting")
                else:
                    orders.drain(worker, succeeded=True)
        self.generation, self.next = generation, None

    def _discard(self, why: str, detail: str) -> None:
        self.last_failure = why
        self._orders.add(ReloadFailed(self.generation, why, detail))
        for worker in () if self.next is None else self._of(self.next):
            self._orders.discard(worker, "discarded while booting")
        self.next, self._failure = None, None

    def _wanted_slots(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.wanted]

    def _of(self, generation: int) -> Iterator[Worker]:
        for slot in self._slots:
            worker = slot.of_generation(generation)
            if worker is not None:
                yield worker
