"""What happens to a fleet: the vocabulary in which `lifecycle` is told; in that of `actions` it answers.

A child is spoken of by its number, never reused, unlike a pid. Values only; nothing here does anything.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

__all__ = [
    "Borrowed",
    "Ending",
    "Event",
    "Exited",
    "Failed",
    "ForkFailed",
    "KeepOutAsked",
    "LameDuckAsked",
    "Leaving",
    "LoanRefused",
    "Misspoke",
    "Ready",
    "Reason",
    "ReloadAsked",
    "RenewalFailed",
    "Renewed",
    "ScaleAsked",
    "Seen",
    "StopAsked",
    "Weighed",
]


class Reason(enum.Enum):
    """Why a worker was replaced, or ended: the `reason` of the restart. The first three were not asked to."""

    CRASH = "crash"  # It exited, with whatever status; or the supervisor had lost patience with it.
    SIGNAL = "signal"
    HANG = "hang"  # Its loop did not turn, and the supervisor killed it for that.
    MEMORY = "memory"
    LIFETIME = "lifetime"
    ASKED = "asked"  # By an operator, with TERM or a command; or its app has given up.
    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: by its own exit status, or by a signal."""

    status: int = 0
    signum: int | None = None

    def __str__(self) -> str:
        if self.signum is None:
            return f"exit status {self.status}"
        try:
            return f"signal {self.signum} {signal.Signals(self.signum).name}"
        except ValueError:  # A real-time signal between the two that have names.
            return f"signal {self.signum}"


# Events: what has happened.


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker accepts connections; or, if it was forked to be held, could."""

    child: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker could not come up, says so, and is about to exit. `kind` is `app` when the user's app is why."""

    child: int
    kind: str
    message: str
    detail: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """Somebody sent the worker a TERM: it serves on until it is told to drain."""

    child: int


@dataclass(frozen=True, slots=True)
class Misspoke:
    """The child has sent too many packets that were no messages."""

    child: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone."""

    child: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The kernel refused to make the process that a Fork asked for."""

    child: int
    error: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The worker's heartbeat is this now, and connections wait at its listeners, or not."""

    child: int
    beat: int
    queued: bool


@dataclass(frozen=True, slots=True)
class Weighed:
    """The worker has so much memory: its proportional set size."""

    child: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Stop gracefully, or, if `quick` or asked again, at once."""

    quick: bool = False


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Put a new generation of workers in the place of the one that serves; if `upgrade`, forked by a new program."""

    upgrade: bool = False


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """Serve so many shards from now on."""

    shards: int


@dataclass(frozen=True, slots=True)
class KeepOutAsked:
    """Let this shard's worker drain, and fork none for it until somebody says otherwise; or say so."""

    shard: int
    out: bool


@dataclass(frozen=True, slots=True)
class LameDuckAsked:
    """Say that the server is not ready, and serve on; or say so no longer."""

    on: bool = True


@dataclass(frozen=True, slots=True)
class Renewed:
    """The program was started over, for the reload that asked for it, and has loaded the app."""


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """There is no new generation to fork: why in a line, and at length."""

    why: str
    detail: str


@dataclass(frozen=True, slots=True)
class Borrowed:
    """The worker accepts on what it was lent."""

    child: int
    loan: int


@dataclass(frozen=True, slots=True)
class LoanRefused:
    """The worker could not take what it was lent, or could not be sent it."""

    child: int
    loan: int
    why: str


Event = (
    Ready
    | Failed
    | Leaving
    | Misspoke
    | Exited
    | ForkFailed
    | Borrowed
    | LoanRefused
    | Seen
    | Weighed
    | StopAsked
    | ReloadAsked
    | ScaleAsked
    | KeepOutAsked
    | LameDuckAsked
    | Renewed
    | RenewalFailed
)
