"""The stress (`stress.py`): a short run finds nothing, on every engine, and its judge would have found something."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shardnet.watcher import Op
from tests.engine.kit import PATIENCE_S
from tests.watcher.kit import ENGINES, Bench
from tests.watcher.stress_judge import Judge, Link, Ticket
from tests.watcher.stress_streams import Streams

PROJECT: Final = Path(__file__).resolve().parents[2]
ENDING_S: Final = 50.0


@contextlib.contextmanager
def running(*arguments: str, fds: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """The stress as a user runs it; `fds` is its hard limit of descriptors."""
    command = [sys.executable, "-m", "tests.watcher.stress", *arguments]
    if fds is not None:
        command = ["sh", "-c", f'ulimit -n {fds} && exec "$@"', "sh", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=PROJECT) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_well(process: subprocess.Popen[str]) -> tuple[str, str]:
    """It ends, and has found nothing; what it said, on both streams."""
    said, progress = process.communicate(timeout=ENDING_S)
    assert process.returncode == 0, said + progress
    assert said.endswith("\n0 violations\n"), said
    return said, progress


def judged(bench: Bench, streams: Streams) -> tuple[Judge, Link, Ticket, socket.socket]:
    """A judge who knows of one read of the connection 1, and the peer of that."""
    judge = Judge(streams)
    ours, theirs = bench.unix()
    link = Link(ours, connected=True)
    link.number, link.plan = 1, streams.plan(1)
    ticket = judge.ask(Op.READ, link)
    link.reads.append(ticket)
    bench.watcher.read(ours, ctx=ticket.serial)
    return judge, link, ticket, theirs


def test_judge_knows_right_bytes_from_wrong_ones(bench: Bench) -> None:
    streams = Streams(1)
    for slip in (0, 1, 4096):
        judge, link, ticket, theirs = judged(bench, streams)
        theirs.sendall(streams.part(link.plan.to_watcher, slip, 100))
        assert judge.judge(bench.watcher.wait_io(PATIENCE_S)[0], time.monotonic()) is ticket
        assert [violation.partition(": ")[2] for violation in judge.violations] == (
            ["wrong bytes among the 100 after the first 0"] if slip else []
        )


def test_judge_tells_of_a_completion_that_comes_twice_or_uncalled(bench: Bench) -> None:
    judge, link, ticket, theirs = judged(bench, Streams(1))
    theirs.close()
    done = bench.one().completion
    assert judge.judge(done, time.monotonic()) is ticket
    assert (judge.violations, judge.pending, link.eof) == ([], {}, True)
    assert judge.judge(done, time.monotonic()) is None
    bench.watcher.sleep(0, ctx="nobody's")
    assert judge.judge(bench.one().completion, time.monotonic()) is None
    again, uncalled = judge.violations
    assert again.startswith("ctx 1 came again: ")
    assert uncalled.startswith('ctx "nobody\'s" came though nobody passed it: ')


def test_judge_tells_of_one_that_has_overtaken_another(bench: Bench) -> None:
    judge, link, _, theirs = judged(bench, Streams(1))
    older = link.reads.popleft()
    ticket = judge.ask(Op.READ, link)
    link.reads += (ticket, older)  # As if the one that is about to complete had been asked later.
    theirs.close()
    judge.judge(bench.one().completion, time.monotonic())
    assert len(judge.violations) == 1
    assert "has overtaken an older one" in judge.violations[0]


def test_judge_tells_of_an_end_that_cannot_be(bench: Bench) -> None:
    judge, _, _, _ = judged(bench, Streams(1))
    bench.watcher.close()
    judge.judge(bench.one().completion, time.monotonic())
    assert len(judge.violations) == 1
    assert "ended with WatcherClosed" in judge.violations[0]


@pytest.mark.slow
def test_stress_finds_nothing_in_a_short_run(engine: str) -> None:
    poller = ENGINES[engine]["poller"]
    with running("--seconds", "8", "--connections", "400", "--poller", poller, "--swap-size", "16384") as process:
        said, progress = assert_well(process)
    assert said.startswith(f"poller {poller}, 400 connections, 8 s, seed 1, swap buffer of 16384 bytes\n")
    # It was a stress: all the kinds of operations, and of their ends.
    for ends in ("read ok", "read EOFError", "read DeadlineExceeded", "read ConnectionFreed", "write ok", "accept ok"):
        assert re.search(rf"^{ends} +[1-9]", said, re.MULTILINE), (ends, said)
    for ends in ("connect ok", "timer ok", "write ConnectionFreed", "detached", "dropped", "half-closed"):
        assert re.search(rf"^{ends} +[1-9]", said, re.MULTILINE), (ends, said)
    assert re.match(r"stress: \d+ s, round .*, 0 violations\n", progress)


@pytest.mark.slow
def test_stress_stops_cleanly_when_interrupted(engine: str) -> None:
    with running("--seconds", "600", "--connections", "50", "--poller", ENGINES[engine]["poller"]) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("stress: ")  # The work is under way.
        process.send_signal(signal.SIGINT)
        said, _ = assert_well(process)
    assert "\n1 of 10 " in said
    assert "\n2 of 10 " not in said
    assert "\nclosing " in said


@pytest.mark.slow
def test_stress_takes_fewer_connections_when_the_limit_is_low() -> None:
    with running("--seconds", "1", "--connections", "400", fds=300) as process:
        said, progress = assert_well(process)
    assert said.startswith("poller epoll, 44 connections, ")
    assert progress.startswith(
        "stress: 400 connections need 656 descriptors, and the hard limit is 300 (ulimit -Hn): taking 44\n"
    )
