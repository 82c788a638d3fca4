"""What a load process counts, in memory that the process which started it reads at any time.

One anonymous shared mapping for each load process, of native unsigned 64-bit cells, each written by that process
alone: first what its engine counts by itself, then what is below, then errors by kind, then the histogram. So a
progress line costs a load process nothing, and what it measured outlives its crash.
"""

from __future__ import annotations

import enum
import errno
import mmap
from typing import Final

from shardnet.bench.histogram import BUCKETS, Histogram
from shardnet.watcher.counters import CELLS_ALONE, TRAFFIC_ALONE, TRAFFIC_RECEIVED

CELL_BYTES: Final = 8


class Kind(enum.StrEnum):
    """How a connection failed."""

    REFUSED = "refused"
    RESET = "reset"
    CLOSED = "closed"
    WRONG_BYTES = "wrong_bytes"
    TIMEOUT = "timeout"
    OTHER = "other"


KINDS: Final = tuple(Kind)

KIND_OF_ERRNO: Final = {
    errno.ECONNREFUSED: Kind.REFUSED,
    errno.ENOENT: Kind.REFUSED,  # A unix socket whose server is not there.
    errno.ECONNRESET: Kind.RESET,
    errno.ECONNABORTED: Kind.RESET,
    errno.EPIPE: Kind.RESET,
    errno.ETIMEDOUT: Kind.TIMEOUT,
}


class Cell(enum.IntEnum):
    """Cells of the generator's own."""

    UP = CELLS_ALONE  # Connections, now.
    OPENED = enum.auto()  # Connections that were up ever.
    UNASKED = enum.auto()  # Messages that were due on a connection that had failed.
    LATE = enum.auto()  # Messages that were sent more than LATE_NS after they were due.
    LATE_WORST_NS = enum.auto()
    ELAPSED_NS = enum.auto()  # What was measured, from the end of the warm-up on.
    CPU_NS = enum.auto()  # Used by the process, from the first message on.
    KEPT_WAITING_NS = enum.auto()  # How long it had something to do, but no CPU.
    WALL_NS = enum.auto()  # The time that it could have used.


FIRST_ERROR: Final = max(Cell) + 1
FIRST_BUCKET: Final = FIRST_ERROR + len(KINDS)
CELLS: Final = FIRST_BUCKET + BUCKETS


class Sheet:
    """The cells of one load process. Made before the fork, and the same on both sides of it."""

    __slots__ = ("cells", "histogram")

    def __init__(self) -> None:
        self.cells = memoryview(mmap.mmap(-1, CELLS * CELL_BYTES)).cast("Q")
        self.histogram = Histogram(self.cells[FIRST_BUCKET:])

    def count_error(self, kind: Kind) -> int:
        """Count one; how many of its kind there are now."""
        index = FIRST_ERROR + KINDS.index(kind)
        self.cells[index] += 1
        return self.cells[index]

    def errors(self) -> dict[Kind, int]:
        """By kind, without the zeros."""
        counts = self.cells[FIRST_ERROR:FIRST_BUCKET].tolist()
        return {kind: count for kind, count in zip(KINDS, counts, strict=True) if count}

    def counts(self) -> list[int]:
        """A copy of the histogram's counters."""
        return self.cells[FIRST_BUCKET:].tolist()

    @property
    def received_bytes(self) -> int:
        return self.cells[TRAFFIC_ALONE + TRAFFIC_RECEIVED]
