"""What a load saw, as a value that travels between processes as one JSON line.

Lives here: the outcomes of a session and their counts. Must not live here: sockets, processes, verdicts.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass, field

__all__ = ["Fault", "Outcome", "Report"]


class Outcome(enum.StrEnum):
    """How a session ended. *Unserved*: before the server's first byte. *Served*: after it."""

    COMPLETED = "completed"
    REFUSED = "refused"
    UNSERVED_RESET = "unserved_reset"
    UNSERVED_EOF = "unserved_eof"
    UNSERVED_HUNG = "unserved_hung"
    SERVED_RESET = "served_reset"
    SERVED_EOF = "served_eof"
    SERVED_HUNG = "served_hung"
    MISMATCHED = "mismatched"
    OWN_FAULT = "own_fault"  # The load generator's machine failed it; nothing is said about the server.
    UNFINISHED = "unfinished"  # The deadline came first.


@dataclass(frozen=True, slots=True)
class Fault:
    """One session that did not complete."""

    outcome: Outcome
    at_s: float  # The monotonic clock, which all processes of a machine share.
    after_s: float  # Since the connect.
    server: str
    port: int  # The client's own.
    detail: str


@dataclass(slots=True)
class Report:
    """What a load saw. `+` adds up the reports of several processes."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    sessions: int = 0  # connect() calls.
    established: int = 0  # Handshakes that completed.
    messages: int = 0  # Echoed whole and equal.
    sent_bytes: int = 0
    received_bytes: int = 0
    first_byte_worst_s: float = 0.0  # From connect() to the server's first byte.
    reply_worst_s: float = 0.0  # From a message's first byte out to its last byte in.
    duration_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    def count(self, *outcomes: Outcome) -> int:
        """Sessions that ended in one of these."""
        return sum(self.outcomes[outcome] for outcome in outcomes)

    @property
    def completed(self) -> int:
        return self.outcomes[Outcome.COMPLETED]

    @property
    def hung(self) -> int:
        return self.count(Outcome.UNSERVED_HUNG, Outcome.SERVED_HUNG)

    @property
    def failures(self) -> dict[str, int]:
        """Every outcome but `completed` that occurred: empty when all went well."""
        return {name: n for name, n in self.outcomes.items() if n and name != Outcome.COMPLETED}

    def __add__(self, other: Report) -> Report:
        return Report(
            outcomes={name: n + other.outcomes[name] for name, n in self.outcomes.items()},
            sessions=self.sessions + other.sessions,
            established=self.established + other.established,
            messages=self.messages + other.messages,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            received_bytes=self.received_bytes + other.received_bytes,
            first_byte_worst_s=max(self.first_byte_worst_s, other.first_byte_worst_s),
            reply_worst_s=max(self.reply_worst_s, other.reply_worst_s),
            duration_s=max(self.duration_s, other.duration_s),
            faults=sorted([*self.faults, *other.faults], key=lambda fault: fault.at_s),
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        fields = json.loads(text)
        faults = [Fault(**{**fault, "outcome": Outcome(fault["outcome"])}) for fault in fields.pop("faults")]
        return cls(**fields, faults=faults)
