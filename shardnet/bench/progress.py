"""The line that shows how a run is going, on a terminal.

Lives here: what it says, and how it is drawn over. Must not live here: anything that costs a load process time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, TextIO

from shardnet.bench.histogram import Distribution
from shardnet.bench.options import Options
from shardnet.bench.report import duration
from shardnet.bench.sheet import Cell, Sheet

INTERVAL_S: Final = 0.25
ERASE_LINE: Final = "\r\x1b[K"


class Progress:
    """Drawn on `stream`, which is a terminal, whenever the last time is long enough ago."""

    def __init__(self, stream: TextIO, options: Options) -> None:
        self._stream = stream
        self._options = options
        self._started_s = self._drawn_s = time.monotonic()
        self._received_bytes = 0

    def look(self, sheets: Sequence[Sheet], begun: bool) -> None:
        """Draw it anew if it is time."""
        now_s = time.monotonic()
        since_s = now_s - self._drawn_s
        if since_s < INTERVAL_S:
            return
        received = sum(sheet.received_bytes for sheet in sheets)
        rate = (received - self._received_bytes) / self._options.size_bytes / since_s
        self._drawn_s, self._received_bytes = now_s, received
        self._stream.write(ERASE_LINE + line(self._options, sheets, begun, now_s - self._started_s, rate))
        self._stream.flush()

    def clear(self) -> None:
        self._stream.write(ERASE_LINE)
        self._stream.flush()


def line(options: Options, sheets: Sequence[Sheet], begun: bool, elapsed_s: float, rate: float) -> str:
    """What is known so far. `rate`: messages echoed each second, lately."""
    up = sum(sheet.cells[Cell.UP] for sheet in sheets)
    parts = [f"{elapsed_s:.1f} s", f"{up:,} of {options.connections:,} connections"]
    if begun:
        latencies = Distribution([sheet.counts() for sheet in sheets])
        parts.append(f"{rate:,.0f} messages/s")
        parts.append(f"p99 {duration(latencies.at(99.0))}" if latencies.count else "warming up")
    parts.append(f"{sum(sum(sheet.errors().values()) for sheet in sheets):,} errors")
    return ", ".join(parts)
