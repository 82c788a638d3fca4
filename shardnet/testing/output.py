"""Commands that a test runs, and what they print.

Lives here: reading pipes without ever letting the writer wait. Must not live here: what a line means.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from shardnet.testing.processes import end_session

__all__ = ["Finished", "Output", "environment", "run_command"]

KEPT_LINES: Final = 80  # Shown with a failed test.


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command that ended by itself left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def stderr_lines(self) -> list[str]:
        return self.stderr.splitlines()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a child: ours, unbuffered and wide, and `extra`."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **(extra or {})}


def run_command(
    *arguments: str, timeout_s: float = 30.0, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a `shardnet` command that should end by itself.

    Whatever it left running is ended, and an `AssertionError`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "shardnet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(env),
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            left = end_session(process.pid)
    if left:
        raise AssertionError(f"`shardnet {' '.join(arguments)}` left processes {left}")
    return Finished(process.returncode, stdout, stderr)


class Output:
    """The lines of a process's stdout and stderr, read by a thread each, so that the process never waits for us."""

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
        """What has come so far, of one pipe ("stdout", "stderr") or of all."""
        with self._changed:
            return [line for of, lines in self._lines.items() if name in (None, of) for line in lines]

    def wait(self, pattern: str | re.Pattern[str], timeout_s: float) -> re.Match[str]:
        """The first line, past ones included, that the pattern is found in. `AssertionError` when none comes."""
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

    def wait_more(self, timeout_s: float) -> None:
        """Wait until something more is said, at most so long."""
        with self._changed:
            if self._open:
                self._changed.wait(timeout_s)

    def wait_closed(self, timeout_s: float) -> bool:
        """Whether every process that holds the pipes has ended."""
        with self._changed:
            closed = self._changed.wait_for(lambda: self._open == 0, timeout_s)
        if closed:
            for thread in self._threads:
                thread.join()
        return closed

    def tail(self) -> str:
        """The last lines of all pipes, to be shown with a failure."""
        return "\n".join(self.lines()[-KEPT_LINES:])
