"""Lending: a shard whose own worker does not accept has its listeners accepted on by a sibling.

The supervisor holds every listener, so whatever is queued on one waits while its shard's worker has crashed, boots or
hangs; it is only a matter of who reads. A sibling is sent the shard's listeners, and is told to give them back when the
shard has a worker again. Both may accept meanwhile: that is harmless, a queue that nobody reads is not.

Rule 1: nobody is waited for. A sibling that refuses, or does not answer in time, is passed over, and the next is asked.
Rule 2: who is asked, and in which order, follows from how many loans each has: a loan more for the one with the fewest.
Rule 3: a shard that has never had a worker is not lent while the first one boots: at a start all boot together, and
there is nothing queued.

Pure, like `lifecycle`, which owns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from shardnet.supervisor.actions import GiveBack, Lend
from shardnet.supervisor.orders import Orders
from shardnet.supervisor.slot import Loan, Slot, State, Worker

__all__ = ["Lending"]

ANSWER_S: Final = 0.2  # What a sibling may take to say that it accepts: many turns of a loop that is not stuck.
REFUSED_S: Final = 1.0  # Whoever could not take a loan (it is out of descriptors, say) is not asked again so soon.


class Lending:
    """Who accepts on the listeners of shards that have nobody."""

    def __init__(self, slots: Sequence[Slot], orders: Orders, *, lends: bool) -> None:
        """`lends`: there are listeners of single shards, and not only such as all workers share."""
        self._slots = slots if lends else ()
        self._orders = orders
        self._last_loan = max((loan.number for slot in slots for loan in slot.loans), default=0)

    def accepted(self, child: int, number: int) -> None:
        """The borrower accepts on what it was lent."""
        for slot in self._slots:
            for loan in slot.loans:
                if (loan.borrower, loan.number) == (child, number):
                    loan.answered = True

    def refused(self, child: int, number: int) -> None:
        """The borrower does not have what it was lent, or could not be asked."""
        for slot in self._slots:
            for loan in slot.loans:
                if (loan.borrower, loan.number) == (child, number):
                    slot.loans.remove(loan)
                    self._pass_over(child)
                    return

    def plan(self) -> None:
        """Lend what nobody accepts on, and ask back what somebody does."""
        serving = {worker.child for slot in self._slots if (worker := slot.first(State.SERVING))}
        for slot in self._slots:
            # Those who end or drain stop accepting by themselves.
            slot.loans = [loan for loan in slot.loans if loan.borrower in serving]
        for slot in self._slots:
            if slot.accepts:
                self._take_back(slot)
            elif slot.is_lendable and not any(self._stands(loan) for loan in slot.loans):
                self._lend(slot)

    def deadlines(self) -> Iterator[float]:
        """When `plan` has something to do even if nothing happens."""
        for slot in self._slots:
            if not slot.accepts and slot.is_lendable:
                times_s = [loan.began_s + ANSWER_S for loan in slot.loans if not loan.answered]
                times_s += [worker.refuses_until_s for worker in self._siblings(slot)]
                yield from (at_s for at_s in times_s if at_s > self._orders.now_s)

    def _lend(self, slot: Slot) -> None:
        has_one = {loan.borrower for loan in slot.loans}
        now_s = self._orders.now_s
        able = [w for w in self._siblings(slot) if w.child not in has_one and w.refuses_until_s <= now_s]
        if not able or slot.shard is None:
            return
        # One that leaves is soon asked to give up everything: only if there is nobody else.
        borrower = min(able, key=lambda worker: (worker.asked, self._loans_of(worker.child), worker.child))
        self._last_loan += 1
        slot.loans.append(Loan(self._last_loan, borrower.child, now_s))
        self._orders.add(Lend(borrower.child, slot.shard, self._last_loan))

    def _take_back(self, slot: Slot) -> None:
        for loan in slot.loans:
            self._orders.add(GiveBack(loan.borrower, loan.number))
        slot.loans = []

    def _stands(self, loan: Loan) -> bool:
        """Whether the shard need not be lent to somebody else."""
        if any(w.child == loan.borrower and w.stuck for slot in self._slots for w in slot.workers):
            return False
        return loan.answered or self._orders.now_s < loan.began_s + ANSWER_S

    def _siblings(self, slot: Slot) -> list[Worker]:
        workers = (other.first(State.SERVING) for other in self._slots if other is not slot)
        return [worker for worker in workers if worker is not None and not worker.stuck]

    def _loans_of(self, child: int) -> int:
        return sum(loan.borrower == child for slot in self._slots for loan in slot.loans)

    def _pass_over(self, child: int) -> None:
        for slot in self._slots:
            for worker in slot.workers:
                if worker.child == child:
                    worker.refuses_until_s = self._orders.now_s + REFUSED_S
