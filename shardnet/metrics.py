"""The catalogue: every metric of shardnet's own, and the cells that workers and the supervisor keep them in.

Every combination of labels is declared at the start, at zero, so that `rate()` sees the first increment. The label
`shard` of what workers count is added by readers; the supervisor, which counts for all shards, declares it.

Lives here: names, help texts, label values, the order of cells. Must not live here: who counts when, and anything
about one protocol or format.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shardnet.board import Kind, Metric, Row
from shardnet.errors import InternalError

__all__ = ["SupervisorCells", "WorkerCells", "declare_supervisor_metrics", "declare_worker_metrics"]

OPS: Final = ("read", "write", "accept", "connect", "timer")
OUTCOMES: Final = ("ok", "eof", "cancelled", "deadline", "reset", "error")
CLOSE_REASONS: Final = ("eof", "local", "reset", "deadline", "error", "drain")
SHARD_STATES: Final = ("booting", "serving", "draining", "backoff")
RESTART_REASONS: Final = ("crash", "signal")
RELOAD_OUTCOMES: Final = ("ok", "failed")

# A worker's: the watcher's block, in the watcher's order.
COMPLETIONS: Final = Metric(
    "shardnet_completions_total",
    Kind.COUNTER,
    "Completions delivered, by operation and outcome.",
    ("op", "outcome"),
)
LOOP_TURNS: Final = Metric("shardnet_loop_turns_total", Kind.COUNTER, "Loop turns.")
SWAP_IN_USE: Final = Metric(
    "shardnet_swap_buffer_in_use_bytes", Kind.GAUGE, "Bytes that the last batch of reads took of the swap buffer."
)
SWAP_IN_USE_PEAK: Final = Metric(
    "shardnet_swap_buffer_in_use_peak_bytes",
    Kind.GAUGE,
    "The most that a batch of reads has taken of the swap buffer since the worker started.",
)
SWAP_CAPACITY: Final = Metric("shardnet_swap_buffer_capacity_bytes", Kind.GAUGE, "Size of the swap buffer.")
SWAP_EXHAUSTED: Final = Metric(
    "shardnet_swap_buffer_exhausted_total",
    Kind.COUNTER,
    "Batches of reads cut short because the swap buffer was full.",
)

# A worker's, for each listener.
RECEIVED_BYTES: Final = Metric(
    "shardnet_received_bytes_total", Kind.COUNTER, "Bytes received from clients.", ("listener",)
)
SENT_BYTES: Final = Metric(
    "shardnet_sent_bytes_total", Kind.COUNTER, "Bytes handed to the kernel for clients.", ("listener",)
)
CONNECTIONS_ACTIVE: Final = Metric("shardnet_connections_active", Kind.GAUGE, "Open connections.", ("listener",))
CONNECTIONS_ACCEPTED: Final = Metric(
    "shardnet_connections_accepted_total", Kind.COUNTER, "Connections accepted.", ("listener",)
)
CONNECTIONS_CLOSED: Final = Metric(
    "shardnet_connections_closed_total",
    Kind.COUNTER,
    "Connections closed, by reason.",
    ("listener", "reason"),
)

# A worker's, once.
HANDLER_EXCEPTIONS: Final = Metric("shardnet_handler_exceptions_total", Kind.COUNTER, "Handlers that raised.")
CONNECTIONS_LIMIT: Final = Metric(
    "shardnet_connections_limit", Kind.GAUGE, "Open connections that the worker allows itself."
)

# The supervisor's.
SHARDS_CONFIGURED: Final = Metric("shardnet_shards_configured", Kind.GAUGE, "Shards that the supervisor keeps running.")
SUPERVISOR_START_TIME: Final = Metric(
    "shardnet_supervisor_start_time_seconds",
    Kind.GAUGE,
    "When the supervisor started, Unix time.",
    cell="f64",
)
GENERATION: Final = Metric("shardnet_generation", Kind.GAUGE, "The generation of workers now serving.")
RELOADS: Final = Metric(
    "shardnet_reloads_total",
    Kind.COUNTER,
    "New generations that were forked, by outcome: it serves, or it failed to come up and was discarded.",
    ("outcome",),
)
SHARD_STATE: Final = Metric(
    "shardnet_shard_state",
    Kind.GAUGE,
    "1 for the state that the shard is in.",
    ("shard", "state"),
)
SHARD_RESTARTS: Final = Metric(
    "shardnet_shard_restarts_total",
    Kind.COUNTER,
    "Workers that ended without being asked, by reason.",
    ("shard", "reason"),
)

# Worked out by the exporter, from the board's directory.
SHARD_START_TIME: Final = Metric(
    "shardnet_shard_start_time_seconds",
    Kind.GAUGE,
    "When the shard's youngest worker started, Unix time.",
    ("shard",),
    "f64",
)
SHARD_HEARTBEAT: Final = Metric(
    "shardnet_shard_heartbeat_timestamp_seconds",
    Kind.GAUGE,
    "When the shard's loop last turned, Unix time.",
    ("shard",),
    "f64",
)

ENGINE_CELLS: Final = len(OPS) * len(OUTCOMES) + 5

# Offsets in a listener's block of cells. The watcher counts into the first two.
AT_RECEIVED, AT_SENT, AT_ACTIVE, AT_ACCEPTED, AT_CLOSED = range(5)
LISTENER_CELLS: Final = AT_CLOSED + len(CLOSE_REASONS)


@dataclass(frozen=True, slots=True)
class WorkerCells:
    """Where in its row a worker counts: numbers of cells."""

    engine: int  # The first of the watcher's ENGINE_CELLS.
    traffic: tuple[int, ...]  # The first of the LISTENER_CELLS of each listener.
    handler_exceptions: int
    connections_limit: int
    count: int  # How many cells these are in all.


@dataclass(frozen=True, slots=True)
class SupervisorCells:
    """Where in its row the supervisor counts: numbers of cells."""

    shards_configured: int
    start_time: int  # In `values`, not `counts`.
    generation: int
    reloads: int  # The first; `reload()` finds the others.
    shard_state: int  # The first; `state()` finds the others.
    shard_restarts: int  # The first; `restarts()` finds the others.

    def reload(self, outcome: str) -> int:
        """The cell that counts reloads with this one of RELOAD_OUTCOMES."""
        return self.reloads + RELOAD_OUTCOMES.index(outcome)

    def state(self, shard: int, state: str) -> int:
        """The cell that is 1 while the shard is in this one of SHARD_STATES."""
        return self.shard_state + shard * len(SHARD_STATES) + SHARD_STATES.index(state)

    def restarts(self, shard: int, reason: str) -> int:
        """The cell that counts the shard's restarts for this one of RESTART_REASONS."""
        return self.shard_restarts + shard * len(RESTART_REASONS) + RESTART_REASONS.index(reason)


def lay_out_worker_cells(listener_count: int) -> WorkerCells:
    """Where a worker with so many listeners counts, in a fresh row or in cells of its own."""
    after = ENGINE_CELLS + listener_count * LISTENER_CELLS
    return WorkerCells(
        engine=0,
        traffic=tuple(range(ENGINE_CELLS, after, LISTENER_CELLS)),
        handler_exceptions=after,
        connections_limit=after + 1,
        count=after + 2,
    )


def declare_worker_metrics(row: Row, listeners: Sequence[str]) -> WorkerCells:
    """Declares everything that a worker counts, in a fresh row; `listeners` are the addresses, each once.

    Raises:
        SystemFault: that many listeners do not fit the row.
    """
    cells = lay_out_worker_cells(len(listeners))
    row.declare(COMPLETIONS, tuple(itertools.product(OPS, OUTCOMES)))
    for metric in (LOOP_TURNS, SWAP_IN_USE, SWAP_IN_USE_PEAK, SWAP_CAPACITY, SWAP_EXHAUSTED):
        row.declare(metric)
    for listener in listeners:
        for metric in (RECEIVED_BYTES, SENT_BYTES, CONNECTIONS_ACTIVE, CONNECTIONS_ACCEPTED):
            row.declare(metric, [(listener,)])
        row.declare(CONNECTIONS_CLOSED, [(listener, reason) for reason in CLOSE_REASONS])
    row.declare(HANDLER_EXCEPTIONS)
    last = row.declare(CONNECTIONS_LIMIT)
    if last != cells.connections_limit:
        raise InternalError(f"a worker's cells end at {last}, not at {cells.connections_limit}: the row was not fresh")
    return cells


def declare_supervisor_metrics(row: Row, shard_count: int) -> SupervisorCells:
    """Declares everything that the supervisor counts, for so many shards, in a fresh row.

    Raises:
        SystemFault: that many shards do not fit the row.
    """
    shards = [str(shard) for shard in range(shard_count)]
    return SupervisorCells(
        shards_configured=row.declare(SHARDS_CONFIGURED),
        start_time=row.declare(SUPERVISOR_START_TIME),
        generation=row.declare(GENERATION),
        reloads=row.declare(RELOADS, [(outcome,) for outcome in RELOAD_OUTCOMES]),
        shard_state=row.declare(SHARD_STATE, tuple(itertools.product(shards, SHARD_STATES))),
        shard_restarts=row.declare(SHARD_RESTARTS, tuple(itertools.product(shards, RESTART_REASONS))),
    )
