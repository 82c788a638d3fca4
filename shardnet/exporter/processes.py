"""What the kernel knows of a server's processes and of the host: looked at when somebody asks, by the exporter.

What counts upwards is written to the board, into cells of the process's own row that nobody else writes: when a worker
has ended, it is kept like all that the worker had counted. What does not is told as it is. The memory of a process, and
its descriptors where there are many, take the kernel a while to count, so each is counted every ten seconds at most,
and while nobody waits: after the answer.

Lives here: looking, and where it is written. Must not live here: formats, and what else a scrape tells.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from shardnet.board import Board, Family, Labels, Metric, Occupant, Role, Row
from shardnet.catalogue.families import (
    EXPORTER,
    LISTEN_DROPS,
    LISTEN_OVERFLOWS,
    PROCESS_CPU,
    PROCESS_MAX_FDS,
    PROCESS_OPEN_FDS,
    PROCESS_PROPORTIONAL,
    PROCESS_RESIDENT,
    PROCESS_SWITCHES,
    SUPERVISOR,
)
from shardnet.memory import proportional_bytes

__all__ = ["Processes", "listen_failures"]

WEIGH_S: Final = 10.0
WEIGHED_MAX: Final = 8  # The others have to wait for the next time.
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
PROC_MAX_BYTES: Final = 8192
NETSTAT: Final = Path("/proc/net/netstat")


@dataclass(slots=True)
class _Seen:
    """One process, as it was last seen."""

    shard: str
    process: psutil.Process
    cpu_cell: int | None = None  # The first of those where its row has it; None where it has not.
    switches_cell: int | None = None
    cpu_before_s: tuple[float, float] = (0.0, 0.0)  # What was there of a process before it.
    switches_before: tuple[int, int] = (0, 0)
    resident_bytes: int = 0
    max_fds: int = 0
    proportional_bytes: int | None = None
    open_fds: int | None = None
    weighed_s: float = float("-inf")


class Processes:
    """The processes of one server."""

    def __init__(self, board: Board, own_pid: int) -> None:
        self._board = board
        self._own_pid = own_pid
        self._seen: dict[tuple[int, str, int], _Seen] = {}  # By row, shard and pid.

    def look(self, now_s: float) -> list[Family]:
        """Look at everyone who has a row, and at the exporter: the families that are not on the board. `now_s` is on
        the monotonic clock. Who is new is weighed too."""
        seen: dict[tuple[int, str, int], _Seen] = {}
        for occupant, shard, pid in self._everyone():
            key = (occupant.row, shard, pid)
            with contextlib.suppress(psutil.Error, OSError):  # It has ended, or is not ours to be looked at.
                row = self._board.row(occupant.row)
                one = self._seen.get(key) or _meet(row, shard, pid)
                _look_at(one, row)
                seen[key] = one
        self._seen = seen
        for one in seen.values():
            if one.open_fds is None:
                _weigh(one, now_s)
        return self._families()

    def weigh(self, now_s: float) -> None:
        """Weigh some of those that were last seen, if it is time: the next look tells."""
        due = [one for one in self._seen.values() if now_s - one.weighed_s >= WEIGH_S]
        for one in sorted(due, key=lambda one: one.weighed_s)[:WEIGHED_MAX]:
            _weigh(one, now_s)

    def _everyone(self) -> Iterator[tuple[Occupant, str, int]]:
        for occupant in self._board.occupants():
            if occupant.role is Role.WORKER and occupant.pid:
                yield occupant, str(occupant.shard), occupant.pid
            elif occupant.role is Role.SUPERVISOR and occupant.pid:
                yield occupant, SUPERVISOR, occupant.pid
                yield occupant, EXPORTER, self._own_pid

    def _families(self) -> list[Family]:
        seen = self._seen.values()
        limits = Family(PROCESS_MAX_FDS, {Labels.of({"shard": one.shard}): one.max_fds for one in seen})
        return [
            _sums(PROCESS_RESIDENT, [(one.shard, one.resident_bytes) for one in seen]),
            _sums(PROCESS_PROPORTIONAL, [(one.shard, one.proportional_bytes) for one in seen]),
            _sums(PROCESS_OPEN_FDS, [(one.shard, one.open_fds) for one in seen]),
            limits,
        ]


def _meet(row: Row, shard: str, pid: int) -> _Seen:
    """A process that was not seen before. Its cells are found by what its row says of itself: code of another version
    may have written that."""
    one = _Seen(shard, psutil.Process(pid))
    for declaration in row.declarations():
        for values, cell in declaration.cells():
            labels = dict(zip(declaration.metric.labels, values, strict=True))
            if labels.get("shard", shard) == shard:
                if declaration.metric.name == PROCESS_CPU.name and one.cpu_cell is None:
                    one.cpu_cell = cell
                elif declaration.metric.name == PROCESS_SWITCHES.name and one.switches_cell is None:
                    one.switches_cell = cell
    if shard == EXPORTER and one.cpu_cell is not None and one.switches_cell is not None:
        one.cpu_before_s = (row.values[one.cpu_cell], row.values[one.cpu_cell + 1])
        one.switches_before = (row.counts[one.switches_cell], row.counts[one.switches_cell + 1])
    return one


def _look_at(one: _Seen, row: Row) -> None:
    stat, status = _read(one.process.pid, "stat"), _read(one.process.pid, "status")
    # Behind the name, which may hold anything: proc_pid_stat(5), from field 3 on.
    fields = stat[stat.rindex(b")") + 2 :].split()
    cpu_s = (int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S)
    one.resident_bytes = int(fields[21]) * PAGE_BYTES
    # The last two lines of proc_pid_status(5).
    switches = [int(line.rpartition(b"\t")[2]) for line in status.splitlines() if b"ctxt_switches:" in line]
    if one.shard != EXPORTER and row.pid != one.process.pid:
        return  # It has ended meanwhile, and the row is another's, or will be.
    if one.cpu_cell is not None:
        for offset, (before_s, now_s) in enumerate(zip(one.cpu_before_s, cpu_s, strict=True)):
            row.values[one.cpu_cell + offset] = before_s + now_s
    if one.switches_cell is not None:
        for offset, (before, now) in enumerate(zip(one.switches_before, switches, strict=True)):
            row.counts[one.switches_cell + offset] = before + now


def _read(pid: int, name: str) -> bytes:
    """A file of the process's. By hand, for it is read at each scrape, and psutil takes far longer for the same."""
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, PROC_MAX_BYTES)
    finally:
        os.close(fd)


def _weigh(one: _Seen, now_s: float) -> None:
    one.weighed_s = now_s
    with contextlib.suppress(psutil.Error, OSError):
        one.max_fds = one.process.rlimit(resource.RLIMIT_NOFILE)[0]
        # Since Linux 6.2 the directory's size is how many there are.
        one.open_fds = Path(f"/proc/{one.process.pid}/fd").stat().st_size or one.process.num_fds()
        one.proportional_bytes = proportional_bytes(one.process.pid)


def _sums(metric: Metric, parts: list[tuple[str, int | None]]) -> Family:
    family = Family(metric)
    for shard, part in parts:
        if part is not None:
            labels = Labels.of({"shard": shard})
            family.values[labels] = family.values.get(labels, 0) + part
    return family


def listen_failures() -> list[Family]:
    """How often the kernel had no room for a connection at some listener of this network namespace; none where it does
    not say. (TcpExt in /proc/net/netstat: a line of names, then one of numbers.)"""
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = NETSTAT.read_text(encoding="ascii").splitlines()
        names, numbers = (line.split() for line in lines if line.startswith("TcpExt:"))
        counts = dict(zip(names, numbers, strict=True))
        return [
            Family(metric, {Labels.of({}): int(counts[name])})
            for metric, name in ((LISTEN_OVERFLOWS, "ListenOverflows"), (LISTEN_DROPS, "ListenDrops"))
        ]
    return []
