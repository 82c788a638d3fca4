"""Other servers with several workers on one port: how each is started, and how it is told to reload and to scale.

Lives here: what there is to know of each of them. Must not live here: what is measured.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.errors import BenchError

__all__ = ["OTHERS", "Ended", "Other", "RunningOther"]

PROJECT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 20.0
RECOVERED_S: Final = 15.0
STOP_S: Final = 15.0
LOOK_S: Final = 0.02
HELPERS: Final = (b"resource_tracker", b"forkserver")  # Children that serve nobody.


@dataclass(frozen=True, slots=True)
class Other:
    """A server. `command` has the port and the number of workers filled in."""

    name: str
    distribution: str
    command: tuple[str, ...]
    scales: bool = False  # By TTIN and TTOU.

    def words(self, port: int | str, workers: int) -> list[str]:
        return [word.format(port=port, workers=workers) for word in self.command]

    @property
    def version(self) -> str:
        """Raises `BenchError` where it is not installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError as exc:
            raise BenchError(f"{self.distribution} is not installed: make reliability does that") from exc


OTHERS: Final = (
    Other(
        "gunicorn --reuse-port",
        "gunicorn",
        ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "{workers}", "--reuse-port", "--no-control-socket",
         "bench.reliability.apps:wsgi"),
        scales=True,
    ),
    Other(
        "gunicorn",
        "gunicorn",
        ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "{workers}", "--no-control-socket",
         "bench.reliability.apps:wsgi"),
        scales=True,
    ),
    Other(
        "granian",
        "granian",
        ("granian", "--host", "127.0.0.1", "--port", "{port}", "--workers", "{workers}", "--interface", "asgi",
         "--respawn-failed-workers", "bench.reliability.apps:asgi"),
    ),
    Other(
        "uvicorn",
        "uvicorn",
        ("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--workers", "{workers}", "--no-access-log",
         "bench.reliability.apps:asgi"),
        scales=True,
    ),
    Other(
        "hypercorn",
        "hypercorn",
        ("hypercorn", "--bind", "127.0.0.1:{port}", "--workers", "{workers}", "bench.reliability.apps:asgi"),
    ),
)  # fmt: skip


class Ended(Exception):
    """It is no more, and should be."""


class RunningOther:
    """One of them at work, to be used in a `with`: entered when all of its workers are there and it answers."""

    def __init__(self, other: Other, workers: int, log: Path, random_: random.Random, stop_for_s: float) -> None:
        self.other = other
        self.notes: list[str] = []  # What did not come about.
        self._workers = workers
        self._log = log
        self._random = random_
        self._stop_for_s = stop_for_s
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address: tuple[str, int] = free.getsockname()
        self.faults: dict[str, Callable[[], None]] = {"kill": self._kill, "stop": self._stop, "reload": self._reload}
        if other.scales:
            self.faults["scale"] = self._scale

    def __enter__(self) -> Self:
        words = self.other.words(self.address[1], self._workers)
        program = str(Path(sys.executable).with_name(words[0]))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PROJECT,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(lambda: len(self.workers()) == self._workers and self._answers(), "all workers", START_S)
            if self.notes:
                raise BenchError(f"{self.other.name} did not start: {self._log.read_text(errors='replace')[-500:]}")
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        # Its session: also those whom it has left behind.
        for entry in os.listdir("/proc"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.getsid(int(entry)) == self._process.pid:
                    os.kill(int(entry), signal.SIGKILL)
        self._process.wait()

    def workers(self) -> set[int]:
        found = set()
        with contextlib.suppress(OSError):
            pid = self._process.pid
            for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
                with contextlib.suppress(OSError):
                    is_zombie = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
                    command = Path(f"/proc/{child}/cmdline").read_bytes()
                    if not is_zombie and not any(word in command for word in HELPERS):
                        found.add(child)
        return found

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1.0) as sock:
            sock.settimeout(1.0)
            sock.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.")
        return False

    def _wait(self, until: Callable[[], bool], what: str, timeout_s: float = RECOVERED_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not until():
            if time.monotonic() > deadline_s:
                self.notes.append(f"no {what} within {timeout_s:g} s")
                return
            time.sleep(LOOK_S)

    def _victim(self) -> int:
        """Raises `Ended` when there is nobody left."""
        if workers := sorted(self.workers()):
            return self._random.choice(workers)
        status = self._process.poll()
        raise Ended("no worker was left" if status is None else f"the server had ended, exit status {status}")

    def _kill(self) -> None:
        victim = self._victim()
        os.kill(victim, signal.SIGKILL)
        self._wait(lambda: victim not in self.workers() and len(self.workers()) == self._workers, "successor")

    def _stop(self) -> None:
        victim = self._victim()
        os.kill(victim, signal.SIGSTOP)
        time.sleep(self._stop_for_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        self._wait(lambda: len(self.workers()) == self._workers, "full number of workers")

    def _reload(self) -> None:
        before = self.workers()
        self._process.send_signal(signal.SIGHUP)
        self._wait(lambda: not before & self.workers() and len(self.workers()) == self._workers, "new workers")

    def _scale(self) -> None:
        for signum, wanted in ((signal.SIGTTOU, 1), (signal.SIGTTIN, self._workers)):
            # One by one: the kernel makes one of several that wait.
            while (now := len(self.workers())) != wanted and not self.notes:
                self._process.send_signal(signum)
                self._wait(lambda now=now: len(self.workers()) != now, "change of the number of workers")  # type: ignore[misc]
