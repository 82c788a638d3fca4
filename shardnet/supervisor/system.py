"""The seam between the supervisor and the kernel: children, their exits and messages, signals, the clock.

One epoll waits for everything: a pidfd per child (its end), a control endpoint per child (its messages), a pipe per
child (what its fault handler writes, in whatever state it is) and a socket that signals wake. A signal handler only
enqueues, so that a signal is handled between two turns of the loop, never in the middle of one.

Fork hygiene. All signals are blocked from before the fork until the child has given up the supervisor's handlers:
in between, a signal for the child would be handled as if it were the supervisor's. The child then closes whatever
is not its own: first through the objects that own the descriptors, so that none of them closes a number later that
by then stands for something else; then by number, what no object of ours owns. Nothing returns from the child.

Lives here: what is asked of the kernel, and how. Must not live here: why.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from shardnet.childhood import close_others, flush_streams, run_exit_functions
from shardnet.control import ControlEndpoint, pair
from shardnet.errors import ExitCode
from shardnet.memory import proportional_bytes
from shardnet.operatorsocket import OperatorSocket, speaks_for_us
from shardnet.supervisor.clients import Clients
from shardnet.supervisor.clock import SteadyClock
from shardnet.supervisor.events import Ending
from shardnet.supervisor.handover import ChildState
from shardnet.supervisor.happenings import (
    Asked,
    ChildDumped,
    ChildExited,
    ChildMisspoke,
    ChildSaid,
    Happening,
    OrphanReaped,
)
from shardnet.supervisor.signals import ASKED, HANDLED, IGNORED_BY_CHILDREN, LAME_DUCK, SCALE

__all__ = [
    "LinuxSystem",
    "System",
]

SIGNALS_QUEUED_MAX: Final = 2  # Of each: two say as much as a hundred. Of those that scale, each counts.
CORRUPT_MAX: Final = 3  # Packets that are no messages: after so many, what a child says cannot be relied on.
WAKES_READ_BYTES: Final = 4096
STACKS_READ_BYTES: Final = 65536  # As much as a pipe holds.
STANDARD_STREAMS: Final = frozenset({0, 1, 2})


Enter = Callable[[], Collection[int]]
Main = Callable[[ControlEndpoint, int], int]


class System(Protocol):
    """What the supervisor asks of the world. Children go by numbers of the caller's, never used twice."""

    def now_s(self) -> float:
        """The time of a steady clock, which stands still while this process does not get to run."""
        ...

    def wait(self, until_s: float) -> list[Happening]:
        """What has happened, at the latest when `until_s` has come: signals first, exits last."""
        ...

    def fork(self, child: int, enter: Enter, main: Main) -> int:
        """Start a child; returns its pid, in the parent only.

        The child calls `enter`, which closes what it owns of the parent's and returns the descriptors to keep; then
        `main` with its control endpoint and the descriptor for its fault handler, and exits with what that returns.

        Raises:
            OSError: The kernel refused; there is no child.
        """
        ...

    def tell(self, child: int, type_: str, fds: Collection[int] = (), **fields: object) -> bool:
        """Send the child a control message, and its own copies of these descriptors; False if it is gone or does not
        read."""
        ...

    def kill(self, child: int, signum: signal.Signals) -> None:
        """Send the child a signal; nothing happens if it is gone."""
        ...

    def memory_bytes(self, child: int) -> int | None:
        """How much memory the child has, what it shares in proportion; None where that cannot be known."""
        ...

    def answer(self, client: int, re: int, **fields: Any) -> None:
        """Answer an operator's message of this id; nothing happens if the operator is gone, or does not read."""
        ...

    def close(self) -> None:
        """Let go of everything; living children see the end of their control channel."""
        ...


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    pidfd: int
    control: ControlEndpoint
    stacks_fd: int  # The reading end.
    misspoke: bool = False

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.stacks_fd)
        self.control.close()


class LinuxSystem:
    """`System` on Linux 5.10 or later. One per process, in its main thread; it owns the process's signal handlers
    until `close`, and unblocks their signals until then."""

    def __init__(
        self,
        children: Iterable[ChildState] = (),
        signals: Iterable[int] = (),
        lost_s: float = 0.0,
        operators: OperatorSocket | None = None,
    ) -> None:
        """`children`, `signals` and `lost_s` are those that this process had when it ran another program: see
        `hand_over`. `operators` is where commands come in; it stays the caller's."""
        self._clock = SteadyClock(time.monotonic, lost_s)
        self._children: dict[int, _Child] = {}
        self._by_fd: dict[int, _Child] = {}
        self._signals: collections.deque[int] = collections.deque(signals)
        self._children_ended = True  # There may be some from before us, as after an exec.
        self._epoll = select.epoll()
        self._operators = operators
        self._clients = Clients(self._epoll, operators.listener if operators else None, speaks_for_us)
        self._wake_reader, self._wake_writer = socket.socketpair()
        for sock in (self._wake_reader, self._wake_writer):
            sock.setblocking(False)
        self._epoll.register(self._wake_reader, select.EPOLLIN)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        handlers = dict.fromkeys(ASKED, self._on_signal)
        if not any(map(os.isatty, STANDARD_STREAMS)):
            handlers.update(dict.fromkeys(LAME_DUCK, self._on_signal))
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]  # nohup was asked for.
        self._old_handlers = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._on_child_signal)
        for child in children:
            control = socket.socket(fileno=child.control_fd)
            control.set_inheritable(False)
            os.set_inheritable(child.stacks_fd, False)
            self._adopt(child.number, child.pid, ControlEndpoint(control), child.stacks_fd)
        if self._signals:
            self._wake_writer.send(b"\0")
        self._old_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def now_s(self) -> float:
        return self._clock.now_s()

    def wait(self, until_s: float) -> list[Happening]:
        self._clock.begin_wait(until_s)
        ready = self._epoll.poll(max(0.0, until_s - self.now_s()))
        self._clock.end_wait()
        said: list[Happening] = []
        exited: list[Happening] = []
        for fd, _ in ready:
            child = self._by_fd.get(fd)
            if fd == self._wake_reader.fileno():
                self._read_wakes()
            elif child is None:
                said += self._clients.hear(fd)  # Or it was reaped a moment ago, for another event of this batch.
            else:
                said += self._hear(child)
                said += self._read_stacks(child)
                if fd == child.pidfd:
                    exited += self._reap(child)
        if self._children_ended:
            exited += self._reap_orphans()
        signals: list[Happening] = []
        while self._signals:
            signals.append(Asked(self._signals.popleft()))
        return signals + said + exited

    def fork(self, child: int, enter: Enter, main: Main) -> int:
        flush_streams()  # Or what is buffered would be printed by both.
        stacks_fd, their_stacks_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # A full pipe holds up no fault handler.
        try:
            ours, theirs = pair()
        except OSError:
            os.close(stacks_fd)
            os.close(their_stacks_fd)
            raise
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                os.close(stacks_fd)
                self._be_child(ours, (theirs, their_stacks_fd), mask, enter, main)
        except OSError:
            ours.close()
            os.close(stacks_fd)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
            os.close(their_stacks_fd)
        self._adopt(child, pid, ours, stacks_fd)
        return pid

    def tell(self, child: int, type_: str, fds: Collection[int] = (), **fields: object) -> bool:
        return child in self._children and self._children[child].control.send(type_, fds, **fields) is not None

    def kill(self, child: int, signum: signal.Signals) -> None:
        if child in self._children:
            with contextlib.suppress(ProcessLookupError):  # It has ended, and its exit is on the way to us.
                signal.pidfd_send_signal(self._children[child].pidfd, signum)

    def memory_bytes(self, child: int) -> int | None:
        return proportional_bytes(self._children[child].pid) if child in self._children else None

    def answer(self, client: int, re: int, **fields: Any) -> None:
        self._clients.answer(client, re, fields)

    def hand_over(self) -> tuple[tuple[ChildState, ...], tuple[int, ...], float]:
        """All children, the signals that nobody has heard of, and how far the clock stands behind: for the program that
        will run in this process next.

        Until then, or `keep`, signals wait: blocked ones that are pending survive an exec, handlers do not. Whoever
        executes has to let the children's descriptors survive it.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        children = (ChildState(c.number, c.pid, c.control.fileno(), c.stacks_fd) for c in self._children.values())
        return tuple(children), tuple(self._signals), self._clock.lost_s

    def keep(self) -> None:
        """Go on as before: nobody took what `hand_over` gave."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def close(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: it was not installed from Python.
        signal.set_wakeup_fd(self._old_wakeup_fd)
        self._close_descriptors()

    # Signals.

    def _on_signal(self, signum: int, _frame: object) -> None:
        if signum in SCALE or self._signals.count(signum) < SIGNALS_QUEUED_MAX:
            self._signals.append(signum)

    def _on_child_signal(self, _signum: int, _frame: object) -> None:
        self._children_ended = True

    def _read_wakes(self) -> None:
        """The bytes only wake: how many signals came is known by their handlers, which cannot overflow unseen."""
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(WAKES_READ_BYTES)

    # Children.

    def _adopt(self, number: int, pid: int, control: ControlEndpoint, stacks_fd: int) -> None:
        with contextlib.ExitStack() as undo:
            # Out of descriptors or watches: a child that cannot be watched is none. Killed, it is gone at once.
            undo.callback(control.close)
            undo.callback(os.close, stacks_fd)
            undo.callback(os.waitpid, pid, 0)
            undo.callback(os.kill, pid, signal.SIGKILL)
            # Until it is reaped its pid is its own, so this is no race, even if it has already ended.
            pidfd = os.pidfd_open(pid)
            undo.callback(os.close, pidfd)
            for fd in (pidfd, control.fileno(), stacks_fd):
                self._epoll.register(fd, select.EPOLLIN)
            undo.pop_all()
        child = _Child(number, pid, pidfd, control, stacks_fd)
        self._children[number] = child
        self._by_fd.update(dict.fromkeys((pidfd, control.fileno(), stacks_fd), child))

    def _hear(self, child: _Child) -> list[Happening]:
        heard: list[Happening] = [ChildSaid(child.number, message) for message in child.control.receive()]
        if child.control.corrupt >= CORRUPT_MAX and not child.misspoke:
            child.misspoke = True
            heard.append(ChildMisspoke(child.number))
        if child.control.eof:
            self._stop_hearing(child)  # Its end stays readable for ever; the pidfd tells the rest.
        return heard

    def _read_stacks(self, child: _Child) -> list[Happening]:
        try:
            text = os.read(child.stacks_fd, STACKS_READ_BYTES)
        except BlockingIOError:
            return []
        if not text:
            self._stop_watching(child.stacks_fd)  # As for the control endpoint. An app may close what it likes.
            return []
        return [ChildDumped(child.number, text.decode(errors="replace"))]

    def _stop_watching(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _stop_hearing(self, child: _Child) -> None:
        self._stop_watching(child.control.fileno())

    def _reap(self, child: _Child) -> list[Happening]:
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return []
        last_words = self._read_stacks(child)
        for fd in (child.control.fileno(), child.stacks_fd, child.pidfd):
            self._stop_watching(fd)
        del self._children[child.number]
        child.close()
        return [*last_words, ChildExited(child.number, _ending(result))]

    def _reap_orphans(self) -> list[Happening]:
        """Reap children that we did not fork."""
        own_pids = {child.pid for child in self._children.values()}
        orphans: list[Happening] = []
        self._children_ended = False
        with contextlib.suppress(ChildProcessError):  # No children at all.
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in own_pids:
                    self._children_ended = True  # Its pidfd reports it next turn; then we look behind it.
                    break
                os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
                orphans.append(OrphanReaped(ended.si_pid, _ending(ended)))
        return orphans

    # In the child.

    def _be_child(
        self,
        parents_end: ControlEndpoint,
        own: tuple[ControlEndpoint, int],
        mask: set[signal.Signals | int],
        enter: Enter,
        main: Main,
    ) -> NoReturn:
        code: int = ExitCode.FAILED
        try:
            gc.freeze()  # Garbage of the parent's is not collected here: it might own descriptors, see above.
            for signum in self._old_handlers:
                ignored = signum in IGNORED_BY_CHILDREN
                signal.signal(signum, signal.SIG_IGN if ignored else signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            parents_end.close()
            if self._operators is not None:
                self._operators.close_in_child()
            self._close_descriptors()
            control, stacks_fd = own
            close_others(STANDARD_STREAMS | {control.fileno(), stacks_fd, *enter()})
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            atexit._clear()  # The parent's.
            code = main(control, stacks_fd)
            run_exit_functions(code)
        except BaseException:
            traceback.print_exc()
        finally:
            # Whatever happens, not a step back into the parent's stack, its handlers and its atexit functions.
            try:
                flush_streams()
            finally:
                os._exit(code if isinstance(code, int) else ExitCode.FAILED)

    def _close_descriptors(self) -> None:
        self._clients.close_in_child()
        for child in self._children.values():
            child.close()
        self._children.clear()
        self._by_fd.clear()
        self._epoll.close()
        self._wake_reader.close()
        self._wake_writer.close()


def _ending(result: os.waitid_result) -> Ending:
    if result.si_code == os.CLD_EXITED:
        return Ending(status=result.si_status)
    return Ending(signum=result.si_status)  # CLD_KILLED or CLD_DUMPED
