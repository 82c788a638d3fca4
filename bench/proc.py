"""What /proc tells about a server: the CPU time it took, the memory it holds, what the kernel turned away.

Lives here: reading and parsing. Must not live here: what a figure is divided by.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.errors import BenchError

__all__ = [
    "cpu_ns",
    "listen_overflows",
    "parse_listen_overflows",
    "parse_private_dirty",
    "parse_schedstat",
    "parse_state",
    "private_dirty_bytes",
    "settle",
]

PRIVATE_DIRTY: Final = re.compile(r"^Private_Dirty:\s+(\d+) kB$", re.MULTILINE)
QUIET_S: Final = 0.010  # A server that took no CPU for so long has nothing left to do,
QUIET_NS: Final = 20_000  # or only what a timer makes it do now and then.
SETTLE_S: Final = 20.0  # One that never rests is measured all the same.


def parse_schedstat(text: str) -> int:
    """Nanoseconds on a CPU, of `/proc/PID/task/TID/schedstat`: "run time, time runnable, slices"."""
    fields = text.split()
    if len(fields) != 3:
        raise ValueError(f"not a schedstat: {text!r}")
    return int(fields[0])


def parse_private_dirty(text: str) -> int:
    """Bytes that the process has written to and shares with nobody, of `/proc/PID/smaps_rollup`."""
    match = PRIVATE_DIRTY.search(text)
    if match is None:
        raise ValueError("no Private_Dirty in smaps_rollup")
    return int(match[1]) * 1024


def parse_listen_overflows(text: str) -> int:
    """Connections that found an accept queue full, of `/proc/net/netstat`: each tries again after a second."""
    lines = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
    return int(dict(zip(*lines, strict=True))["ListenOverflows"])


@contextlib.contextmanager
def _ended_is_an_error(pid: int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise BenchError(f"the server (pid {pid}) has ended") from exc


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process. Raises `BenchError` when it has ended."""
    with _ended_is_an_error(pid):
        return sum(parse_schedstat((task / "schedstat").read_text()) for task in _tasks(pid))


def private_dirty_bytes(pid: int) -> int:
    """Raises `BenchError` when the process has ended."""
    with _ended_is_an_error(pid):
        return parse_private_dirty(Path(f"/proc/{pid}/smaps_rollup").read_text())


def _tasks(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def parse_state(text: str) -> str:
    """The letter of `/proc/PID/task/TID/stat`: R runs or would like to, S sleeps."""
    return text.rpartition(")")[2].split()[0]


def _runs(pid: int) -> bool:
    with _ended_is_an_error(pid):
        return any(parse_state((task / "stat").read_text()) == "R" for task in _tasks(pid))


def listen_overflows() -> int:
    return parse_listen_overflows(Path("/proc/net/netstat").read_text())


def settle(pid: int) -> int:
    """Wait until the process rests, as it does when what it was sent is done; its CPU time by then."""
    deadline_s = time.monotonic() + SETTLE_S
    before_ns = cpu_ns(pid)
    while True:
        time.sleep(QUIET_S)
        now_ns = cpu_ns(pid)
        # One that somebody else keeps off the CPU takes none either, but would like to.
        if (now_ns - before_ns <= QUIET_NS and not _runs(pid)) or time.monotonic() > deadline_s:
            return now_ns
        before_ns = now_ns
