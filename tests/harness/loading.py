"""The load generator run as processes of its own, so that the clients' work is nobody else's stall.

Lives here: starting `tests.harness.load`, telling it to stop, adding up its reports. Must not live here: judging them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from tests.harness.report import Report
from tests.harness.server import PROJECT, Output

__all__ = ["RunningLoad", "load"]

ENDING_S: Final = 10.0  # A generator past its own deadline prints its report and is gone well within this.


class RunningLoad:
    """Load that runs beside the test, to be used in a `with`; leaving it kills a generator that is still there.

    The connections are split over `processes`. A load with `repeat=True` goes on until `finish()`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        connections: int,
        messages: int,
        min_size_bytes: int = 1,
        max_size_bytes: int = 65536,
        greeting: str = "",
        seed: int = 1,
        repeat: bool = False,
        reconnect: bool = False,
        hang_s: float = 10.0,
        deadline_s: float = 45.0,
        processes: int = 1,
    ) -> None:
        self._deadline_s = deadline_s
        self._commands = []
        for process in range(processes):
            share = connections // processes + (process < connections % processes)
            command = [sys.executable, "-m", "tests.harness.load", "--connections", str(share)]
            command += ["--messages", str(messages), "--seed", str(seed * 1000 + process)]
            command += ["--min-size", str(min_size_bytes), "--max-size", str(max_size_bytes)]
            command += ["--hang", str(hang_s), "--deadline", str(deadline_s), f"--greeting={greeting}"]
            command += ["--repeat"] * repeat + ["--reconnect"] * reconnect
            for address in addresses:
                command += ["--address", address]
            self._commands.append(command)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._processes = []
        self._outputs = []
        for command in self._commands:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT
            )
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            output = Output(stdout=process.stdout, stderr=process.stderr)
            # In the order of their undoing, last first: kill, reap, let the readers reach the end.
            self._stack.callback(output.wait_closed, ENDING_S)
            self._stack.callback(process.wait, ENDING_S)
            self._stack.callback(process.kill)
            self._stack.callback(process.stdin.close)
            self._processes.append(process)
            self._outputs.append(output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait_running(self, timeout_s: float = 20.0) -> None:
        """Until every client has had its first byte."""
        for output in self._outputs:
            output.wait("^running$", timeout_s)

    def finish(self) -> Report:
        """Let the sessions under way end, begin no more, and report; a load without `repeat` just ends by itself."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        return self.wait()

    def wait(self) -> Report:
        """The sum of the reports, when the load has ended by itself."""
        total = Report()
        for process, output in zip(self._processes, self._outputs, strict=True):
            assert process.wait(self._deadline_s + ENDING_S) == 0, output.tail()
            assert output.wait_closed(ENDING_S)
            total += Report.from_json(output.lines("stdout")[-1])
        return total


def load(
    addresses: Sequence[str],
    *,
    connections: int,
    messages: int,
    max_size_bytes: int = 65536,
    seed: int = 1,
    processes: int = 1,
) -> Report:
    """A load of that size, from its start to its end."""
    with RunningLoad(
        addresses,
        connections=connections,
        messages=messages,
        max_size_bytes=max_size_bytes,
        seed=seed,
        processes=processes,
    ) as running:
        return running.wait()
