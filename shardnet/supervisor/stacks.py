"""Where children stand, in their own words: stacks of threads from the fault handler, and of tasks from the loop.

Lives here: collecting what comes in pieces, until somebody wants it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Stacks"]

TEXT_MAX_CHARS: Final = 1 << 20  # Of one child: an app may write to that pipe whatever it likes.


class Stacks:
    """What was heard, by child."""

    def __init__(self) -> None:
        self._threads: dict[int, str] = {}
        self._tasks: dict[int, str] = {}

    def heard_threads(self, child: int, text: str) -> None:
        """A piece of what the fault handler has written."""
        self._threads[child] = (self._threads.get(child, "") + text)[:TEXT_MAX_CHARS]

    def heard_tasks(self, child: int, text: str) -> None:
        self._tasks[child] = text

    def forget(self, child: int) -> str:
        """The child is to say it anew, or is gone: what its fault handler has written."""
        self._tasks.pop(child, None)
        return self._threads.pop(child, "")

    def of(self, child: int) -> tuple[str, str]:
        """Threads and tasks, as far as they were heard; "" means not yet."""
        return self._threads.get(child, ""), self._tasks.get(child, "")
