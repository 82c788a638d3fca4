"""Figures of shards, from two looks at the board.

Lives here: what a figure is. Must not live here: the board's memory, clocks, how a figure is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shardnet.board import Metric, Number, Occupant, Snapshot
from shardnet.catalogue.families import (
    ACCEPT_QUEUE_CAPACITY,
    ACCEPT_QUEUE_DEPTH,
    COMPLETIONS,
    CONNECTIONS_ACTIVE,
    GENERATION,
    LAME_DUCK,
    LISTENERS_LENT,
    LOOP_BUSY,
    LOOP_LAG,
    RECEIVED_BYTES,
    RELOAD_LAST_SUCCESS_TIME,
    RELOAD_LAST_SUCCESSFUL,
    RELOADS,
    SENT_BYTES,
    SHARD_RESTARTS,
    SHARD_STATE,
    SHARDS_CONFIGURED,
    SUPERVISOR_START_TIME,
    SWAP_CAPACITY,
    SWAP_IN_USE,
    SWAP_IN_USE_PEAK,
    UNASKED_REASONS,
)

__all__ = ["Shard", "View", "Watch", "quantile"]

HISTORY: Final = 60  # Looks that a sparkline may show.
WEIGH_S: Final = 5.0  # How often memory is asked for: that takes the kernel a while.
WEIGHED_PER_LOOK_MAX: Final = 8
NS_PER_S: Final = 1e9
RATES: Final = (COMPLETIONS, RECEIVED_BYTES, SENT_BYTES, LOOP_BUSY)


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, now; rates are of the time since the look before, and None at the first."""

    shard: int
    state: str
    lent: bool  # A sibling accepts on its listeners.
    workers: int  # Also those that come up, or drain.
    pid: int | None  # Of the one that serves.
    connections: int
    completions_per_s: float | None
    received_bytes_per_s: float | None
    sent_bytes_per_s: float | None
    loop_use_ratio: float | None
    loop_lag_p99_s: float | None
    swap_in_use_bytes: int
    swap_in_use_peak_bytes: int
    swap_capacity_bytes: int
    swap_peak_ratio: float
    accept_queue: int
    accept_queue_capacity: int
    memory_bytes: int | None  # Of all its workers, shared pages in proportion.
    restarts: int  # That nobody asked for.
    silent_s: float | None  # Since its loop has last turned.
    history: tuple[float, ...] = ()  # Completions per second, the youngest last.


@dataclass(frozen=True, slots=True)
class View:
    """A server, now."""

    shards: tuple[Shard, ...]  # Those in use, by their numbers.
    shards_configured: int
    generation: int
    uptime_s: float
    ready: bool  # As `/readyz` says it.
    lame_duck: bool
    reloads_ok: int
    reloads_failed: int
    reload_failed: bool  # The last one.
    reloading: bool
    loaded_s: float  # How long ago the code that serves was loaded.
    supervisor_pid: int
    supervisor_silent_s: float

    @property
    def serving(self) -> int:
        return sum(shard.state == "serving" for shard in self.shards)


@dataclass(slots=True)
class Watch:
    """Looks at a server again and again. `weigh` says how much memory a process has."""

    weigh: Callable[[int], int | None]
    _counts: dict[str, dict[str, Number]] = field(default_factory=dict)  # Of each of RATES, by shard, at the last look.
    _lag: dict[str, list[int]] = field(default_factory=dict)
    _looked_s: float | None = None
    _history: dict[str, deque[float]] = field(default_factory=dict)
    _memory: dict[int, tuple[float, int | None]] = field(default_factory=dict)  # By pid: when weighed, and what.

    def look(self, snapshot: Snapshot, monotonic_s: float, unix_s: float, ready_min: int | None = 1) -> View:
        """What the board says, and what has changed since the look before. `ready_min` shards have to serve for the
        server to be ready; None: all."""
        passed_s = None if self._looked_s is None else max(1e-3, monotonic_s - self._looked_s)
        now = _Figures(
            rates={metric.name: by_shard(snapshot, metric) for metric in RATES},
            gauges={metric.name: by_shard(snapshot, metric) for metric in GAUGES},
            lags=_lags(snapshot),
            workers=_workers(snapshot),
        )
        states = _states(snapshot)
        self._weigh_all([worker.pid for worker in snapshot.workers if worker.pid], monotonic_s)
        shards = tuple(
            self._shard(shard, states[shard], now, passed_s, monotonic_s, _restarts(snapshot, shard))
            for shard in sorted(states, key=int)
        )
        self._counts, self._lag, self._looked_s = now.rates, now.lags, monotonic_s
        return _view(snapshot, shards, monotonic_s, unix_s, ready_min)

    def _shard(
        self, shard: str, state: str, now: _Figures, passed_s: float | None, now_s: float, restarts: int
    ) -> Shard:
        workers = now.workers.get(shard, [])
        worker = workers[-1] if workers else None

        def rate(metric: Metric) -> float | None:
            if passed_s is None:
                return None
            before = self._counts[metric.name].get(shard, 0)
            return max(0.0, now.rates[metric.name].get(shard, 0) - before) / passed_s

        def gauge(metric: Metric) -> int:
            return int(now.gauges[metric.name].get(shard, 0))

        completions, use = rate(COMPLETIONS), rate(LOOP_BUSY)
        capacity = gauge(SWAP_CAPACITY)
        return Shard(
            shard=int(shard),
            state=state,
            lent=bool(gauge(LISTENERS_LENT)),
            workers=len(workers),
            pid=worker.pid if worker and worker.pid else None,
            connections=gauge(CONNECTIONS_ACTIVE),
            completions_per_s=completions,
            received_bytes_per_s=rate(RECEIVED_BYTES),
            sent_bytes_per_s=rate(SENT_BYTES),
            # A turn counts when it ends: one that was longer than from look to look would make more than all there is.
            loop_use_ratio=None if use is None else min(use, float(max(1, len(workers)))),
            loop_lag_p99_s=None if passed_s is None else self._lag_p99(now.lags, shard),
            swap_in_use_bytes=gauge(SWAP_IN_USE),
            swap_in_use_peak_bytes=gauge(SWAP_IN_USE_PEAK),
            swap_capacity_bytes=capacity,
            swap_peak_ratio=gauge(SWAP_IN_USE_PEAK) / capacity if capacity else 0.0,
            accept_queue=gauge(ACCEPT_QUEUE_DEPTH),
            accept_queue_capacity=gauge(ACCEPT_QUEUE_CAPACITY),
            memory_bytes=self._memory_of(workers),
            restarts=restarts,
            silent_s=max(0.0, now_s - worker.heartbeat_ns / NS_PER_S) if worker and worker.heartbeat_ns else None,
            history=self._remember(shard, completions),
        )

    def _lag_p99(self, lag: Mapping[str, list[int]], shard: str) -> float | None:
        now, before = lag.get(shard), self._lag.get(shard)
        if now is None:
            return None
        return quantile(
            0.99, LOOP_LAG.buckets, [max(0, a - b) for a, b in zip(now, before or [0] * len(now), strict=True)]
        )

    def _remember(self, shard: str, completions: float | None) -> tuple[float, ...]:
        history = self._history.setdefault(shard, deque(maxlen=HISTORY))
        if completions is not None:
            history.append(completions)
        return tuple(history)

    def _weigh_all(self, pids: list[int], now_s: float) -> None:
        """Those first that were never weighed, or longest ago; of the others, some wait for the next look."""
        self._memory = {pid: self._memory[pid] for pid in pids if pid in self._memory}
        due = [pid for pid in pids if pid in self._memory and now_s - self._memory[pid][0] >= WEIGH_S]
        due.sort(key=lambda pid: self._memory[pid][0])
        for pid in [*(pid for pid in pids if pid not in self._memory), *due[:WEIGHED_PER_LOOK_MAX]]:
            self._memory[pid] = (now_s, self.weigh(pid))

    def _memory_of(self, workers: list[Occupant]) -> int | None:
        weighed = [self._memory[worker.pid][1] for worker in workers if worker.pid]
        known = [memory_bytes for memory_bytes in weighed if memory_bytes is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class _Figures:
    """What one look has found, by metric and shard."""

    rates: dict[str, dict[str, Number]]
    gauges: dict[str, dict[str, Number]]
    lags: dict[str, list[int]]
    workers: dict[str, list[Occupant]]


GAUGES: Final = (
    CONNECTIONS_ACTIVE,
    LISTENERS_LENT,
    SWAP_IN_USE,
    SWAP_IN_USE_PEAK,
    SWAP_CAPACITY,
    ACCEPT_QUEUE_DEPTH,
    ACCEPT_QUEUE_CAPACITY,
)


def _view(
    snapshot: Snapshot, shards: tuple[Shard, ...], monotonic_s: float, unix_s: float, ready_min: int | None
) -> View:
    configured, generation = int(snapshot.value(SHARDS_CONFIGURED)), int(snapshot.value(GENERATION))
    lame_duck = bool(snapshot.value(LAME_DUCK))
    needed = max(1, configured if ready_min is None else min(ready_min, configured))
    supervisor = snapshot.supervisor
    beat_ns = supervisor.heartbeat_ns if supervisor else 0
    return View(
        shards=shards,
        shards_configured=configured,
        generation=generation,
        uptime_s=max(0.0, unix_s - snapshot.value(SUPERVISOR_START_TIME)),
        ready=not lame_duck and sum(shard.state == "serving" for shard in shards) >= needed,
        lame_duck=lame_duck,
        reloads_ok=int(snapshot.value(RELOADS, outcome="ok")),
        reloads_failed=int(snapshot.value(RELOADS, outcome="failed")),
        reload_failed=not snapshot.value(RELOAD_LAST_SUCCESSFUL),
        reloading=any(worker.generation > generation for worker in snapshot.workers),
        loaded_s=max(0.0, unix_s - snapshot.value(RELOAD_LAST_SUCCESS_TIME)),
        supervisor_pid=supervisor.pid if supervisor else 0,
        supervisor_silent_s=max(0.0, monotonic_s - beat_ns / NS_PER_S),
    )


def by_shard(snapshot: Snapshot, metric: Metric) -> dict[str, Number]:
    """The values of a metric, added up by shard."""
    sums: dict[str, Number] = {}
    family = snapshot.families.get(metric.name)
    for labels, value in family.values.items() if family else ():
        shard = labels.pairs["shard"]
        sums[shard] = sums.get(shard, 0) + value
    return sums


def quantile(q: float, bounds: tuple[float, ...], counts: list[int]) -> float | None:
    """Where `q` of what a histogram counted lies below: within a bucket as if it were spread evenly, as Prometheus'
    `histogram_quantile` does. None when it counted nothing."""
    total = sum(counts)
    if not total:
        return None
    rank, below = q * total, 0
    for number, count in enumerate(counts[:-1]):
        if below + count >= rank:
            lower = bounds[number - 1] if number else 0.0
            return lower + (bounds[number] - lower) * (rank - below) / max(1, count)
        below += count
    return bounds[-1]


def _lags(snapshot: Snapshot) -> dict[str, list[int]]:
    family = snapshot.families.get(LOOP_LAG.name)
    return {labels.pairs["shard"]: one.counts for labels, one in family.distributions.items()} if family else {}


def _workers(snapshot: Snapshot) -> dict[str, list[Occupant]]:
    """The workers of each shard, that which serves last: the youngest whose loop turns. One of a generation that does
    not serve yet is held back."""
    serves = snapshot.value(GENERATION)
    found: dict[str, list[Occupant]] = {}
    for worker in sorted(
        snapshot.workers, key=lambda one: (one.generation <= serves, bool(one.heartbeat_ns), one.incarnation)
    ):
        found.setdefault(str(worker.shard), []).append(worker)
    return found


def _states(snapshot: Snapshot) -> dict[str, str]:
    """The state of each shard that is in one, or should be: `vacant` is one that an operator keeps empty."""
    wanted = {str(shard) for shard in range(int(snapshot.value(SHARDS_CONFIGURED)))}
    found = dict.fromkeys(wanted, "vacant")
    for labels, value in snapshot.families[SHARD_STATE.name].values.items():
        if value:
            found[labels.pairs["shard"]] = labels.pairs["state"]
    return found


def _restarts(snapshot: Snapshot, shard: str) -> int:
    return sum(int(snapshot.value(SHARD_RESTARTS, shard=shard, reason=reason)) for reason in UNASKED_REASONS)
