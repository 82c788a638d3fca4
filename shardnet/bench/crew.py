"""The load processes: forked, told when to begin, watched, asked to stop, and waited for.

Every run has at least one, also when one is enough: what people see is printed here, and costs those who measure
nothing.

Lives here: processes and signals. Must not live here: what they do, and what is said about it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from shardnet.bench.load import NS_PER_S, Load
from shardnet.bench.options import Options
from shardnet.bench.sheet import Cell, Kind, Sheet
from shardnet.childhood import close_others, flush_streams
from shardnet.errors import ShardnetError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LOOK_S: Final = 0.25  # How often progress is shown.
STOP_S: Final = 3.0  # A process that was told to stop and has not by then is killed.
LEAD_NS: Final = 2_000_000  # From the word to begin to the first message that is due.
MESSAGE_MAX_BYTES: Final = 4096


class Member:
    """One load process, as seen from outside."""

    def __init__(self, pid: int, sheet: Sheet, control: socket.socket) -> None:
        self.pid = pid
        self.sheet = sheet
        self.control = control
        self.is_up = False  # It has tried every connection.
        self.status: int | None = None  # How it ended, as `os.waitstatus_to_exitcode` has it.

    def tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # It has ended; we shall read so.
            self.control.send(message.encode())

    def reap(self) -> None:
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)


class Crew:
    """The load processes of one run, to be used in a `with`: nobody is left when it ends. For the main thread."""

    def __init__(self, options: Options) -> None:
        self.members: list[Member] = []
        self.details: dict[Kind, str] = {}  # What the first error of each kind said.
        self.stopped_by: int | None = None  # The signal that ended the run.
        self.begun = False
        self.killed = False  # What was measured is incomplete.
        self._options = options
        self._selector = selectors.DefaultSelector()
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._kill_at_s: float | None = None

    def __enter__(self) -> Crew:
        # A wake-up for whoever waits in `run`: a handler alone does not end a select.
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._wakeup_before = -1
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for number in range(self._options.processes):
                self._fork(number)
            self._wakeup_before = signal.set_wakeup_fd(self._waker.fileno())
            self._handlers = {signum: signal.signal(signum, self._note_signal) for signum in SIGNALS}
        except BaseException:  # No process to be had, or no descriptor: those that were forked are not left behind.
            self.__exit__()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        for member in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
            member.reap()
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def run(self, look: Callable[[], object]) -> None:
        """Until every process has ended; `look` is called a few times a second meanwhile.

        SIGINT or SIGTERM ends the load early. A second one ends its processes.
        """
        while self._running():
            for key, _ in self._selector.select(self._patience_s()):
                if key.data is None:
                    self._answer_signals()
                else:
                    self._hear(key.data)
            if not self.begun and all(member.is_up for member in self._running()):
                self._begin()
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                self._kill()
            look()

    def lost(self) -> list[str]:
        """How those ended that did not end well, and were not killed by us."""
        return [] if self.killed else [_ending(member.status) for member in self.members if member.status]

    def _running(self) -> list[Member]:
        return [member for member in self.members if member.status is None]

    def _patience_s(self) -> float:
        return LOOK_S if self._kill_at_s is None else max(0.0, min(LOOK_S, self._kill_at_s - time.monotonic()))

    def _fork(self, number: int) -> None:
        sheet = Sheet()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.fork()
            if pid == 0:
                _live(self._options, number, sheet, theirs)
        member = Member(pid, sheet, ours)
        self.members.append(member)
        self._selector.register(ours, selectors.EVENT_READ, member)

    def _hear(self, member: Member) -> None:
        try:
            message = member.control.recv(MESSAGE_MAX_BYTES).decode(errors="replace")
        except OSError:
            message = ""
        word, _, rest = message.partition(" ")
        match word:
            case "up":
                member.is_up = True
            case "error":
                name, _, detail = rest.partition(" ")
                self.details.setdefault(Kind(name), detail)
            case _:
                self._selector.unregister(member.control)
                member.reap()

    def _begin(self) -> None:
        """Every connection has been tried: begin, at the same time everywhere, where there is one."""
        self.begun = True
        rate = self._options.rate
        opened = [member.sheet.cells[Cell.OPENED] for member in self.members]
        total = sum(opened)
        if not total or self.stopped_by is not None:
            self._stop()
            return
        start_ns = time.monotonic_ns() + LEAD_NS
        for number, (member, count) in enumerate(zip(self.members, opened, strict=True)):
            if not count:
                member.tell("stop")
            elif rate is None:
                member.tell(f"go {start_ns} 0")
            else:
                # Each its part of the rate, and not all at once: one after the other, as the whole would be.
                offset_ns = int(number * NS_PER_S / rate)
                member.tell(f"go {start_ns + offset_ns} {NS_PER_S / rate * total / count!r}")

    def _stop(self) -> None:
        for member in self._running():
            member.tell("stop")

    def _kill(self) -> None:
        for member in self._running():
            os.kill(member.pid, signal.SIGKILL)
        self.killed = True
        self._kill_at_s = None

    def _note_signal(self, _signum: int, _frame: FrameType | None) -> None:
        """The wake-up has its number: `_answer_signals` reads it."""

    def _answer_signals(self) -> None:
        for signum in self._woken.recv(MESSAGE_MAX_BYTES):
            if signum not in SIGNALS:
                continue
            if self.stopped_by is None:
                self.stopped_by = signum
                self._kill_at_s = time.monotonic() + STOP_S
                self._stop()
            elif not self.killed:
                self._kill_at_s = time.monotonic()


def _live(options: Options, number: int, sheet: Sheet, control: socket.socket) -> NoReturn:
    """The life of a load process. The signals that the starter answers are blocked when it begins."""
    status = 1
    try:
        # Ctrl-C reaches the whole foreground group, and so may TERM. What they mean, the starter says.
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # Above all the ends of those forked before: each is to see when the starter is gone.
        close_others({0, 1, 2, control.fileno()})
        # Nothing of a load makes cyclic garbage for each message, and looking for some would delay replies.
        gc.freeze()
        gc.disable()
        Load(options, number, sheet, control).run()
        status = 0
    except ShardnetError as error:
        print(f"shardnet bench: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        flush_streams()
        os._exit(status)


def _ending(status: int | None) -> str:
    assert status is not None
    return f"ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
