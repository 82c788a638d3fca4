"""What the benchmark suite reads of /proc and of the machine, on real texts and on ourselves."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.building import compile_c
from bench.environment import describe
from bench.errors import BenchError
from bench.limits import Cpus, choose_cpus, raise_file_limit
from bench.proc import (
    cpu_ns,
    listen_overflows,
    parse_listen_overflows,
    parse_private_dirty,
    parse_schedstat,
    parse_state,
    private_dirty_bytes,
    settle,
)

ROLLUP = """\
55d0c0a00000-7ffd2a5fe000 ---p 00000000 00:00 0                          [rollup]
Rss:                9824 kB
Private_Clean:       120 kB
Private_Dirty:      5384 kB
"""
NETSTAT = """\
TcpExt: SyncookiesSent ListenOverflows ListenDrops
TcpExt: 1 17 19
IpExt: InNoRoutes
IpExt: 0
"""


@pytest.fixture
def ended_pid() -> int:
    """Of a process that has ended and been reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def _limit_restored() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_schedstat_begins_with_the_time_on_a_cpu() -> None:
    assert parse_schedstat("1234567890 42 7\n") == 1234567890


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "a b c"])
def test_schedstat_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"schedstat|invalid literal"):
        parse_schedstat(text)


def test_private_dirty_is_in_bytes() -> None:
    assert parse_private_dirty(ROLLUP) == 5384 * 1024
    with pytest.raises(ValueError, match="Private_Dirty"):
        parse_private_dirty("Rss: 1 kB\n")


def test_listen_overflows_are_found_by_name() -> None:
    assert parse_listen_overflows(NETSTAT) == 17
    assert listen_overflows() >= 0


def test_state_is_found_behind_any_name() -> None:
    assert parse_state("17 (a) R (x)) S 1 17 17 0 -1 4194304") == "S"


def test_our_own_cpu_time_grows_as_we_use_it() -> None:
    before = cpu_ns(os.getpid())
    used = 0
    while used < 5_000_000:
        used = cpu_ns(os.getpid()) - before


def test_our_own_memory_grows_by_what_is_written_to() -> None:
    """Far more than garbage of other tests that happens to be freed in the middle."""
    gc.collect()
    before = private_dirty_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        assert private_dirty_bytes(os.getpid()) - before >= len(held) // 2


def test_settle_returns_when_a_process_rests() -> None:
    resting = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        used = settle(resting.pid)
        assert 0 < used <= cpu_ns(resting.pid)
    finally:
        assert resting.stdin is not None
        resting.stdin.close()
        resting.wait()


def test_a_process_that_has_ended_is_said_to_have(ended_pid: int) -> None:
    with pytest.raises(BenchError, match=f"pid {ended_pid}. has ended"):
        cpu_ns(ended_pid)
    with pytest.raises(BenchError, match="has ended"):
        private_dirty_bytes(ended_pid)


def test_servers_and_load_get_a_cpu_each_when_there_are_two() -> None:
    assert choose_cpus({5, 3, 9}) == Cpus(3, 5)
    assert choose_cpus({3}) == Cpus(None, None)


@pytest.mark.usefixtures("_limit_restored")
def test_file_limit_is_raised_as_far_as_needed() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    assert raise_file_limit(200) == 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200
    assert raise_file_limit(100) == 100
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200, "what is enough already is left alone"


def test_environment_tells_what_figures_depend_on() -> None:
    told = describe()
    assert told["python"].startswith("CPython 3.")
    assert told["engine"] in ("python", "compiled")
    wanted = {"kernel", "libc", "compiler", "cpu", "uvloop", "shardnet", "command"}
    assert all(told[name] for name in wanted)


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BenchError, match="no C compiler 'no-such-compiler'"):
        compile_c("load")
