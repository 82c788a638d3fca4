"""Running `supervised.py`, and reading what it says."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from shardnet.board import Board

PROJECT = Path(__file__).parent.parent
Fact = dict[str, Any]
T = TypeVar("T")


class Supervised:
    """One run of `supervised.py`, and all that it has said so far."""

    def __init__(self, *arguments: str, warnings: str = "error") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", warnings, "-m", "tests.supervised", *arguments],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._pipes = {self.process.stdout.fileno(): b"", self.process.stderr.fileno(): b""}
        self._stdout = self.process.stdout.fileno()
        self.facts: list[Fact] = []
        self.log: list[str] = []
        self._facts_seen: dict[str, int] = {}  # How many, by kind.
        self._log_seen = 0
        self.starting = self.fact("starting")
        self.ports: list[int] = self.starting["ports"]

    def read(self) -> None:
        """Wait until it says something more."""
        readable, _, _ = select.select([*self._pipes], [], [])
        for fd in readable:
            data = os.read(fd, 65536)
            if not data:
                del self._pipes[fd]
                continue
            *lines, self._pipes[fd] = (self._pipes[fd] + data).split(b"\n")
            for line in lines:
                if fd == self._stdout:
                    self.facts.append(json.loads(line))
                else:
                    self.log.append(line.decode())

    def until(self, find: Callable[[], T | None]) -> T:
        while (found := find()) is None:
            if not self._pipes:
                pytest.fail("it ended without saying so:\n" + "\n".join(self.log))
            self.read()
        return found

    def fact(self, said: str) -> Fact:
        """The next thing of this kind that it says, after those that were asked for before."""
        seen = self._facts_seen.get(said, 0)
        fact = self.until(lambda: next(iter(self.said(said)[seen:]), None))
        self._facts_seen[said] = seen + 1
        return fact

    def said(self, said: str) -> list[Fact]:
        """All of this kind, so far."""
        return [fact for fact in self.facts if fact["said"] == said]

    def logged(self, *words: str) -> str:
        """The next line of the log that has all of these words, after those that were asked for before."""

        def find() -> str | None:
            for index in range(self._log_seen, len(self.log)):
                if all(word in self.log[index] for word in words):
                    self._log_seen = index + 1
                    return self.log[index]
            return None

        return self.until(find)

    def workers(self) -> dict[int, Fact]:
        """The youngest worker of each shard."""
        return {fact["shard"]: fact for fact in self.said("worker")}

    def serving(self) -> dict[int, Fact]:
        """The workers, when all are ready."""
        self.fact("serving")
        workers = self.workers()
        for _ in workers:
            self.logged('event="worker ready"')
        return workers

    def ask(self, word: str = "", port: int = 0) -> Fact:
        """What a worker answers, which then does what the word says."""
        with socket.create_connection(("127.0.0.1", port or self.ports[0])) as conn:
            conn.sendall(f"{word} ".encode())
            answer = b""
            while data := conn.recv(100):
                answer += data
        fact: Fact = json.loads(answer)
        return fact

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> int:
        """Its exit status; what it says until then is read."""
        while self._pipes:
            self.read()
        return self.process.wait()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    def board(self) -> Board:
        return Board.attach(os.open(f"/proc/{self.process.pid}/fd/{self.starting['board']}", os.O_RDWR))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # A session of its own: whatever a failed test left behind.
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


Run = Callable[..., Supervised]


@contextlib.contextmanager
def running() -> Iterator[Run]:
    """Starts runs, and ends whatever is left of them."""
    runs: list[Supervised] = []

    def start(*arguments: str, warnings: str = "error") -> Supervised:
        runs.append(Supervised(*arguments, warnings=warnings))
        return runs[-1]

    try:
        yield start
    finally:
        for one in runs:
            one.close()


def wait_gone(pids: list[int]) -> None:
    """Until all of these processes, whoever's children, have ended."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([pidfd], [], [])
        os.close(pidfd)


def fd_targets(pid: int) -> dict[int, str]:
    return {int(path.name): str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}


def value(supervised: Supervised, metric: Any, **labels: str) -> float:
    board = supervised.board()
    try:
        return board.snapshot().value(metric, **labels)
    finally:
        board.close()
