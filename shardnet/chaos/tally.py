"""What all clients saw, counted by the fault during which they saw it.

A session belongs to the fault that was injected last before its end, if that was not over long before its beginning.

Lives here: counting. Must not live here: processes, words.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from shardnet.chaos.session import LEFT_QUEUE, Outcome, Session

__all__ = ["NO_FAULT", "Counts", "Tally"]

NO_FAULT: Final = "none"  # The time in which nothing was injected.
AFTER_S: Final = 0.2  # What happens so soon after a fault is over is still its doing.
SPANS_KEPT: Final = 64


@dataclass(slots=True)
class Counts:
    """What came of the sessions of one kind of fault."""

    injections: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    accept_worst_s: float = 0.0  # The longest that a connection waited until it was accepted.
    answer_worst_s: float = 0.0  # The longest from connect() to an answer.

    def add(self, session: Session) -> None:
        self.outcomes[session.outcome] += 1
        if session.outcome in LEFT_QUEUE:
            self.accept_worst_s = max(self.accept_worst_s, session.accept_wait_s)
        if session.outcome is Outcome.ANSWERED:
            self.answer_worst_s = max(self.answer_worst_s, session.wait_s)

    @property
    def attempted(self) -> int:
        return sum(self.outcomes.values())

    @property
    def lost(self) -> int:
        """Connections that came to nothing though no worker had them."""
        return sum(self.outcomes[outcome] for outcome in (Outcome.REFUSED, Outcome.RESET, Outcome.HUNG))

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.injections + other.injections,
            {outcome: count + other.outcomes[outcome] for outcome, count in self.outcomes.items()},
            max(self.accept_worst_s, other.accept_worst_s),
            max(self.answer_worst_s, other.answer_worst_s),
        )


@dataclass(slots=True)
class _Span:
    fault: str
    begun_s: float
    over_s: float = float("inf")


class Tally:
    """Counts by fault. Sessions may be added by one thread while another one injects."""

    def __init__(self) -> None:
        self.by_fault: dict[str, Counts] = {NO_FAULT: Counts()}
        self.pause_worst_s = 0.0  # The longest that the clients themselves stood still.
        self._spans: deque[_Span] = deque(maxlen=SPANS_KEPT)
        self._lock = threading.Lock()

    def begin(self, fault: str) -> None:
        """It is about to be injected."""
        with self._lock:
            self.by_fault.setdefault(fault, Counts()).injections += 1
            self._spans.append(_Span(fault, time.monotonic()))

    def end(self) -> None:
        """What was injected last is over."""
        with self._lock:
            self._spans[-1].over_s = time.monotonic() + AFTER_S

    def add(self, session: Session) -> None:
        with self._lock:
            self.by_fault[self._fault_of(session)].add(session)

    def add_pause(self, seconds: float) -> None:
        with self._lock:
            self.pause_worst_s = max(self.pause_worst_s, seconds)

    def total(self) -> Counts:
        with self._lock:
            return sum(self.by_fault.values(), Counts())

    def _fault_of(self, session: Session) -> str:
        for span in reversed(self._spans):
            if span.over_s < session.started_s:
                break
            if span.begun_s <= session.ended_s:
                return span.fault
        return NO_FAULT
