"""The supervisor's clock: it stands still while the supervisor does not get to run.

All patience of the supervisor's is measured on it. So when a whole machine sleeps, or a group of processes is frozen,
or nobody gets a CPU, nobody is killed afterwards for what nobody could have done meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["SteadyClock"]

LATE_S: Final = 0.2  # A process that is well comes less late than this; or may work so long between two waits.


class SteadyClock:
    """`monotonic`, less what was lost. Tell it when a wait begins and ends."""

    def __init__(self, monotonic: Callable[[], float], lost_s: float = 0.0) -> None:
        """`lost_s` was lost already: in the program before this one in the process."""
        self.lost_s = lost_s
        self._monotonic = monotonic
        self._until_s = 0.0
        self._ended_s: float | None = None

    def now_s(self) -> float:
        return self._monotonic() - self.lost_s

    def begin_wait(self, until_s: float) -> None:
        """To wait until then at the latest. If the last wait has ended long ago, we were held up in between."""
        if self._ended_s is not None:
            self._lose(self._ended_s)
        self._until_s = max(until_s, self.now_s())

    def end_wait(self) -> None:
        self._lose(self._until_s)
        self._ended_s = self.now_s()

    def _lose(self, expected_s: float) -> None:
        late_s = self.now_s() - expected_s
        if late_s > LATE_S:
            self.lost_s += late_s
