"""The stages of a connection's life, and the reasons for its end.

The stages are plain numbers because every read and write asks for them.
"""

from __future__ import annotations

import enum
from typing import Final

OPEN: Final = 0
FLUSHING: Final = 1  # Closed by us; queued bytes are still being sent.
LINGERING: Final = 2  # Our end of stream is sent; waiting for the peer's.
CLOSED: Final = 3
STAGE_NAMES: Final = ("open", "flushing", "lingering", "closed")


class CloseReason(enum.IntEnum):
    """Why a connection ended."""

    EOF = 0  # The peer ended its stream first.
    LOCAL = 1
    RESET = 2
    DEADLINE = 3
    ERROR = 4  # An error of the kernel, or the handler raised.
    DRAIN = 5
