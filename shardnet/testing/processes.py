"""What /proc and pidfds tell about processes that a test started, and ending them by pid.

Lives here: looking, waiting for an end, ending. Must not live here: what a test expects to see.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["end_session", "session_pids", "stop_and_wait", "wait_gone"]


def session_pids(session: int) -> list[int]:
    """The living processes of a session; zombies, which only wait to be reaped, are not living."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end while we look.
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX" and int(fields[3]) == session:
                    found.append(int(entry.name))
    return sorted(found)


@contextlib.contextmanager
def _pidfds(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """Pidfds of those that still live, by pid."""
    with contextlib.ExitStack() as stack:
        opened = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                opened[pid] = os.pidfd_open(pid)
                stack.callback(os.close, opened[pid])
        yield opened


def wait_gone(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until every one of these processes has ended; the pids of those that have not by then."""
    deadline_s = time.monotonic() + timeout_s
    with _pidfds(pids) as pidfds:
        waiting = {fd: pid for pid, fd in pidfds.items()}
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                del waiting[fd]
        return sorted(waiting.values())


def end_session(session: int, timeout_s: float = 10.0) -> list[int]:
    """SIGKILL whoever is left of a session that a test started, and wait for their end; who that was."""
    deadline_s = time.monotonic() + timeout_s
    killed: set[int] = set()
    while (left := session_pids(session)) and time.monotonic() < deadline_s:
        with _pidfds(left) as pidfds:
            # Asked again with the pidfd in hand: a pid looked up before could have changed hands since.
            # The leader first: it would fork successors.
            for pid in sorted(set(session_pids(session)) & pidfds.keys(), key=lambda pid: pid != session):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
                    killed.add(pid)
            wait_gone(pidfds, deadline_s - time.monotonic())
    return sorted(killed)


def stop_and_wait(pid: int) -> None:
    """SIGSTOP a process that is not our child, and return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()
