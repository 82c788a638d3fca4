"""The catalogue, and where its cells are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.board import Board, Kind, Metric, Role, Row
from shardnet.catalogue import families
from shardnet.catalogue.cells import (
    AT_ACCEPTED,
    AT_ACTIVE,
    AT_CLOSED,
    declare_shard_metrics,
    declare_supervisor_metrics,
    declare_worker_metrics,
    lay_out_shard_cells,
    lay_out_supervisor_cells,
    lay_out_worker_cells,
)
from shardnet.catalogue.families import (
    CLOSE_REASONS,
    EVERY,
    LABEL_VALUES,
    OPS,
    OUTCOMES,
    RELOAD_OUTCOMES,
    RESTART_REASONS,
    SHARD_STATES,
    UNASKED_REASONS,
)
from shardnet.catalogue.table import metrics_tables
from shardnet.connection import CloseReason
from shardnet.supervisor.events import Reason
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
    assert cells.traffic[0] == counters.CELLS_OWN
    for op in counters.Op:
        for outcome in counters.Outcome:
            cell = counters.completions_cell(op, outcome)
            assert names[cell] == ("completions_total", op.name.lower(), outcome.name.lower())
    assert names[counters.LOOP_TURNS] == ("loop_turns_total",)
    assert names[counters.SWAP_IN_USE_BYTES] == ("swap_buffer_in_use_bytes",)
    assert names[counters.SWAP_IN_USE_PEAK_BYTES] == ("swap_buffer_in_use_peak_bytes",)
    assert names[counters.SWAP_CAPACITY_BYTES] == ("swap_buffer_capacity_bytes",)
    assert names[counters.SWAP_EXHAUSTED] == ("swap_buffer_exhausted_total",)
    assert names[counters.SWAP_SPILL_BYTES] == ("swap_buffer_spill_bytes_total",)
    assert names[counters.READ_PENDING] == ("operations_pending", "read")
    assert names[counters.WRITE_PENDING] == ("operations_pending", "write")
    assert names[counters.TIMER_PENDING] == ("operations_pending", "timer")
    assert names[counters.SEND_QUEUE_BYTES] == ("send_queue_bytes",)
    assert names[counters.CONNECTIONS_PAUSED] == ("connections_paused",)
    assert names[counters.LOOP_BUSY_NS] == ("loop_busy_seconds_total",)
    assert names[counters.TURN_DURATION_NS] == ("loop_turn_duration_seconds",)
    assert names[counters.LOOP_LAG_NS] == ("loop_lag_seconds",)
    assert names[counters.BATCH_SIZE] == ("completion_batch_size",)
    assert names[counters.COMPLETION_LATENCY_NS] == ("completion_latency_seconds",)


def test_histograms_of_the_engine_have_the_buckets_of_the_catalogue() -> None:
    assert [bound * 1e9 for bound in families.LOOP_BUCKETS_S] == pytest.approx(list(counters.LOOP_BUCKETS_NS))
    assert families.BATCH_BUCKETS == counters.BATCH_BUCKETS


def test_worker_cells_hold_a_block_for_each_listener(board: Board) -> None:
    row = worker_row(board)
    cells = declare_worker_metrics(row, LISTENERS)
    names = labels_by_cell(row)
    for listener, traffic in zip(LISTENERS, cells.traffic, strict=True):
        assert names[traffic + counters.TRAFFIC_RECEIVED] == ("received_bytes_total", listener)
        assert names[traffic + counters.TRAFFIC_SENT] == ("sent_bytes_total", listener)
        assert names[traffic + AT_ACTIVE] == ("connections_active", listener)
        assert names[traffic + AT_ACCEPTED] == ("connections_accepted_total", listener)
        for reason in CloseReason:
            assert names[traffic + AT_CLOSED + reason] == (
                "connections_closed_total",
                listener,
                reason.name.lower(),
            )
    assert names[cells.handler_exceptions] == ("handler_exceptions_total",)
    assert names[cells.connections_limit] == ("connections_limit",)
    assert names[cells.gc_pause] == ("gc_pause_seconds_total",)
    assert cells.count == len(row.copy()[1])


@pytest.mark.parametrize("listener_count", [0, 1, 100])
def test_worker_cells_are_where_the_layout_says(board: Board, listener_count: int) -> None:
    listeners = [f"127.0.0.1:{port}" for port in range(listener_count)]
    assert declare_worker_metrics(worker_row(board), listeners) == lay_out_worker_cells(listener_count)


def test_catalogue_has_the_words_of_those_who_count() -> None:
    assert tuple(op.name.lower() for op in counters.Op) == OPS
    assert tuple(outcome.name.lower() for outcome in counters.Outcome) == OUTCOMES
    assert tuple(reason.name.lower() for reason in CloseReason) == CLOSE_REASONS
    assert tuple(reason.value for reason in Reason) == RESTART_REASONS
    assert UNASKED_REASONS == ("crash", "signal", "hang")


def test_supervisor_cells_are_found_by_word(board: Board) -> None:
    row = supervisor_row(board)
    cells = declare_supervisor_metrics(row)
    names = labels_by_cell(row)
    assert cells == lay_out_supervisor_cells()
    for outcome in RELOAD_OUTCOMES:
        assert names[cells.reload(outcome)] == ("reloads_total", outcome)
    assert names[cells.start_time] == ("supervisor_start_time_seconds",)
    assert names[cells.generation] == ("generation",)
    assert names[cells.shards_configured] == ("shards_configured",)
    assert names[cells.reload_last_success_time] == ("reload_last_success_timestamp_seconds",)


def test_shard_cells_are_found_by_word_and_listener(board: Board) -> None:
    row = board.shard_row(0)
    cells = declare_shard_metrics(row, LISTENERS)
    names = labels_by_cell(row)
    assert cells == lay_out_shard_cells(len(LISTENERS))
    for state in SHARD_STATES:
        assert names[cells.state(state)] == ("shard_state", state)
    for reason in RESTART_REASONS:
        assert names[cells.restarts(reason)] == ("shard_restarts_total", reason)
    for number, listener in enumerate(LISTENERS):
        assert names[cells.accept_queue_depth + number] == ("accept_queue_depth", listener)
        assert names[cells.accept_queue_capacity + number] == ("accept_queue_capacity", listener)
    assert names[cells.steering_share] == ("steering_share_ratio",)


def test_catalogue_names_each_metric_once_and_all_of_them() -> None:
    names = [metric.name for metric in EVERY]
    assert len(names) == len(set(names)) == 54
    declared = {value.name for value in vars(families).values() if isinstance(value, Metric)}
    assert set(names) == declared


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_catalogue_follows_the_rules_for_names(metric: Metric) -> None:
    assert re.fullmatch(r"shardnet(_[a-z]+)+", metric.name)
    assert metric.help.endswith((".", "logged.", "up."))
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    if metric.cell == "ns":
        assert metric.name.removesuffix("_total").endswith("_seconds")
    for label in metric.labels:
        assert label == "listener" or (metric.name, label) in LABEL_VALUES or metric is families.BUILD


def test_page_of_the_documentation_is_what_the_catalogue_says() -> None:
    """When this fails: `.venv/bin/python tools/metrics-tables.py` writes it anew."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"\n{metrics_tables()}\n" in page
    for metric in EVERY:
        assert page.count(f"| `{metric.name}` |") == 1
