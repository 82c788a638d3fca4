"""The states of a reader: see `resume.Waiter`. Plain numbers, because every read asks for them."""

from __future__ import annotations

from typing import Final

IDLE: Final = 0
PARKED: Final = 1
WOKEN: Final = 2  # On its way: in the next turn, or this moment.
CANCELLED: Final = 3  # The CancelledError is on its way through the loop.
