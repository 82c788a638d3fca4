"""What a fleet wants done, in this order, and what is to be put on record: the vocabulary of `lifecycle`'s plans.

A child is spoken of by its number, as in `events`. Values only; nothing here does anything.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from shardnet.errors import ExitCode
from shardnet.supervisor.events import Ending, Reason

__all__ = [
    "Action",
    "CloseListeners",
    "Drain",
    "DumpStacks",
    "Ended",
    "Finish",
    "Fork",
    "GiveBack",
    "Kill",
    "Lend",
    "Promoted",
    "Recycle",
    "ReloadBegan",
    "ReloadFailed",
    "ReloadWaits",
    "Reloaded",
    "Renew",
    "Respawn",
    "Scaled",
    "Serve",
    "Serving",
    "Stopping",
]


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
class Lend:
    """Send the child the listeners of this shard, to accept on them. It answers with the loan's number."""

    child: int
    shard: int
    loan: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Tell the child to accept no more on what it was lent: the shard has a worker again."""

    child: int
    loan: int


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have the child say where all its threads stand: its loop has not turned for so long."""

    child: int
    silent_s: float


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
class Recycle:
    """For the record: the worker is being replaced."""

    child: int
    reason: Reason
    why: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """For the record: so many shards are wanted now, and were before, of so many that there could be."""

    shards: int
    before: int
    shards_max: int


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
    | Lend
    | GiveBack
    | DumpStacks
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
    | Recycle
    | Scaled
    | Stopping
    | CloseListeners
    | Finish
)
