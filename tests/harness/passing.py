"""Time that has to pass because its passing is what is tested: nothing can be looked at that says it is over."""

from __future__ import annotations

import time

__all__ = ["let_pass"]


def let_pass(seconds: float) -> None:
    time.sleep(seconds)
