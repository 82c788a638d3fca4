"""A clock that a test moves by hand."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """A steady clock that stands still until it is told to go on.

    Call it where a function like `time.monotonic` is wanted.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        return self._now_s

    @property
    def now_s(self) -> float:
        return self._now_s

    def advance(self, by_s: float) -> None:
        """Let so much time pass. Raises `ValueError` when it is negative: the clock is a steady one."""
        if by_s < 0.0:
            raise ValueError(f"advance({by_s}): a steady clock does not go back")
        self._now_s += by_s

    def advance_to(self, time_s: float) -> None:
        """Let time pass until then; nothing happens when it is past already."""
        self._now_s = max(self._now_s, time_s)
