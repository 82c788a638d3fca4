"""What the exporter finds out of processes, looked at for real: a child that burns CPU, opens files, and ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from shardnet.board import Board, Family, Labels, Metric, Role
from shardnet.catalogue.cells import declare_supervisor_metrics, declare_worker_metrics
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
from shardnet.exporter.processes import WEIGH_S, Processes, _look_at, _meet, listen_failures

BUSY = "import sys, time\nfiles = [open('/dev/null') for _ in range(50)]\nwhile time.process_time() < 0.2: pass\n"


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(shards_max=2)
    own = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    own.publish_pid(os.getpid())
    declare_supervisor_metrics(own)
    yield board
    board.close()


@contextlib.contextmanager
def busy_process() -> Iterator[subprocess.Popen[str]]:
    """A process with 50 files more than usual, that has used 0.2 s of CPU, and waits for its input to end."""
    code = BUSY + "print('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def claim(board: Board, pid: int, shard: int = 0, incarnation: int = 1) -> int:
    index = board.claim(Role.WORKER, shard, 1, incarnation, started_ns=0)
    row = board.row(index)
    declare_worker_metrics(row, ["127.0.0.1:9000"])
    row.publish_pid(pid)
    return index


def value(families: list[Family], metric: Metric, shard: object) -> float:
    family = next(family for family in families if family.metric == metric)
    return family.values[Labels.of({"shard": str(shard)})]


def cpu_s(board: Board, shard: str, mode: str = "user") -> float:
    return board.snapshot().value(PROCESS_CPU, shard=shard, mode=mode)


def test_processes_are_looked_at_by_shard(board: Board) -> None:
    with busy_process() as process:
        claim(board, process.pid, shard=1)
        families = Processes(board, os.getpid()).look(time.monotonic())
        kernel = psutil.Process(process.pid)
        assert value(families, PROCESS_RESIDENT, 1) == pytest.approx(kernel.memory_info().rss, rel=0.2)
        assert 0 < value(families, PROCESS_PROPORTIONAL, 1) <= value(families, PROCESS_RESIDENT, 1)
        assert value(families, PROCESS_OPEN_FDS, 1) == kernel.num_fds() >= 53
        assert value(families, PROCESS_MAX_FDS, 1) == kernel.rlimit(psutil.RLIMIT_NOFILE)[0]
        assert cpu_s(board, "1") + cpu_s(board, "1", "system") >= 0.15
        assert board.snapshot().value(PROCESS_SWITCHES, shard="1", kind="voluntary") >= 1
        for shard in (SUPERVISOR, EXPORTER):
            assert value(families, PROCESS_RESIDENT, shard) > 0
            assert cpu_s(board, shard) > 0


def test_cpu_time_of_a_process_that_has_ended_is_kept(board: Board) -> None:
    """Law: what counts upwards never goes back, whoever ends: a worker, or the exporter that looked at it."""
    processes = Processes(board, os.getpid())
    with busy_process() as process:
        row = claim(board, process.pid)
        processes.look(time.monotonic())
        before_s = cpu_s(board, "0")
    board.fold(row)
    assert cpu_s(board, "0") == before_s > 0
    with busy_process() as successor:
        claim(board, successor.pid, incarnation=2)
        own_s = cpu_s(board, EXPORTER)
        Processes(board, os.getpid()).look(time.monotonic())  # Another exporter, by now.
        assert cpu_s(board, "0") > before_s
        assert cpu_s(board, EXPORTER) >= own_s + os.times().user / 2


def test_process_that_is_gone_is_passed_over(board: Board) -> None:
    with busy_process() as process:
        pass
    claim(board, process.pid)
    families = Processes(board, os.getpid()).look(time.monotonic())
    with pytest.raises(KeyError):
        value(families, PROCESS_RESIDENT, 0)
    assert value(families, PROCESS_RESIDENT, EXPORTER) > 0


def test_row_that_has_changed_hands_meanwhile_is_left_alone(board: Board) -> None:
    """A worker ends between the look at the directory and the look at its process: its row is zeros, and stays so."""
    with busy_process() as process:
        row = board.row(claim(board, process.pid))
        seen = _meet(row, "0", process.pid)
        row.publish_pid(process.pid + 1)
        _look_at(seen, row)
        assert cpu_s(board, "0") == 0
        row.publish_pid(process.pid)
        _look_at(seen, row)
        assert cpu_s(board, "0") > 0


def test_memory_is_counted_between_looks_and_not_at_each(board: Board) -> None:
    processes = Processes(board, os.getpid())
    with busy_process() as process:
        claim(board, process.pid)
        now_s = time.monotonic()
        first = value(processes.look(now_s), PROCESS_OPEN_FDS, 0)
        psutil.Process(process.pid).kill()
        process.wait()
        assert first >= 53
    with busy_process() as process:
        claim(board, process.pid, incarnation=2, shard=1)
        opened = value(processes.look(now_s), PROCESS_OPEN_FDS, EXPORTER)
        with open(os.devnull), open(os.devnull):  # noqa: PTH123
            processes.weigh(now_s + WEIGH_S / 2)
            assert value(processes.look(now_s + WEIGH_S), PROCESS_OPEN_FDS, EXPORTER) == opened
            processes.weigh(now_s + WEIGH_S)
            assert value(processes.look(now_s + WEIGH_S), PROCESS_OPEN_FDS, EXPORTER) >= opened + 2


def test_failures_of_listeners_are_those_that_the_kernel_tells() -> None:
    metrics = {family.metric: family.values[Labels.of({})] for family in listen_failures()}
    assert metrics.keys() == {LISTEN_OVERFLOWS, LISTEN_DROPS}
    assert all(value >= 0 for value in metrics.values())
