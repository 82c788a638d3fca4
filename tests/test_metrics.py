"""The catalogue, and where its cells are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardnet import metrics
from shardnet.board import Board, Metric, Role, Row
from shardnet.connection import CloseReason
from shardnet.metrics import (
    CLOSE_REASONS,
    OPS,
    OUTCOMES,
    RESTART_REASONS,
    SHARD_STATES,
    declare_supervisor_metrics,
    declare_worker_metrics,
    lay_out_worker_cells,
)
from shardnet.watcher import counters

LISTENERS = ("127.0.0.1:9000", "[::1]:9000")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(shards_max=1)
    yield board
    board.close()


def worker_row(board: Board) -> Row:
    return board.row(board.claim(Role.WORKER, 0, 1, 1, started_ns=0))


def supervisor_row(board: Board) -> Row:
    return board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))


def labels_by_cell(row: Row) -> dict[int, tuple[str, ...]]:
    """Metric and label values of every cell."""
    return {
        cell: (declaration.metric.name.removeprefix("shardnet_"), *values)
        for declaration in row.declarations()
        for values, cell in declaration.cells()
    }


def test_worker_cells_begin_with_those_of_the_watcher(board: Board) -> None:
    row = worker_row(board)
    cells = declare_worker_metrics(row, LISTENERS)
    names = labels_by_cell(row)
    assert cells.engine == 0
    assert metrics.ENGINE_CELLS == counters.CELLS_OWN
    for op in counters.Op:
        for outcome in counters.Outcome:
            cell = counters.completions_cell(op, outcome)
            assert names[cell] == ("completions_total", op.name.lower(), outcome.name.lower())
    assert names[counters.LOOP_TURNS] == ("loop_turns_total",)
    assert names[counters.SWAP_IN_USE_BYTES] == ("swap_buffer_in_use_bytes",)
    assert names[counters.SWAP_IN_USE_PEAK_BYTES] == ("swap_buffer_in_use_peak_bytes",)
    assert names[counters.SWAP_CAPACITY_BYTES] == ("swap_buffer_capacity_bytes",)
    assert names[counters.SWAP_EXHAUSTED] == ("swap_buffer_exhausted_total",)


def test_worker_cells_hold_a_block_for_each_listener(board: Board) -> None:
    row = worker_row(board)
    cells = declare_worker_metrics(row, LISTENERS)
    names = labels_by_cell(row)
    for listener, traffic in zip(LISTENERS, cells.traffic, strict=True):
        assert names[traffic + counters.TRAFFIC_RECEIVED] == ("received_bytes_total", listener)
        assert names[traffic + counters.TRAFFIC_SENT] == ("sent_bytes_total", listener)
        assert names[traffic + metrics.AT_ACTIVE] == ("connections_active", listener)
        assert names[traffic + metrics.AT_ACCEPTED] == ("connections_accepted_total", listener)
        for reason in CloseReason:
            assert names[traffic + metrics.AT_CLOSED + reason] == (
                "connections_closed_total",
                listener,
                reason.name.lower(),
            )
    assert names[cells.handler_exceptions] == ("handler_exceptions_total",)
    assert names[cells.connections_limit] == ("connections_limit",)
    assert len(names) == cells.count


@pytest.mark.parametrize("listener_count", [0, 1, 100])
def test_worker_cells_are_where_the_layout_says(board: Board, listener_count: int) -> None:
    listeners = [f"127.0.0.1:{port}" for port in range(listener_count)]
    assert declare_worker_metrics(worker_row(board), listeners) == lay_out_worker_cells(listener_count)


def test_catalogue_has_the_words_of_those_who_count() -> None:
    assert tuple(op.name.lower() for op in counters.Op) == OPS
    assert tuple(outcome.name.lower() for outcome in counters.Outcome) == OUTCOMES
    assert tuple(reason.name.lower() for reason in CloseReason) == CLOSE_REASONS


def test_supervisor_cells_are_found_by_shard_and_word(board: Board) -> None:
    row = supervisor_row(board)
    cells = declare_supervisor_metrics(row, shard_count=3)
    names = labels_by_cell(row)
    for shard in range(3):
        for state in SHARD_STATES:
            assert names[cells.state(shard, state)] == ("shard_state", str(shard), state)
        for reason in RESTART_REASONS:
            assert names[cells.restarts(shard, reason)] == ("shard_restarts_total", str(shard), reason)
    assert names[cells.start_time] == ("supervisor_start_time_seconds",)
    assert names[cells.generation] == ("generation",)
    assert names[cells.shards_configured] == ("shards_configured",)


def test_supervisor_cells_suffice_for_a_very_large_machine(board: Board) -> None:
    cells = declare_supervisor_metrics(supervisor_row(board), shard_count=1000)
    assert cells.restarts(999, "signal") == cells.state(999, "backoff") + 2 * 1000


def test_catalogue_names_each_metric_once() -> None:
    names = [metric.name for metric in vars(metrics).values() if isinstance(metric, Metric)]
    assert len(names) == 21
    assert len(set(names)) == len(names)
    assert all(name.startswith("shardnet_") for name in names)
