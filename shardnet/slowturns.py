"""Who holds the loop: turns that take long are logged, with where they stood.

A loop that is held up cannot say by what; something has to look while it is. A timer of the kernel's, ITIMER_REAL,
does: its signal comes in the middle of a turn that has taken too long, and the stack at that moment is kept until the
turn is over. The timer is set when a turn begins, but not at each: while it runs, later turns rely on it, and when it
goes off, it is set again for what is left to the turn at hand. So a busy loop pays for one system call in each
threshold's time, and an idle one for nothing.

The signal, SIGALRM, may be the app's instead: when somebody else handles it, turns are still counted and logged,
without a place.

Lives here: looking, and telling. Must not live here: what a turn is (see `watcher.meter`).
"""

from __future__ import annotations

import signal
import sysconfig
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from shardnet.log import Log, RateLimit
from shardnet.watcher.meter import Meter

__all__ = ["SlowTurns"]

NS_PER_S: Final = 1_000_000_000
THRESHOLD_MAX_S: Final = 86400.0
LOG_BURST: Final = 10  # A peer may be what makes turns slow.
LOG_PER_S: Final = 0.2
OURS: Final = str(Path(__file__).parent)
LOOP_RUNS_IN: Final = str(Path(OURS, "worker.py"))
STDLIB: Final = sysconfig.get_paths()["stdlib"]
INSTALLED: Final = (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"])


class SlowTurns:
    """Looks after the turns of one loop, in the main thread. See `watcher.meter.Overseer`."""

    def __init__(self, meter: Meter, threshold_s: float, cells: memoryview, counted: int, log: Log) -> None:
        """Count turns that take longer than `threshold_s` in cell `counted` of `cells`."""
        self._meter = meter
        self._threshold_ns = int(min(threshold_s, THRESHOLD_MAX_S) * NS_PER_S)
        self._cells = cells
        self._counted = counted
        self._log = log
        self._limit = RateLimit(LOG_BURST, LOG_PER_S)
        self._stack: traceback.StackSummary | None = None
        self._woke_ns = 0  # Which turn `_stack` is of.

    def begin(self) -> None:
        """Look from the next turn on. Takes SIGALRM, unless it is somebody's already."""
        self._meter.overseer = self
        self._meter.slow_ns = self._threshold_ns
        if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.siginterrupt(signal.SIGALRM, False)
            self._meter.overseen = False

    def watch(self) -> None:
        """A turn has begun, and no timer runs."""
        self._set_timer(self._threshold_ns)

    def tell(self, busy_ns: int) -> None:
        """A turn is over that took so long."""
        self._cells[self._counted] += 1
        stack, self._stack = self._stack, None
        suppressed = self._limit.allow(time.monotonic())
        if suppressed is None:
            return
        fields: dict[str, object] = {"took_s": round(busy_ns / NS_PER_S, 3)}
        if stack is not None and self._woke_ns == self._meter.woke_ns:
            fields |= _places(stack)
        if suppressed:
            fields["suppressed"] = suppressed
        self._log.warning("slow turn", **fields)

    def _on_alarm(self, _signum: int, frame: FrameType | None) -> None:
        meter = self._meter
        if not meter.at_work:
            meter.overseen = False  # The next turn is to set the timer.
            return
        left_ns = meter.woke_ns + self._threshold_ns - time.monotonic_ns()
        if left_ns > 0:
            self._set_timer(left_ns)
        elif frame is not None:
            self._woke_ns = meter.woke_ns
            self._stack = traceback.StackSummary.extract(_frames(frame), lookup_lines=False)
            self._stack.reverse()
            meter.overseen = False

    def _set_timer(self, after_ns: int) -> None:
        self._meter.overseen = True
        if signal.getsignal(signal.SIGALRM) == self._on_alarm:
            signal.setitimer(signal.ITIMER_REAL, after_ns / NS_PER_S)


def _frames(frame: FrameType) -> Iterator[tuple[FrameType, int]]:
    at: FrameType | None = frame
    while at is not None:
        yield at, at.f_lineno
        at = at.f_back


def _places(stack: traceback.StackSummary) -> dict[str, object]:
    """Where the turn stood, and in which handler: the innermost frame of the app's, and the outermost."""
    begin = max((at for at, frame in enumerate(stack) if frame.filename == LOOP_RUNS_IN), default=-1) + 1
    turn = stack[begin:]
    own = [frame for frame in turn if _is_of_app(frame.filename)]
    if not own:
        return {"where": _place(turn[-1])} if turn else {}
    return {"where": _place(own[-1]), "line": own[-1].line, "handler": own[0].name}


def _is_of_app(filename: str) -> bool:
    """Whether it is neither ours nor Python's own: where a stack passes through, and seldom where the time goes."""
    if filename.startswith((OURS, "<frozen")):
        return False
    return filename.startswith(INSTALLED) or not filename.startswith(STDLIB)


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"
