"""A whole shardnet server as a test meets it: `python -m shardnet run` in a session of its own.

Everything is learned from outside, the way an operator would: the start-up line, `/healthz`, `/metrics`, signals,
exit statuses, /proc. Whoever starts one gets all of it ended, by pid, also when the test fails.

Lives here: starting, asking, waiting with deadlines, ending. Must not live here: anything imported from shardnet.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

from tests.harness.procs import end_session, session_pids, wait_gone
from tests.harness.scrape import Samples, get, get_json, parse

__all__ = ["PROJECT", "Finished", "Output", "Shard", "ShardedServer", "shardnet", "wait_until"]

PROJECT: Final = Path(__file__).resolve().parents[2]
START_LINE: Final = re.compile(
    r"shardnet (?P<version>\S+) serving (?P<app>\S+) on (?P<addresses>\S+(?:, \S+)*), (?P<shards>\d+) shards?,"
    r" engine (?P<engine>\w+)(?:, metrics on (?P<metrics>\S+))?"
)
TRACEBACK: Final = "Traceback (most recent call last)"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0
KEPT_LINES: Final = 80  # Of the server's output, shown with a failed test.

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command that ended by itself left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def stderr_lines(self) -> list[str]:
        return self.stderr.splitlines()


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as `/healthz` shows it."""

    shard: int
    state: str
    pid: int | None
    generation: int
    restarts: int


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **extra}


def shardnet(
    *arguments: str, timeout_s: float = 30.0, cwd: Path = PROJECT, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a shardnet command that should end by itself; whatever it left running is ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shardnet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=_environment(env or {}),
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            left = end_session(process.pid)
    assert not left, f"`shardnet {' '.join(arguments)}` left processes {left}"
    return Finished(process.returncode, stdout, stderr)


class Output:
    """The lines of a process's stdout and stderr, read by a thread each, so that the server never waits for us."""

    def __init__(self, **pipes: IO[bytes]) -> None:
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {name: [] for name in pipes}
        self._open = len(pipes)
        self._threads = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True) for name, pipe in pipes.items()
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                with self._changed:
                    self._lines[name].append(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def lines(self, name: str | None = None) -> list[str]:
        """What has come so far, of one pipe or of all."""
        with self._changed:
            return [line for of, lines in self._lines.items() if name in (None, of) for line in lines]

    def wait(self, pattern: str | re.Pattern[str], timeout_s: float) -> re.Match[str]:
        """The first line, past ones included, that the pattern is found in."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [hit for line in self.lines() if (hit := re.search(pattern, line))]
            return bool(found) or self._open == 0

        with self._changed:
            self._changed.wait_for(look, timeout_s)
        if not found:
            why = "ended" if self._open == 0 else f"did not say so within {timeout_s} s"
            raise AssertionError(f"waiting for {pattern!r}: the server {why}; it said:\n{self.tail()}")
        return found[0]

    def wait_closed(self, timeout_s: float) -> bool:
        """Whether every process that holds the pipes has ended."""
        with self._changed:
            closed = self._changed.wait_for(lambda: self._open == 0, timeout_s)
        if closed:
            for thread in self._threads:
                thread.join()
        return closed

    def tail(self) -> str:
        return "\n".join(self.lines()[-KEPT_LINES:])


class ShardedServer:
    """A running server, to be used in a `with`: entered when it has said that it serves.

    Leaving it well stops it with TERM (unless it has ended already) and asserts: exit status `expect_status`, as
    many tracebacks in its output as `expect_tracebacks`, nobody of its session left. Leaving it by an exception
    kills what is left and adds the server's last words to the exception.
    """

    def __init__(
        self,
        app: str,
        *,
        workers: int = 2,
        binds: Sequence[str] = ("127.0.0.1:0",),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        expect_status: int = 0,
        expect_tracebacks: int = 0,
    ) -> None:
        self.app = app
        self.shard_count = workers
        self._expect_status = expect_status
        self._expect_tracebacks = expect_tracebacks
        self._command = [*prefix, sys.executable, "-m", "shardnet", "run", app, "--workers", str(workers)]
        for bind in binds:
            self._command += ["--bind", bind]
        self._command += ["--metrics-bind", "127.0.0.1:0", *options]
        self._env = _environment(env or {})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            env=self._env,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.output = Output(stdout=self._process.stdout, stderr=self._process.stderr)
        try:
            self._read_start_line()
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def _read_start_line(self) -> None:
        said = self.output.wait(START_LINE, START_TIMEOUT_S)
        self.engine = said["engine"]
        self.addresses = [_split(text) for text in said["addresses"].split(", ")]
        assert said["app"] == self.app
        assert int(said["shards"]) == self.shard_count
        assert said["metrics"] is not None
        self.metrics_address = _split(said["metrics"])

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                self._assert_ends_well()
        except BaseException as failure:
            exc = failure
            raise
        finally:
            left = end_session(self.pid)
            self._process.wait(STOP_TIMEOUT_S)
            self.output.wait_closed(STOP_TIMEOUT_S)
            if exc is not None:
                exc.add_note(f"{left=}; the server's output:\n{self.output.tail()}")

    def _assert_ends_well(self) -> None:
        status = self.stop() if self._process.poll() is None else self._process.returncode
        assert status == self._expect_status
        self.assert_nobody_left()
        tracebacks = sum(line.count(TRACEBACK) for line in self.output.lines())
        assert tracebacks == self._expect_tracebacks, f"{tracebacks} tracebacks"

    def assert_nobody_left(self, timeout_s: float = 5.0) -> None:
        """The supervisor's whole session has ended, and with it everybody who held its output."""
        left = wait_gone(session_pids(self.pid), timeout_s)
        assert not left, f"still running: {left}"
        assert self.output.wait_closed(timeout_s), "somebody holds the server's output still"

    @property
    def address(self) -> tuple[str, int]:
        """The first address it serves on."""
        return self.addresses[0]

    def load_addresses(self) -> list[str]:
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses]

    def signal(self, number: int) -> None:
        """To the supervisor, whom nobody has waited for: its pid is its own."""
        assert self._process.poll() is None, "the supervisor has ended already"
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The supervisor's exit status, negative when a signal killed it. AssertionError when it is late."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor was still running after {timeout_s} s") from None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """TERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def scrape(self) -> Samples:
        status, text = get(self.metrics_address, "/metrics")
        assert status == 200, text
        return parse(text)

    def shards(self) -> list[Shard]:
        """All shards, in order, by `/healthz`."""
        _, health = get_json(self.metrics_address, "/healthz")
        names = Shard.__dataclass_fields__
        return [Shard(**{name: shard[name] for name in names}) for shard in health["shards"]]

    def worker_pids(self) -> dict[int, int]:
        """Pid by shard, of the shards that serve."""
        return {shard.shard: shard.pid for shard in self.shards() if shard.state == "serving" and shard.pid}

    def exporter_pid(self) -> int:
        """The one child of the supervisor that is no worker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        others = {int(pid) for pid in children} - {shard.pid for shard in self.shards()}
        assert len(others) == 1, others
        return others.pop()

    def wait_metrics(self, wanted: Callable[[Samples], bool], timeout_s: float = 10.0) -> Samples:
        """Scrape until the samples are as wanted."""
        return _ask(self.scrape, wanted, timeout_s)

    def wait_shards(self, wanted: Callable[[list[Shard]], bool], timeout_s: float = 10.0) -> list[Shard]:
        """Ask `/healthz` until the shards are as wanted."""
        return _ask(self.shards, wanted, timeout_s)

    def wait_serving(self, timeout_s: float = 10.0) -> dict[int, int]:
        """Wait until every shard serves; pid by shard."""
        self.wait_shards(lambda shards: all(shard.state == "serving" for shard in shards), timeout_s)
        return self.worker_pids()


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Look again and again until it is so."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, f"not so within {timeout_s} s"


def _ask(question: Callable[[], Answer], wanted: Callable[[Answer], bool], timeout_s: float) -> Answer:
    """Ask again and again until the answer is as wanted; an exporter that is gone meanwhile has not answered."""
    deadline_s = time.monotonic() + timeout_s
    answer: Answer | None = None
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = question()
            if wanted(answer):
                return answer
    raise AssertionError(f"not as wanted within {timeout_s} s; the last answer: {answer}")


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
