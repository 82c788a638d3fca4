"""What happens to a fleet, and what it wants done: the two vocabularies between `lifecycle` and the rest.

A child is spoken of by its number, never reused, unlike a pid. Values only; nothing here does anything.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from shardnet.errors import ExitCode

__all__ = [
    "Action",
    "CloseListeners",
    "Drain",
    "Ended",
    "Ending",
    "Event",
    "Exited",
    "Failed",
    "Finish",
    "Fork",
    "ForkFailed",
    "Kill",
    "Leaving",
    "Misspoke",
    "Promoted",
    "Ready",
    "Reason",
    "ReloadAsked",
    "ReloadBegan",
    "ReloadFailed",
    "ReloadWaits",
    "Reloaded",
    "Renew",
    "RenewalFailed",
    "Renewed",
    "Respawn",
    "Serve",
    "Serving",
    "StopAsked",
    "Stopping",
]


class Reason(enum.Enum):
    """Why a worker ended that nobody had asked to: the `reason` of the restart."""

    CRASH = "crash"  # It exited, with whatever status; or the supervisor had lost patience with it.
    SIGNAL = "signal"


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
class StopAsked:
    """Stop gracefully, or, if `quick` or asked again, at once."""

    quick: bool = False


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Put a new generation of workers in the place of the one that serves."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The program was started over, for the reload that asked for it, and has loaded the app."""


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """There is no new generation to fork: why in a line, and at length."""

    why: str
    detail: str


Event = Ready | Failed | Leaving | Misspoke | Exited | ForkFailed | StopAsked | ReloadAsked | Renewed | RenewalFailed


# Actions: what is to be done, in this order.


@dataclass(frozen=True, slots=True)
class Fork:
    """Start a child under this number. `shard` None: the exporter. `held`: it is to come up, and not yet to accept."""

    child: int
    shard: int | None
    generation: int
    held: bool = False


@dataclass(frozen=True, slots=True)
class Serve:
    """Tell the child, which was held, to accept from now on."""

    child: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the child to finish what it has and to exit, within this time. It may spread the first `spread_s` of it over
    its idle connections, so that their clients do not all come back at once. `succeeded`: another one accepts on its
    listeners by now, and serves what is queued."""

    child: int
    timeout_s: float
    spread_s: float = 0.0
    succeeded: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """Send the child a signal."""

    child: int
    signum: signal.Signals
    why: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """For the record: the worker has come up, `boot_s` after its fork, and serves its shard unless it is held."""

    child: int
    shard: int
    boot_s: float
    held: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """For the record: the child is gone. `reason` None: somebody had asked it to go."""

    child: int
    shard: int | None
    ending: Ending
    ran_s: float
    reason: Reason | None
    trouble: str  # What was wrong with it, in its own words or in the supervisor's; may be empty.


@dataclass(frozen=True, slots=True)
class Respawn:
    """For the record: the next attempt to fill the slot comes after this delay."""

    shard: int | None
    delay_s: float
    failures: int  # In a row, so far.


@dataclass(frozen=True, slots=True)
class Serving:
    """Every shard has had a worker that came up. Said once."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Start the program over, and say `Renewed` or `RenewalFailed` to the fleet that goes on in it. Comes last."""


@dataclass(frozen=True, slots=True)
class ReloadBegan:
    """For the record: this generation is being forked."""

    generation: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """For the record: this generation serves, and the one before drains."""

    generation: int
    took_s: float


@dataclass(frozen=True, slots=True)
class ReloadFailed:
    """For the record: a new generation did not come up, and is no more; the one named here stays."""

    generation: int
    why: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReloadWaits:
    """For the record: a reload was asked for, and comes later. Said once."""

    why: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """For the record: no more forks from here on, and `code` in the end."""

    quick: bool
    why: str
    code: ExitCode


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Close the supervisor's copies of the listeners; workers accept what is queued, then close theirs."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to be done. `line` says why unless the code is OK, `detail` at length."""

    code: ExitCode
    line: str = ""
    detail: str = ""


Action = (
    Fork
    | Serve
    | Drain
    | Kill
    | Promoted
    | Ended
    | Respawn
    | Serving
    | Renew
    | ReloadBegan
    | Reloaded
    | ReloadFailed
    | ReloadWaits
    | Stopping
    | CloseListeners
    | Finish
)
