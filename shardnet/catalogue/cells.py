"""Where processes count: each metric's cells, in the rows of the board.

Every combination of labels is declared at the start, at zero, so that `rate()` sees the first increment. The label
`shard` of what stands in the rows of shards and workers is added by readers.

Lives here: the order of cells. Must not live here: what metrics there are (see `families`), and who counts when.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shardnet.board import Metric, Row
from shardnet.catalogue.families import (
    ACCEPT_PAUSES,
    ACCEPT_QUEUE_CAPACITY,
    ACCEPT_QUEUE_DEPTH,
    CLOSE_REASONS,
    CONNECTION_DURATION,
    CONNECTIONS_LIMIT,
    DEADLINES_EXPIRED,
    GC_COLLECTIONS,
    GC_PAUSE,
    GENERATION,
    HANDLER_EXCEPTIONS,
    LABEL_VALUES,
    LAME_DUCK,
    LISTENER_LOANS,
    LISTENERS_LENT,
    OF_ENGINE,
    OF_LISTENER,
    OF_SHARD,
    OF_SUPERVISOR,
    OF_WORKER,
    RELOAD_LAST_SUCCESS_TIME,
    RELOAD_LAST_SUCCESSFUL,
    RELOAD_OUTCOMES,
    RELOADS,
    RESTART_REASONS,
    SHARD_RESTARTS,
    SHARD_STATE,
    SHARD_STATES,
    SHARDS_CONFIGURED,
    SLOW_TURNS,
    STEERING_SHARE,
    SUPERVISOR_START_TIME,
)

__all__ = [
    "ShardCells",
    "SupervisorCells",
    "WorkerCells",
    "declare_shard_metrics",
    "declare_supervisor_metrics",
    "declare_worker_metrics",
    "lay_out_shard_cells",
    "lay_out_supervisor_cells",
    "lay_out_worker_cells",
]

# Offsets in a listener's block of cells. The engine counts into the first two.
AT_RECEIVED, AT_SENT, AT_ACTIVE, AT_ACCEPTED, AT_CLOSED = range(5)
LISTENER_CELLS: Final = AT_CLOSED + len(CLOSE_REASONS)


@dataclass(frozen=True, slots=True)
class WorkerCells:
    """Where in its row a worker counts: numbers of cells. Of what has several, the first, in the order in which
    `families` has the words of its label."""

    traffic: tuple[int, ...]  # The first of the LISTENER_CELLS of each listener.
    handler_exceptions: int
    connections_limit: int
    connection_duration: int
    accept_pauses: int
    deadlines_expired: int
    slow_turns: int
    gc_collections: int
    gc_pause: int
    count: int  # How many cells these are in all, with the engine's, which come first.


@dataclass(frozen=True, slots=True)
class SupervisorCells:
    """Where in its own row the supervisor counts: numbers of cells."""

    shards_configured: int
    start_time: int  # In `values`, not `counts`.
    lame_duck: int
    generation: int
    reloads: int  # The first; `reload()` finds the others.
    reload_last_successful: int
    reload_last_success_time: int  # In `values`.

    def reload(self, outcome: str) -> int:
        """The cell that counts reloads with this one of RELOAD_OUTCOMES."""
        return self.reloads + RELOAD_OUTCOMES.index(outcome)


@dataclass(frozen=True, slots=True)
class ShardCells:
    """Where in a shard's row the supervisor counts: numbers of cells."""

    states: int  # The first; `state()` finds the others.
    all_restarts: int  # The first; `restarts()` finds the others.
    listeners_lent: int
    listener_loans: int
    steering_share: int  # In `values`.
    accept_queue_depth: int  # Of the first listener, those of the others behind it.
    accept_queue_capacity: int

    def state(self, state: str) -> int:
        """The cell that is 1 while the shard is in this one of SHARD_STATES."""
        return self.states + SHARD_STATES.index(state)

    def restarts(self, reason: str) -> int:
        """The cell that counts the shard's restarts for this one of RESTART_REASONS."""
        return self.all_restarts + RESTART_REASONS.index(reason)


def lay_out_worker_cells(listener_count: int) -> WorkerCells:
    """Where a worker with so many listeners counts, in a fresh row or in cells of its own."""
    _, engine = _lay_out(OF_ENGINE, 0)
    after = engine + listener_count * LISTENER_CELLS
    own, count = _lay_out(OF_WORKER, after)
    return WorkerCells(
        traffic=tuple(range(engine, after, LISTENER_CELLS)),
        handler_exceptions=own[HANDLER_EXCEPTIONS],
        connections_limit=own[CONNECTIONS_LIMIT],
        connection_duration=own[CONNECTION_DURATION],
        accept_pauses=own[ACCEPT_PAUSES],
        deadlines_expired=own[DEADLINES_EXPIRED],
        slow_turns=own[SLOW_TURNS],
        gc_collections=own[GC_COLLECTIONS],
        gc_pause=own[GC_PAUSE],
        count=count,
    )


def lay_out_supervisor_cells() -> SupervisorCells:
    """Where the supervisor counts in a fresh row."""
    own, _ = _lay_out(OF_SUPERVISOR, 0)
    return SupervisorCells(
        shards_configured=own[SHARDS_CONFIGURED],
        start_time=own[SUPERVISOR_START_TIME],
        lame_duck=own[LAME_DUCK],
        generation=own[GENERATION],
        reloads=own[RELOADS],
        reload_last_successful=own[RELOAD_LAST_SUCCESSFUL],
        reload_last_success_time=own[RELOAD_LAST_SUCCESS_TIME],
    )


def lay_out_shard_cells(listener_count: int) -> ShardCells:
    """Where the supervisor counts in a shard's row, for so many listeners."""
    own, _ = _lay_out(OF_SHARD, 0, listener_count)
    return ShardCells(
        states=own[SHARD_STATE],
        all_restarts=own[SHARD_RESTARTS],
        listeners_lent=own[LISTENERS_LENT],
        listener_loans=own[LISTENER_LOANS],
        steering_share=own[STEERING_SHARE],
        accept_queue_depth=own[ACCEPT_QUEUE_DEPTH],
        accept_queue_capacity=own[ACCEPT_QUEUE_CAPACITY],
    )


def declare_worker_metrics(row: Row, listeners: Sequence[str]) -> WorkerCells:
    """Declares everything that a worker counts, in a fresh row; `listeners` are the addresses, each once.

    Raises:
        SystemFault: that many listeners do not fit the row.
    """
    _declare(row, OF_ENGINE)
    for listener in listeners:
        _declare(row, OF_LISTENER, (listener,))
    _declare(row, OF_WORKER)
    return lay_out_worker_cells(len(listeners))


def declare_supervisor_metrics(row: Row) -> SupervisorCells:
    """Declares everything that the supervisor counts, but for shards, in a fresh row."""
    _declare(row, OF_SUPERVISOR)
    return lay_out_supervisor_cells()


def declare_shard_metrics(row: Row, listeners: Sequence[str]) -> ShardCells:
    """Declares everything that the supervisor counts of a shard, in its fresh row. See `declare_worker_metrics`."""
    _declare(row, OF_SHARD, listeners)
    return lay_out_shard_cells(len(listeners))


def _lay_out(metrics: Sequence[Metric], start: int, listener_count: int = 1) -> tuple[dict[Metric, int], int]:
    """Where the cells of each metric begin, if the first begins at `start`; and where they end."""
    found: dict[Metric, int] = {}
    for metric in metrics:
        found[metric] = start
        start += len(_label_values(metric, ("",) * listener_count)) * len(metric.cell_types)
    return found, start


def _declare(row: Row, metrics: Sequence[Metric], listeners: Sequence[str] = ()) -> None:
    for metric in metrics:
        row.declare(metric, _label_values(metric, listeners))


def _label_values(metric: Metric, listeners: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination that the metric's labels can have."""
    words = [listeners if label == "listener" else LABEL_VALUES[metric.name, label] for label in metric.labels]
    return list(itertools.product(*words))
