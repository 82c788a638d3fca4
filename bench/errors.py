"""What can go wrong in a benchmark. Lives here: the one error that says it in a line."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """A measurement, or the whole suite, cannot be had; the text is one line, with the cure where there is one."""
