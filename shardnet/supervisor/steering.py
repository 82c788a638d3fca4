"""Steering: where the kernel sends the next connection, kept in step with the fleet.

`hash` is the kernel's own way and needs nothing. `random`, `cpu` and `source` are programs that depend on the number of
shards alone. `least` sends connections where there are the fewest: the next arrivals are dealt out so that they level
the shards, and the deal is made anew many times a second from what the board says.

Lives here: which program the listeners should have by now. Must not live here: how programs are written (`listen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from shardnet.listen import ListenerBank, steering
from shardnet.log import get_logger
from shardnet.supervisor.slot import Slot, State

__all__ = ["Steering", "shares"]

REFRESH_S: Final = 0.1
ARRIVALS_MIN: Final = 4.0  # Per shard, that a deal is made for at least; with fewer, one shard would get them all.
ARRIVALS_GROWTH: Final = 2.0  # A deal is made for so many times the arrivals since the last one: they may be more.


class Steering:
    """Steers the connections of one bank."""

    def __init__(self, bank: ListenerBank, kind: str, connections: Callable[[int], int]) -> None:
        """`connections` says how many a child has open."""
        self._bank = bank
        self._kind = kind if bank.shards > 1 else "hash"
        self._connections = connections
        self._made_of: object = None  # What the programs that are attached depend on.
        self._refreshed_s = float("-inf")
        self._total: int | None = None
        self._weights: list[float] = []

    def refresh(self, slots: Sequence[Slot], now_s: float) -> None:
        """Bring the programs in step with these slots; at no cost when they are, or `least` was asked a moment ago."""
        if self._kind == "hash":
            return
        if self._kind != "least":
            self._change(sum(slot.in_size for slot in slots))
            return
        serving = [slot.first(State.SERVING) if slot.accepts else None for slot in slots]
        children = tuple(worker.child if worker is not None else None for worker in serving)
        if self._made_of == children and now_s < self._refreshed_s + REFRESH_S:
            return
        self._made_of, self._refreshed_s = children, now_s
        counts = [None if child is None else self._connections(child) for child in children]
        total = sum(count for count in counts if count is not None)
        arrivals = 0.0 if self._total is None else max(0, total - self._total) * ARRIVALS_GROWTH
        self._total = total
        self._weights = shares(counts, arrivals)
        if weights := self._weights:
            self._attach(steering.by_weight(weights))

    def dealt(self, slots: Sequence[Slot]) -> list[float]:
        """Which part of the next connections each of these shards is to get: as `least` has dealt them out, else the
        same. (`cpu` and `source` send a connection where others like it went, and nobody knows what will come.)"""
        if self._kind == "least" and len(self._weights) == len(slots):
            parts = self._weights
        else:
            parts = [1.0 if slot.in_size else 0.0 for slot in slots]
        whole = sum(parts) or 1.0
        return [part / whole for part in parts]

    def _change(self, shards: int) -> None:
        if self._made_of == shards:
            return
        self._made_of = shards
        match self._kind:
            case "random":
                self._attach(steering.uniformly(shards))
            case "cpu":
                self._attach(steering.by_cpu(shards))
            case _:
                self._attach(steering.by_source(shards))

    def _attach(self, program: steering.Program) -> None:
        try:
            for sock in self._bank.own_listeners(0).values():
                steering.attach(sock, program)
        except OSError as error:
            why = error.strerror or error
            get_logger("supervisor").warning(f"--steering {self._kind} is refused by the kernel: hash it is", why=why)
            self._kind = "hash"


def shares(counts: Sequence[int | None], arrivals: float) -> list[float]:
    """How many of the next arrivals each shard should get to make all equal, if it has so many connections now.

    None stands for a shard that accepts nothing itself, which gets none. Empty when there is nobody else.
    """
    known = [count for count in counts if count is not None]
    if not known:
        return []
    arrivals = max(arrivals, ARRIVALS_MIN * len(known))
    level = _level(sorted(known), arrivals)
    return [0.0 if count is None else max(0.0, level - count) for count in counts]


def _level(counts: Sequence[int], arrivals: float) -> float:
    """To where so many arrivals fill up shards that have so many connections, the emptiest first, as water does."""
    filled = 0
    for number, count in enumerate(counts, start=1):
        filled += count
        level = (filled + arrivals) / number
        if number == len(counts) or level <= counts[number]:
            return level
    return 0.0
