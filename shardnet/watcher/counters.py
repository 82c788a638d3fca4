"""What the engine counts, and in which cell.

The owner of an engine may hand it a buffer of native unsigned 64-bit cells (a row of a shared-memory board, say);
the engine's own block is the first `CELLS_OWN` of them. Traffic is counted per group of endpoints: an endpoint's
`traffic` is the index of two neighbouring cells, bytes received and bytes sent, wherever the owner keeps them.
"""

from __future__ import annotations

import enum
from typing import Final


class Op(enum.IntEnum):
    """Kinds of operations that complete."""

    READ = 0
    WRITE = 1
    ACCEPT = 2
    CONNECT = 3
    TIMER = 4


class Outcome(enum.IntEnum):
    """How an operation completed."""

    OK = 0
    EOF = 1
    CANCELLED = 2
    DEADLINE = 3
    RESET = 4
    ERROR = 5


def completions_cell(op: Op, outcome: Outcome) -> int:
    """The cell that counts completions of `op` with `outcome`."""
    return op * len(Outcome) + outcome


# The engine's hot paths want plain integers.
READ_OK: Final = 0
READ_EOF: Final = 1
READ_CANCELLED: Final = 2
WRITE_OK: Final = 6
WRITE_CANCELLED: Final = 8
ACCEPT_OK: Final = 12
ACCEPT_ERROR: Final = 17
TIMER_OK: Final = 24
TIMER_CANCELLED: Final = 26

LOOP_TURNS: Final = 30
SWAP_IN_USE_BYTES: Final = 31  # Bytes of the last batch.
SWAP_IN_USE_PEAK_BYTES: Final = 32
SWAP_CAPACITY_BYTES: Final = 33
SWAP_EXHAUSTED: Final = 34  # Batches cut short because the buffer was full.
SWAP_SPILL_BYTES: Final = 35  # Received past the buffer.
READ_PENDING: Final = 36
WRITE_PENDING: Final = 37
TIMER_PENDING: Final = 38
SEND_QUEUE_BYTES: Final = 39
CONNECTIONS_PAUSED: Final = 40  # With bytes in their send queues.

# The meter's, see there. A histogram is a cell for each bucket, one for what is above the last, and one for the sum.
LOOP_BUCKETS_NS: Final = (
    50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000,
    250_000_000, 1_000_000_000,
)  # fmt: skip
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LOOP_BUSY_NS: Final = 41
TURN_DURATION_NS: Final = 42
LOOP_LAG_NS: Final = 57
BATCH_SIZE: Final = 72
COMPLETION_LATENCY_NS: Final = 83
CELLS_OWN: Final = 98

TRAFFIC_RECEIVED: Final = 0  # Offsets from an endpoint's `traffic`.
TRAFFIC_SENT: Final = 1
TRAFFIC_ALONE: Final = CELLS_OWN  # The group of endpoints whose owner names none.
CELLS_ALONE: Final = CELLS_OWN + 2
