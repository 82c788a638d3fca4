"""How long the garbage collector holds a process up.

Lives here: counting collections. Must not live here: when they happen.
"""

from __future__ import annotations

import gc
import time
from typing import Literal

__all__ = ["count_collections"]


def count_collections(cells: memoryview, collections: int, pause_ns: int) -> None:
    """From now on, count this process's collections in `cells`: by generation from cell `collections` on, and the time
    that they take, in nanoseconds, in cell `pause_ns`."""
    begun_ns = 0

    def note(phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        nonlocal begun_ns
        if phase == "start":
            begun_ns = time.monotonic_ns()
        else:
            cells[collections + info["generation"]] += 1
            cells[pause_ns] += time.monotonic_ns() - begun_ns

    gc.callbacks.append(note)
