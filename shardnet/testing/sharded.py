"""A whole shardnet server as a test meets it: `python -m shardnet run` in a session of its own.

Everything is learned from outside, the way an operator would: the start-up line, `/healthz`, `/metrics`, signals,
exit statuses, /proc. Whoever starts one gets all of it ended, by pid, also when the test fails.

Lives here: starting, asking, hurting, waiting with deadlines, ending. Must not live here: anything of what is tested.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

from shardnet.testing.output import Output, environment
from shardnet.testing.processes import end_session, session_pids, stop_and_wait, wait_gone
from shardnet.testing.samples import Samples, get, get_json, parse

__all__ = ["TRACEBACK", "ShardHealth", "ShardedServer"]

START_LINE: Final = re.compile(
    r"shardnet (?P<version>\S+) serving (?P<app>\S+) on (?P<addresses>\S+(?:, \S+)*), (?P<shards>\d+) shards?,"
    r" engine (?P<engine>\w+)(?:, metrics on (?P<metrics>\S+))?"
)
TRACEBACK: Final = "Traceback (most recent call last)"
KILLED: Final = signal.SIGKILL
UNIX: Final = "unix:"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0
ASK_S: Final = 10.0
NOBODY_LEFT_S: Final = 5.0
ASK_AGAIN_S: Final = 0.02  # Sooner when the server says something.

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """A shard as `/healthz` shows it."""

    shard: int
    state: str
    pid: int | None
    generation: int
    restarts: int


class ShardedServer:
    """`shardnet run APP` as a subprocess, to be used in a `with`: entered when it has said that it serves.

    Leaving it well stops it with TERM (unless it has ended already) and raises `AssertionError` unless its exit status
    is `expect_status`, its output has `expect_tracebacks` tracebacks, and nobody of its session is left. Leaving it by
    an exception kills what is left and adds the server's last words to the exception.
    """

    default_cwd: ClassVar[Path | None] = None  # Where a server runs that is told no `app_dir`; None: where we are.

    def __init__(
        self,
        app: str,
        *,
        workers: int = 2,
        binds: Sequence[str] = ("127.0.0.1:0",),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        app_dir: Path | str | None = None,
        prefix: Sequence[str] = (),
        expect_status: int = 0,
        expect_tracebacks: int = 0,
    ) -> None:
        """Nothing is started yet.

        Args:
            app: `module:name`, as for `shardnet run`.
            workers: How many shards.
            binds: Addresses to serve on; port 0 takes a free one, and `address` tells which.
            options: More of the command line.
            env: Environment variables, beside the test's own.
            app_dir: Where the app is looked for, and the current directory of the server.
            prefix: A command to run it under, `("nohup",)` say.
            expect_status: The exit status that is right.
            expect_tracebacks: How many tracebacks its output must have in the end.
        """
        self.app = app
        self.shard_count = workers
        self._expect_status = expect_status
        self._expect_tracebacks = expect_tracebacks
        self._cwd = self.default_cwd if app_dir is None else Path(app_dir)
        self._command = [*prefix, sys.executable, "-m", "shardnet", "run", app, "--workers", str(workers)]
        for bind in binds:
            self._command += ["--bind", bind]
        self._command += ["--metrics-bind", "127.0.0.1:0", *options]
        self._env = environment(env)
        self._hung: dict[int, int] = {}  # Stopped workers: pid by shard.

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._cwd,
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
        try:
            said = self.output.wait(START_LINE, START_TIMEOUT_S)
        except AssertionError:
            last = (self.output.lines() or ["it said nothing"])[-1]
            raise AssertionError(f"the server of {self.app} did not start: {last}") from None
        self.engine = said["engine"]
        served = said["addresses"].split(", ")
        self.addresses = [_split(text) for text in served if not text.startswith(UNIX)]
        self.unix_paths = [text.removeprefix(UNIX) for text in served if text.startswith(UNIX)]
        if said["metrics"] is None:
            raise AssertionError(f"the server has no metrics, which this kit asks for everything: {said[0]}")
        self.metrics_address = _split(said["metrics"])

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                self._check_ends_well()
        except BaseException as failure:
            exc = failure
            raise
        finally:
            left = end_session(self.pid)
            self._process.wait(STOP_TIMEOUT_S)
            self.output.wait_closed(STOP_TIMEOUT_S)
            if exc is not None:
                exc.add_note(f"{left=}; the server's output:\n{self.output.tail()}")

    def _check_ends_well(self) -> None:
        for shard in list(self._hung):
            self.resume(shard)
        status = self.stop() if self._process.poll() is None else self._process.returncode
        if status != self._expect_status:
            raise AssertionError(f"the server's exit status is {status}, not {self._expect_status}")
        self.assert_nobody_left()
        tracebacks = sum(line.count(TRACEBACK) for line in self.output.lines())
        if tracebacks != self._expect_tracebacks:
            raise AssertionError(f"{tracebacks} tracebacks in the server's output, not {self._expect_tracebacks}")

    def assert_nobody_left(self, timeout_s: float = NOBODY_LEFT_S) -> None:
        """The supervisor's whole session has ended, and with it everybody who held its output."""
        if left := wait_gone(session_pids(self.pid), timeout_s):
            raise AssertionError(f"still running: {left}")
        if not self.output.wait_closed(timeout_s):
            raise AssertionError("somebody holds the server's output still")

    # Talking to it.

    @property
    def address(self) -> tuple[str, int]:
        """The first TCP address it serves on."""
        return self.addresses[0]

    def connect(self, timeout_s: float = ASK_S) -> socket.socket:
        """A blocking socket, connected to `address`, whose every wait raises `TimeoutError` beyond `timeout_s`."""
        return socket.create_connection(self.address, timeout_s)

    # Signals.

    def signal(self, signum: int) -> None:
        """To the supervisor, whom nobody has waited for: its pid is its own."""
        if self._process.poll() is not None:
            raise AssertionError(f"the supervisor has ended already, with exit status {self._process.returncode}")
        os.kill(self.pid, signum)

    def wait(self, timeout_s: float) -> int:
        """The supervisor's exit status, negative when a signal killed it. `AssertionError` when it is late."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor was still running after {timeout_s} s") from None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """TERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def reload(self, timeout_s: float = START_TIMEOUT_S) -> dict[int, int]:
        """HUP, and wait until the new generation serves every shard, though the old one may still drain.

        Returns the new workers' pids by shard.
        """
        before = self._generation()
        self.signal(signal.SIGHUP)
        self._ask(self._generation, lambda now: now > before, timeout_s)
        return self.wait_serving(timeout_s)

    def kill(self, shard: int, signum: int = KILLED) -> int:
        """Send the shard's worker a signal; its pid. After SIGKILL, returns when it is gone."""
        pid = self._worker_pid(shard)
        os.kill(pid, signum)
        if signum != KILLED:
            return pid
        self._hung.pop(shard, None)
        if wait_gone([pid], ASK_S):
            raise AssertionError(f"worker {pid} of shard {shard} outlived SIGKILL by {ASK_S} s")
        return pid

    def hang(self, shard: int) -> int:
        """Stop the shard's worker in its tracks, as if it had hung; its pid. Returns when it has stopped."""
        pid = self._worker_pid(shard)
        stop_and_wait(pid)
        self._hung[shard] = pid
        return pid

    def resume(self, shard: int) -> None:
        """Undo `hang`; nothing happens when the worker is gone meanwhile."""
        pid = self._hung.pop(shard, None)
        if pid in session_pids(self.pid):
            os.kill(pid, signal.SIGCONT)

    def _worker_pid(self, shard: int) -> int:
        pid = self._hung.get(shard) or self.worker_pids().get(shard)
        if pid is None:
            raise AssertionError(f"no worker serves shard {shard}: {self.shards()}")
        return pid

    # Asking it.

    def metrics(self) -> Samples:
        """Scrape `/metrics`."""
        status, text = get(self.metrics_address, "/metrics")
        if status != 200:
            raise AssertionError(f"/metrics answered {status}: {text}")
        return parse(text)

    def shards(self) -> list[ShardHealth]:
        """All shards, in order, by `/healthz`."""
        _, health = get_json(self.metrics_address, "/healthz")
        names = ShardHealth.__dataclass_fields__
        return [ShardHealth(**{name: shard[name] for name in names}) for shard in health["shards"]]

    def worker_pids(self) -> dict[int, int]:
        """Pid by shard, of the shards that serve."""
        return {shard.shard: shard.pid for shard in self.shards() if shard.state == "serving" and shard.pid}

    def exporter_pid(self) -> int:
        """The one child of the supervisor that is no worker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        others = {int(pid) for pid in children} - {shard.pid for shard in self.shards()}
        if len(others) != 1:
            raise AssertionError(f"not one process but {sorted(others)} could be the exporter")
        return others.pop()

    def wait_metrics(self, wanted: Callable[[Samples], bool], timeout_s: float = ASK_S) -> Samples:
        """Scrape until the samples are as wanted."""
        return self._ask(self.metrics, wanted, timeout_s)

    def wait_shards(self, wanted: Callable[[list[ShardHealth]], bool], timeout_s: float = ASK_S) -> list[ShardHealth]:
        """Ask `/healthz` until the shards are as wanted."""
        return self._ask(self.shards, wanted, timeout_s)

    def wait_serving(self, timeout_s: float = ASK_S) -> dict[int, int]:
        """Wait until every shard serves; pid by shard."""
        self.wait_shards(lambda shards: all(shard.state == "serving" for shard in shards), timeout_s)
        return self.worker_pids()

    def _generation(self) -> int:
        return int(self.metrics().total("generation"))

    def _ask(self, question: Callable[[], Answer], wanted: Callable[[Answer], bool], timeout_s: float) -> Answer:
        """Ask again and again until the answer is as wanted; an exporter that is gone meanwhile has not answered."""
        deadline_s = time.monotonic() + timeout_s
        answer: Answer | None = None
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = question()
                if wanted(answer):
                    return answer
            if self._process.poll() is not None:
                raise AssertionError(f"the supervisor has ended with exit status {self._process.returncode}")
            self.output.wait_more(ASK_AGAIN_S)
        raise AssertionError(f"not as wanted within {timeout_s} s; the last answer: {answer}")


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
