"""Servers that run: started, found, put on a CPU, ended by pid whatever happens.

Ours is the real command with its defaults, one worker and metrics on; the process that is measured is the worker. The
reference servers end with their standard input, so that none outlives us; the supervisor is asked for the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.building import PROJECT
from bench.errors import BenchError
from bench.servers import Server, command_of
from shardnet.testing.output import Output, environment
from shardnet.testing.processes import end_session, session_pids
from shardnet.testing.sharded import ShardedServer

__all__ = ["Running", "start"]

START_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has said that it listens."""

    name: str
    pid: int  # Of the process that is measured.
    port: int
    engine: str = ""  # Of ours.


@contextlib.contextmanager
def start(server: Server, cpu: int | None) -> Iterator[Running]:
    """Start a server, all of it on that CPU, and end it on leaving. Raises `BenchError` when it does not start."""
    with _start_ours(server) if server.ours else _start_reference(server) as (leader, running):
        if cpu is not None:
            for pid in session_pids(leader):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {cpu})
        yield running


@contextlib.contextmanager
def _start_ours(server: Server) -> Iterator[tuple[int, Running]]:
    setpriv = shutil.which("setpriv")
    prefix = (setpriv, "--pdeathsig", "TERM") if setpriv else ()
    kit = ShardedServer(server.app, workers=1, app_dir=PROJECT, prefix=prefix)
    try:
        kit.__enter__()
    except AssertionError as exc:
        raise BenchError(f"{server.name}: {exc}") from exc
    try:
        workers = kit.wait_serving()
        yield kit.pid, Running(server.name, workers[0], kit.address[1], kit.engine)
    except BaseException as exc:
        kit.__exit__(type(exc), exc, exc.__traceback__)
        raise
    try:
        kit.__exit__(None, None, None)
    except AssertionError as exc:
        raise BenchError(f"{server.name} did not end well: {exc}") from exc


@contextlib.contextmanager
def _start_reference(server: Server) -> Iterator[tuple[int, Running]]:
    process = subprocess.Popen(
        command_of(server),
        cwd=PROJECT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output = Output(stdout=process.stdout, stderr=process.stderr)
    try:
        said = output.wait(r"^listening 127\.0\.0\.1:(\d+)$", START_TIMEOUT_S)
        yield process.pid, Running(server.name, process.pid, int(said[1]))
    except AssertionError as exc:
        last = (output.lines() or ["it said nothing"])[-1]
        raise BenchError(f"{server.name} did not start: {last}") from exc
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
        end_session(process.pid)
        process.wait(END_TIMEOUT_S)
        output.wait_closed(END_TIMEOUT_S)
