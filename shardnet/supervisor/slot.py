"""One slot of the fleet: what its workers may be, and how long it waits between them.

The table of a worker's life is here; who gives the cues, and when, is decided in `lifecycle`. Pure, like that one.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final

__all__ = ["NEXT", "Cue", "Slot", "State", "Worker", "backoff_s"]

BACKOFF_FIRST_S: Final = 0.1  # The second failure in a row; after the first one, the next attempt comes at once.
BACKOFF_MAX_S: Final = 10.0
BACKOFF_JITTER: Final = 0.2  # Up to so much more or less, so that slots that failed together do not stay in step.


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

    def take(self, cue: Cue) -> bool:
        """Change state; whether the cue meant anything."""
        state = NEXT[self.state].get(cue)
        if state is None:
            return False
        self.state = state
        return True


@dataclass(slots=True)
class Slot:
    """The supervisor's record of one shard, or, with `shard` None, of the exporter."""

    shard: int | None
    workers: list[Worker] = field(default_factory=list)
    failures: int = 0  # In a row.
    fork_at_s: float = -math.inf  # Not before this.
    was_ready: bool = False

    def first(self, *states: State) -> Worker | None:
        return next((worker for worker in self.workers if worker.state in states), None)

    def of_generation(self, generation: int) -> Worker | None:
        return next((worker for worker in self.workers if worker.generation == generation), None)

    def lacks_worker(self, *, reloading: bool) -> bool:
        """Whether a child should be forked for it, to serve as soon as it can."""
        if any(worker.state is State.BOOTING and not (worker.held or worker.dismissed) for worker in self.workers):
            return False
        serving = self.first(State.SERVING)
        if serving is None:
            return True
        # A successor to one that leaves is ready only to make the leaver a drainer: one of those is enough. And a
        # reload brings it one anyway.
        return serving.asked and not reloading and not self.first(State.DRAINING)

    @property
    def state(self) -> str:
        """The one word for it; `backoff` when nobody is there."""
        if self.first(State.SERVING):
            return State.SERVING.value
        if self.first(State.BOOTING, State.HELD):
            return State.BOOTING.value
        return State.DRAINING.value if self.first(State.DRAINING) else "backoff"


def backoff_s(failures: int, random: float) -> float:
    """The delay before the next attempt after so many failures in a row; `random` is from 0 to 1."""
    if failures <= 1:
        return 0.0
    # The exponent is bounded because 2.0 ** 1100 would be an OverflowError, some hours into a crash loop.
    steady_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 16))
    return steady_s * (1.0 - BACKOFF_JITTER + 2.0 * BACKOFF_JITTER * random)
