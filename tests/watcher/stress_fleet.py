"""The peers of the stress as processes of their own, each with a limit of descriptors of its own.

Lives here: starting them, telling them, their reports. Must not live here: what they do (`stress_peers`).
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

PROJECT: Final = Path(__file__).resolve().parents[2]
ENDING_S: Final = 20.0


class Sums(NamedTuple):
    """What became of one connection, as its peer saw it."""

    sent: int
    received: int
    end: bool  # Saw the end of the watcher's stream.
    reset: bool


class Fleet:
    """The processes, to be used in a `with`. `reports` gets a dictionary for each `report`; None when one has died."""

    def __init__(self, processes: int, connections: int, seed: int, ports: Sequence[int]) -> None:
        self.reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.ports: list[int] = []
        self._commands = []
        for index in range(processes):
            share = connections // processes + (index < connections % processes)
            arguments = map(str, (seed, index, share, *ports))
            self._commands.append([sys.executable, "-m", "tests.watcher.stress_peers", *arguments])
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        try:
            for command in self._commands:
                # A session of its own: Ctrl-C is for the one who sums up.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=PROJECT,
                    start_new_session=True,
                )
                self._processes.append(process)
                assert process.stdout is not None
                self.ports.append(int(process.stdout.readline()))
                reader = threading.Thread(target=self._read, args=(process.stdout,))
                self._readers.append(reader)
                reader.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def __len__(self) -> int:
        return len(self._processes)

    def say(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # It has died, and its reader says so.
                process.stdin.write(line + "\n")
                process.stdin.flush()

    def _read(self, lines: Any) -> None:
        for line in lines:
            self.reports.put(json.loads(line))
        self.reports.put(None)

    def _stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.close()
