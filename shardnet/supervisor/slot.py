"""One slot of the fleet: what its workers may be, and how long it waits between them.

The table of a worker's life is here; who gives the cues, and when, is decided in `lifecycle`. Pure, like that one.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final

__all__ = ["NEXT", "Cue", "Loan", "Pulse", "Slot", "State", "Worker", "backoff_s"]

BACKOFF_FIRST_S: Final = 0.1  # The second failure in a row; after the first one, the next attempt comes at once.
BACKOFF_MAX_S: Final = 10.0
BACKOFF_JITTER: Final = 0.2  # Up to so much more or less, so that slots that failed together do not stay in step.


# The board has three rows for a shard. A fleet that is made smaller and larger time and again could have more drainers.
DRAINERS_MAX: Final = 2


class State(enum.Enum):
    """Where a worker stands; the same words as in metrics and logs."""

    BOOTING = "booting"
    HELD = "held"  # It has come up, and accepts nothing until it is told to: metrics count it among the booting.
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class Cue(enum.Enum):
    """What moves a worker from one state to another."""

    READY = "ready"
    HOLD = "hold"  # Ready, but one of a generation that is not complete.
    SERVE = "serve"
    DRAIN = "drain"
    EXITED = "exited"


# A cue that is not in its state's row changes nothing: a second "ready" from a worker, say.
NEXT: Final = {
    State.BOOTING: {Cue.READY: State.SERVING, Cue.HOLD: State.HELD, Cue.EXITED: State.GONE},
    State.HELD: {Cue.SERVE: State.SERVING, Cue.DRAIN: State.DRAINING, Cue.EXITED: State.GONE},
    State.SERVING: {Cue.DRAIN: State.DRAINING, Cue.EXITED: State.GONE},
    State.DRAINING: {Cue.EXITED: State.GONE},
    State.GONE: {},
}


@dataclass(slots=True)
class Pulse:
    """What was seen of a worker's loop."""

    beat: int = 0  # The heartbeat when it was last looked at.
    turned_s: float | None = None  # When it was last seen to have changed; None: nobody has looked.
    queued_s: float | None = None  # Since when connections have waited without a turn.
    stacks_asked_s: float | None = None


@dataclass(slots=True)
class Worker:
    """One child: a worker, or the exporter, which serves from its fork on."""

    child: int
    state: State
    forked_s: float
    generation: int
    held: bool = False  # Forked for a reload that is not complete: no part of what its slot has.
    ready_s: float | None = None
    kill_at_s: float | None = None  # When patience with it ends; None: never.
    kill_why: str = ""
    asked: bool = False  # Somebody wants it gone: its end is no failure.
    told: bool = False  # It has been told to drain.
    dismissed: bool = False  # Sent away while it booted: no part of what its slot has, even if it comes up now.
    blamed: bool = False  # The supervisor killed it for what it did, or failed to do.
    trouble: str = ""  # What went wrong with it, in its own words or in ours.
    stuck: bool = False  # Its loop does not turn while connections wait: nobody accepts on what it has.
    hung: bool = False  # The supervisor killed it because its loop did not turn.
    retires_why: str = ""  # It is to be replaced for this, when its turn comes.
    outgrown: bool = False  # And this is because of its memory, not its age.
    limit_share: float | None = None  # Of the limits on age and memory, by which it is replaced.
    pulse: Pulse = field(default_factory=Pulse)
    refuses_until_s: float = -math.inf  # It is lent nothing before.

    def take(self, cue: Cue) -> bool:
        """Change state; whether the cue meant anything."""
        state = NEXT[self.state].get(cue)
        if state is None:
            return False
        self.state = state
        return True


@dataclass(slots=True)
class Loan:
    """A shard's listeners, lent to a sibling."""

    number: int  # Never given twice.
    borrower: int  # A child.
    began_s: float
    answered: bool = False  # The borrower has said that it accepts.


@dataclass(slots=True)
class Slot:
    """The supervisor's record of one shard, or, with `shard` None, of the exporter."""

    shard: int | None
    workers: list[Worker] = field(default_factory=list)
    failures: int = 0  # In a row.
    fork_at_s: float = -math.inf  # Not before this.
    was_ready: bool = False
    in_size: bool = True  # False: the fleet is smaller than it could be.
    kept_out: bool = False  # Somebody has drained it, and wants it to stay empty.
    was_vacant: bool = False  # Its listeners were there before it was wanted.
    loans: list[Loan] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether it is to have a worker."""
        return self.in_size and not self.kept_out

    @property
    def accepts(self) -> bool:
        """Whether a worker of its own accepts connections."""
        serving = self.first(State.SERVING)
        return serving is not None and not serving.stuck

    @property
    def is_lendable(self) -> bool:
        """Whether anything may be queued, for whom its first worker will not come soon."""
        return self.was_ready or self.failures > 0 or self.was_vacant or not self.wanted

    @property
    def drainers(self) -> int:
        return sum(worker.state is State.DRAINING for worker in self.workers)

    def first(self, *states: State) -> Worker | None:
        return next((worker for worker in self.workers if worker.state in states), None)

    def of_generation(self, generation: int) -> Worker | None:
        return next((worker for worker in self.workers if worker.generation == generation), None)

    def lacks_worker(self, *, reloading: bool) -> bool:
        """Whether a child should be forked for it, to serve as soon as it can."""
        if not self.wanted:
            return False
        if any(worker.state is State.BOOTING and not (worker.held or worker.dismissed) for worker in self.workers):
            return False
        serving = self.first(State.SERVING)
        if serving is None:
            return self.drainers < DRAINERS_MAX
        # A successor to one that leaves is ready only to make the leaver a drainer: one of those is enough. And a
        # reload brings it one anyway.
        return serving.asked and not reloading and not self.first(State.DRAINING)

    @property
    def state(self) -> str:
        """The one word for it; `backoff` when nobody is there, and `vacant` when nobody should be."""
        if self.first(State.SERVING):
            return State.SERVING.value
        if any(worker.state in (State.BOOTING, State.HELD) and not worker.dismissed for worker in self.workers):
            return State.BOOTING.value
        if self.first(State.DRAINING):
            return State.DRAINING.value
        return "backoff" if self.wanted else "vacant"


def backoff_s(failures: int, random: float) -> float:
    """The delay before the next attempt after so many failures in a row; `random` is from 0 to 1."""
    if failures <= 1:
        return 0.0
    # The exponent is bounded because 2.0 ** 1100 would be an OverflowError, some hours into a crash loop.
    steady_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 16))
    return steady_s * (1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * random)
