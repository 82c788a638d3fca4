"""One line about what goes on, on stderr: rewritten in place on a terminal, else a line for each step."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Final

__all__ = ["Progress"]

CLEAR: Final = "\r\x1b[K"


class Progress:
    """`total` runs are to come, as far as is known. On a terminal every run is shown, elsewhere each step alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began_s = time.monotonic()
        self._live = sys.stderr.isatty()
        self._step = ""

    def step(self, text: str) -> None:
        """A new part of the whole has begun."""
        self._step = text
        if not self._live:
            print(f"bench: {text}", file=sys.stderr, flush=True)

    def run(self, text: str) -> None:
        """A run begins."""
        if self._live:
            elapsed_s = time.monotonic() - self._began_s
            line = f"{self._done}/{self._total}  {elapsed_s:.0f} s  {self._step}: {text}"
            width = shutil.get_terminal_size().columns - 1
            print(CLEAR + line[:width], end="", file=sys.stderr, flush=True)
        self._done += 1

    def say(self, text: str) -> None:
        """A line that stays."""
        print((CLEAR if self._live else "") + f"bench: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print(CLEAR, end="", file=sys.stderr, flush=True)
