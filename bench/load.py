"""Running the load generator: the conversation with `load.c`, on top of which its lines are explained.

Lives here: starting, telling, hearing, ending it. Must not live here: what a result means.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from bench.errors import BenchError

__all__ = ["LoadRun", "run_load"]

END_TIMEOUT_S: Final = 20.0  # Resetting many connections takes a moment.


class LoadRun:
    """A load generator that has been started."""

    def __init__(self, heard: IO[str], told: IO[str]) -> None:
        self._heard = heard
        self._told = told

    def expect(self, event: str) -> dict[str, Any]:
        """What it says next. Raises `BenchError` when that is something else, an error of the server's above all."""
        line = self._heard.readline()
        if not line:
            raise BenchError(f"the load generator ended before it said {event!r}")
        said: dict[str, Any] = json.loads(line)
        if said["event"] == "error":
            raise BenchError(f"{said['kind']}: {said['detail']}")
        if said["event"] != event:
            raise BenchError(f"the load generator said {said['event']!r}, not {event!r}")
        return said

    def go(self) -> None:
        """Let it go on."""
        # One that has given up says why, where it is listened to.
        with contextlib.suppress(BrokenPipeError):
            self._told.write("\n")
            self._told.flush()


@contextlib.contextmanager
def run_load(program: Path, mode: str, port: int, options: Sequence[str] = ()) -> Iterator[LoadRun]:
    """The generator against a port of 127.0.0.1. On leaving, its connections have been reset and it has ended."""
    command = [str(program), mode, "--port", str(port), *options]
    # A session of its own: Ctrl-C is for us, and we end it.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield LoadRun(process.stdout, process.stdin)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator did not end within {END_TIMEOUT_S} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
