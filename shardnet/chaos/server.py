"""The server that is hurt: started, asked, looked at from outside, ended.

Lives here: one `shardnet run` and its processes. Must not live here: what is done to it, and what that is to show.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shardnet.asking import Server
from shardnet.errors import NotRunning, SystemFault

__all__ = ["Holdings", "ServerEnded", "TestServer"]

START_S: Final = 60.0
STOP_S: Final = 60.0
ASK_AGAIN_S: Final = 0.05
STEADY_S: Final = 0.5
STEADY_MAX_S: Final = 10.0
SERVING: Final = re.compile(r"serving .* on (?P<host>[\d.]+):(?P<port>\d+),")
PR_SET_PDEATHSIG: Final = 1  # prctl(2)
LAST_LINES: Final = 5


class ServerEnded(SystemFault):
    """It is no more, and should be."""


class Holdings:
    """What the processes of a server have: open files, and memory as proportional set size."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.files = 0
        self.pss_bytes = 0
        self.processes = len(pids)
        for pid in pids:
            with contextlib.suppress(OSError):  # It has ended since.
                self.files += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  a Path for each would be slow
                self.pss_bytes += _pss_bytes(pid)


class TestServer:
    """`shardnet run` with a log of its own, to be used in a `with`: it serves when that is entered."""

    __test__ = False  # Of no interest to pytest.

    def __init__(self, app: str, flags: Sequence[str], log: Path) -> None:
        self.name = f"chaos-{os.getpid()}"
        self.generations_most = 0  # That had workers at one time, as far as anybody looked.
        self._log = log
        self._server = Server(self.name)
        self._command = [
            sys.executable, "-m", "shardnet", "run", app, "--name", self.name, "--bind", "127.0.0.1:0", *flags
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us.
                preexec_fn=_end_with_parent,
            )
        try:
            self.address = self._wait_start()
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """TERM, and if that does not do, or there is no time, KILL: supervisor first, or it would fork successors."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    @property
    def address_text(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, signum: int) -> None:
        """To the supervisor."""
        self.check_alive()
        self._process.send_signal(signum)

    def kill(self, pid: int, signum: int) -> None:
        """To a process of it; nobody gets it when that is gone, nor whoever has its number since."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if _session(pid) == self.pid:
                    signal.pidfd_send_signal(pidfd, signum)
            finally:
                os.close(pidfd)

    def scale(self, shards: int) -> None:
        self._patiently(lambda: self._server.ask("scale", shards=shards))

    def _patiently(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """In the moment of an upgrade nobody answers."""
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                return ask()
            except NotRunning:
                self.check_alive()
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(ASK_AGAIN_S)

    def status(self) -> dict[str, Any]:
        """As `shardnet status --json` shows it."""
        status = self._patiently(self._server.status)
        generations = {worker["generation"] for shard in status["shards"] for worker in shard["workers"]}
        self.generations_most = max(self.generations_most, len(generations))
        return status

    def wait(self, until: Callable[[dict[str, Any]], bool], what: str, timeout_s: float) -> dict[str, Any]:
        """Look until the status is as it should be. Raises `SystemFault` when it is not in time."""
        deadline_s = time.monotonic() + timeout_s
        while not until(status := self.status()):
            if time.monotonic() > deadline_s:
                raise SystemFault(f"{what}: not within {timeout_s:g} s")
            time.sleep(ASK_AGAIN_S)
        return status

    def workers(self) -> dict[int, int]:
        """The pid of each worker that serves, by shard."""
        return workers_of(self.status())

    def pids(self) -> list[int]:
        """Every process of it, the supervisor first."""
        found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _session(int(entry)) == self.pid]  # noqa: PTH208
        return sorted(found, key=lambda pid: (pid != self.pid, pid))

    @property
    def pid(self) -> int:
        return self._process.pid

    def holdings(self) -> Holdings:
        """Once they stay the same: a process that has just begun still opens what it needs."""
        deadline_s = time.monotonic() + STEADY_MAX_S
        now, since_s = Holdings(self.pids()), time.monotonic()
        while time.monotonic() - since_s < STEADY_S and time.monotonic() < deadline_s:
            time.sleep(ASK_AGAIN_S)
            before, now = now, Holdings(self.pids())
            if (now.files, now.processes) != (before.files, before.processes):
                since_s = time.monotonic()
        return now

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        return ""

    def _wait_start(self) -> tuple[str, int]:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if said := SERVING.search(self._log.read_text(errors="replace")):
                return said["host"], int(said["port"])
            self.check_alive()
            time.sleep(ASK_AGAIN_S)
        raise SystemFault(f"the server did not start within {START_S:g} s; it said: {self.last_words()}")

    def check_alive(self) -> None:
        """Raises `ServerEnded` when it has ended."""
        if (status := self.exit_status) is not None:
            raise ServerEnded(f"the server has ended with exit status {status}; it said: {self.last_words()}")


def workers_of(status: dict[str, Any]) -> dict[int, int]:
    """The pid of each worker that serves, by shard."""
    return {
        shard["shard"]: worker["pid"]
        for shard in status["shards"]
        for worker in shard["workers"]
        if worker["state"] == "serving" and worker["pid"]
    }


def _end_with_parent() -> None:
    """In the child, before it becomes the server: TERM when we are gone, however we go."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _session(pid: int) -> int:
    """0 for a process that is gone, or a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[3])
    return 0


def _pss_bytes(pid: int) -> int:
    """Its own pages, and its part of shared ones (proc_pid_smaps_rollup in proc(5)); 0 where the kernel has no word."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
