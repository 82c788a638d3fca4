"""The clients, in processes of their own, so that what hurts the server does not hurt them.

Lives here: starting them, reading what they saw, letting them end. Must not live here: what they do.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from types import TracebackType
from typing import IO, Final, Self

from shardnet.chaos.session import PAUSE, Session
from shardnet.chaos.tally import Tally

__all__ = ["Crowd"]

CLIENTS_PER_PROCESS_MAX: Final = 256
READ_BYTES: Final = 65536


class Crowd:
    """Clients at work from the beginning of a `with` to its end; all they saw is in the tally by then."""

    def __init__(
        self, tally: Tally, address: tuple[str, int], *, clients: int, rate: float, request: bytes, timeout_s: float,
        seed: int,
    ) -> None:  # fmt: skip
        self._tally = tally
        self._timeout_s = timeout_s
        count = -(-clients // CLIENTS_PER_PROCESS_MAX)
        self._settings = [
            {
                "host": address[0], "port": address[1], "request": request.hex(), "timeout_s": timeout_s,
                "clients": clients // count + (number < clients % count), "rate": rate / count, "seed": seed + number,
            }
            for number in range(count)
        ]  # fmt: skip
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        try:
            for settings in self._settings:
                self._start(settings)
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Sessions under way come to their ends; a process that does not let them is killed."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(0 if exc else 2 * self._timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join()

    def lost(self) -> list[int]:
        """The exit statuses of client processes that have ended before they were told to."""
        return [process.returncode for process in self._processes if process.poll() is not None]

    def _start(self, settings: dict[str, object]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "shardnet.chaos.clients"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._processes.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, pipe: IO[bytes]) -> None:
        size = Session.FORM.size
        with pipe:
            while record := pipe.read(size):
                if len(record) < size:
                    break
                if record[-1] == PAUSE:
                    since_s, until_s, *_ = Session.FORM.unpack(record)
                    self._tally.add_pause(until_s - since_s)
                else:
                    self._tally.add(Session.unpack(record))
