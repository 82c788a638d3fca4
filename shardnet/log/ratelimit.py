"""How often a line may be written that a peer can cause."""

from __future__ import annotations


class RateLimit:
    """A token bucket: `burst` at once, `per_s` a second in the long run. Time comes as an argument, in seconds of any
    steady clock."""

    __slots__ = ("_burst", "_last_s", "_per_s", "_suppressed", "_tokens")

    def __init__(self, burst: int, per_s: float) -> None:
        if burst < 1 or per_s <= 0.0:
            raise ValueError(f"a rate limit of {burst} at once and {per_s} a second lets nothing through")
        self._burst = burst
        self._per_s = per_s
        self._tokens = float(burst)
        self._last_s = float("-inf")
        self._suppressed = 0

    def allow(self, now_s: float) -> int | None:
        """None: not this one. Otherwise how many were suppressed since the last that was allowed."""
        if now_s > self._last_s:
            self._tokens = min(float(self._burst), self._tokens + (now_s - self._last_s) * self._per_s)
            self._last_s = now_s
        if self._tokens < 1.0:
            self._suppressed += 1
            return None
        self._tokens -= 1.0
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
