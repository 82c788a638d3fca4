"""What `shardnet top` makes of two looks at a board, and of figures lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from shardnet.board import Board, Role, Row
from shardnet.catalogue.cells import (
    AT_ACTIVE,
    AT_RECEIVED,
    declare_shard_metrics,
    declare_supervisor_metrics,
    declare_worker_metrics,
    lay_out_shard_cells,
)
from shardnet.catalogue.families import LOOP_BUCKETS_S
from shardnet.top.model import Shard, View, Watch, quantile
from shardnet.top.text import (
    SORTS,
    bytes_text,
    columns_for,
    count_text,
    duration_text,
    folded,
    header,
    lines,
    printable,
    state_text,
)
from shardnet.watcher.counters import LOOP_BUSY_NS, LOOP_LAG_NS, READ_OK, SWAP_CAPACITY_BYTES, SWAP_IN_USE_PEAK_BYTES

LISTENER = "127.0.0.1:9000"
NS_PER_S = 1_000_000_000


@pytest.fixture
def board() -> Iterator[Board]:
    """Of three shards, the last of them vacant; the supervisor started at 1000 of the Unix clock."""
    board = Board.create(shards_max=3)
    own = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    cells = declare_supervisor_metrics(own)
    own.counts[cells.shards_configured], own.counts[cells.generation] = 2, 4
    own.counts[cells.reload_last_successful] = 1
    own.values[cells.start_time] = 1000.0
    for shard in range(3):
        row = board.shard_row(shard)
        of_shard = declare_shard_metrics(row, [LISTENER])
        row.counts[of_shard.state("serving")] = shard < 2
        row.counts[of_shard.restarts("crash")] = shard
        row.counts[of_shard.restarts("reload")] = 7
        row.counts[of_shard.accept_queue_depth], row.counts[of_shard.accept_queue_capacity] = 3, 4096
    yield board
    board.close()


def worker(board: Board, shard: int, incarnation: int = 1) -> Row:
    row = board.row(board.claim(Role.WORKER, shard, 1, incarnation, started_ns=0))
    declare_worker_metrics(row, [LISTENER])
    row.publish_pid(100 + shard)
    return row


def watch() -> Watch:
    return Watch(lambda pid: pid * 1000)


def test_rates_are_of_the_time_between_two_looks(board: Board) -> None:
    row = worker(board, 1)
    traffic = declare_worker_metrics(board.row(worker(board, 0).index), [LISTENER]).traffic[0]
    row.counts[READ_OK] = 100
    watching = watch()
    first = watching.look(board.snapshot(), 10.0, 1010.0)
    assert [shard.completions_per_s for shard in first.shards] == [None, None]
    row.counts[READ_OK] += 300
    row.counts[traffic + AT_RECEIVED] += 5000
    row.counts[traffic + AT_ACTIVE] = 12
    row.counts[LOOP_BUSY_NS] += NS_PER_S // 2
    row.counts[SWAP_CAPACITY_BYTES], row.counts[SWAP_IN_USE_PEAK_BYTES] = 65536, 16384
    row.beat(11 * NS_PER_S)
    view = watching.look(board.snapshot(), 12.0, 1012.0)
    idle, busy = view.shards
    assert (idle.completions_per_s, idle.loop_use_ratio, idle.connections) == (0, 0, 0)
    assert busy.completions_per_s == 150
    assert busy.received_bytes_per_s == 2500
    assert busy.loop_use_ratio == 0.25
    assert busy.connections == 12
    assert busy.swap_peak_ratio == 0.25
    assert (busy.accept_queue, busy.accept_queue_capacity) == (3, 4096)
    assert (busy.pid, busy.memory_bytes, busy.restarts, busy.silent_s) == (101, 101_000, 1, 1.0)
    assert busy.history == (150.0,)
    assert (view.generation, view.shards_configured, view.serving, view.uptime_s) == (4, 2, 2, 12.0)
    assert not view.reload_failed


def test_worker_that_is_replaced_makes_no_rate_negative(board: Board) -> None:
    """Law: what it has counted stays on the board, so that a rate goes on where it was."""
    watching = watch()
    row = worker(board, 0)
    row.counts[READ_OK] = 1000
    watching.look(board.snapshot(), 1.0, 0.0)
    row.counts[READ_OK] += 10
    board.fold(row.index)
    assert watching.look(board.snapshot(), 2.0, 0.0).shards[0].completions_per_s == 10
    worker(board, 0, 2).counts[READ_OK] = 5
    assert watching.look(board.snapshot(), 3.0, 0.0).shards[0].completions_per_s == 5


def test_another_server_in_its_place_makes_no_rate_negative(board: Board) -> None:
    watching = watch()
    worker(board, 0).counts[READ_OK] = 1000
    watching.look(board.snapshot(), 1.0, 0.0)
    watching._counts["shardnet_completions_total"]["0"] = 10**9
    assert watching.look(board.snapshot(), 2.0, 0.0).shards[0].completions_per_s == 0


def test_shard_that_was_scaled_away_is_left_out_and_one_that_is_kept_empty_is_not(board: Board) -> None:
    cells = lay_out_shard_cells(1)
    board.shard_row(1).counts[cells.state("serving")] = 0
    view = watch().look(board.snapshot(), 1.0, 0.0)
    assert [(shard.shard, shard.state) for shard in view.shards] == [(0, "serving"), (1, "vacant")]


def test_lag_is_that_of_the_time_between_two_looks(board: Board) -> None:
    row = worker(board, 0)
    row.counts[LOOP_LAG_NS + len(LOOP_BUCKETS_S)] = 10**6  # Long ago.
    watching = watch()
    watching.look(board.snapshot(), 1.0, 0.0)
    row.counts[LOOP_LAG_NS] += 98
    row.counts[LOOP_LAG_NS + 4] += 2  # Between 0.5 and 1 ms.
    assert watching.look(board.snapshot(), 2.0, 0.0).shards[0].loop_lag_p99_s == pytest.approx(0.00075)


def test_memory_is_not_asked_for_at_each_look(board: Board) -> None:
    asked: list[int] = []
    watching = Watch(lambda pid: asked.append(pid) or 1)  # type: ignore[func-returns-value]
    worker(board, 0)
    for second in range(11):
        watching.look(board.snapshot(), float(second), 0.0)
    assert asked == [100, 100, 100]


def test_shard_with_two_workers_shows_the_one_that_serves_and_the_memory_of_both(board: Board) -> None:
    """Law: of a generation that does not serve yet, nothing counts but its memory."""
    worker(board, 0).beat(9 * NS_PER_S)
    held = board.row(board.claim(Role.WORKER, 0, 5, 2, started_ns=0))
    declare_worker_metrics(held, [LISTENER])
    held.publish_pid(999)
    view = watch().look(board.snapshot(), 10.0, 0.0)
    shard = view.shards[0]
    assert (shard.pid, shard.workers, shard.memory_bytes, shard.silent_s) == (100, 2, 100_000 + 999_000, 1.0)
    assert view.reloading


def test_turn_that_was_longer_than_from_look_to_look_makes_the_loop_no_busier_than_it_can_be(board: Board) -> None:
    row = worker(board, 0)
    watching = watch()
    watching.look(board.snapshot(), 1.0, 0.0)
    row.counts[LOOP_BUSY_NS] += 30 * NS_PER_S
    assert watching.look(board.snapshot(), 2.0, 0.0).shards[0].loop_use_ratio == 1.0


@pytest.mark.parametrize(("minimum", "ready"), [(1, True), (2, False), (9, False), (None, False)])
def test_readiness_is_that_of_the_probe(board: Board, minimum: int | None, ready: bool) -> None:
    cells = lay_out_shard_cells(1)
    board.shard_row(1).counts[cells.state("serving")] = 0
    assert watch().look(board.snapshot(), 1.0, 0.0, minimum).ready is ready


def test_many_processes_are_weighed_a_few_at_each_look() -> None:
    board = Board.create(shards_max=20)
    own = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    own.counts[declare_supervisor_metrics(own).shards_configured] = 20
    for shard in range(20):
        declare_shard_metrics(board.shard_row(shard), [LISTENER])
        worker(board, shard)
    asked: list[int] = []
    watching = Watch(lambda pid: asked.append(pid) or 1)  # type: ignore[func-returns-value]
    watching.look(board.snapshot(), 0.0, 0.0)
    assert len(asked) == 20  # Once, so that every figure is there.
    watching.look(board.snapshot(), 6.0, 0.0)
    watching.look(board.snapshot(), 7.0, 0.0)
    assert asked[20:] == list(range(100, 116))
    board.close()


@pytest.mark.parametrize(
    ("counts", "found"),
    [([0, 0, 0], None), ([100, 0, 0], 0.99), ([0, 100, 0], 1.99), ([0, 0, 5], 2.0), ([50, 50, 0], 1.98)],
)
def test_quantile_is_as_prometheus_has_it(counts: list[int], found: float | None) -> None:
    assert quantile(0.99, (1.0, 2.0), counts) == (found if found is None else pytest.approx(found))


# Text.

SHARD = Shard(
    shard=0,
    state="serving",
    lent=False,
    workers=1,
    pid=1,
    connections=1234,
    completions_per_s=98765.4,
    received_bytes_per_s=1536.0,
    sent_bytes_per_s=1 << 30,
    loop_use_ratio=0.5,
    loop_lag_p99_s=0.0123,
    swap_in_use_bytes=8192,
    swap_in_use_peak_bytes=65536,
    swap_capacity_bytes=65536,
    swap_peak_ratio=1.0,
    accept_queue=0,
    accept_queue_capacity=128,
    memory_bytes=11 << 20,
    restarts=0,
    silent_s=0.1,
    history=(1.0, 4.0, 8.0),
)
VIEW = View(
    shards=(SHARD, replace(SHARD, shard=12, connections=2, history=())),
    shards_configured=2,
    generation=3,
    uptime_s=3700.0,
    ready=True,
    lame_duck=False,
    reloads_ok=0,
    reloads_failed=0,
    reload_failed=False,
    reloading=False,
    loaded_s=3700.0,
    supervisor_pid=1,
    supervisor_silent_s=0.5,
)


@pytest.mark.parametrize(
    ("value", "count", "size"),
    [
        (0, "0", "0B"),
        (999, "999", "999B"),
        (1000, "1.0k", "1000B"),
        (1023.4, "1.0k", "1023B"),
        (12345, "12k", "12K"),
        (1e6, "1.0M", "977K"),
        (999_999, "1.0M", "977K"),
        (1e15, "1000.0T", "909.5T"),
        (None, "-", "-"),
    ],
)
def test_numbers_are_short(value: float | None, count: str, size: str) -> None:
    assert (count_text(value), bytes_text(value)) == (count, size)


def test_durations_have_two_units() -> None:
    assert [duration_text(value) for value in (5, 65, 3700, 90000)] == ["5s", "1m 5s", "1h 1m", "1d 1h"]


@pytest.mark.parametrize("width", [10, 40, 60, 79, 80, 100, 200])
def test_lines_are_as_wide_as_there_is_room(width: int) -> None:
    titles, rows, total = lines(VIEW, width)
    assert all(len(line) <= max(width, 14) for line in (titles, total, *(row for _, row in rows)))
    assert [row.split()[0] for _, row in rows] == ["0", "12"]
    assert all(len(line) <= width for line in header(VIEW, {"name": "x" * 300, "addresses": []}, width))


def test_eighty_columns_hold_every_figure() -> None:
    assert len(columns_for(79)) == len(SORTS)


def test_bars_can_have_room_where_it_is_narrow() -> None:
    titles, rows, _ = lines(VIEW, 79, bars=True)
    assert "completio" in titles
    assert rows[0][1].endswith("▂▅█")
    assert "PSS" not in titles


def test_state_of_a_shard_that_serves_says_what_is_wrong_with_it() -> None:
    assert [
        state_text(shard)
        for shard in (
            SHARD,
            replace(SHARD, lent=True),
            replace(SHARD, lent=True, silent_s=7.0),
            replace(SHARD, state="draining", silent_s=7.0),
        )
    ] == ["serving", "lent", "silent", "draining"]


def test_total_of_the_swap_buffers_is_that_of_the_fullest() -> None:
    roomy = replace(SHARD, shard=1, swap_in_use_bytes=0, swap_in_use_peak_bytes=64, swap_peak_ratio=0.001)
    total = lines(replace(VIEW, shards=(roomy, SHARD)), 120)[2]
    assert "12/100%" in total
    assert "0/256" in total


def test_bars_have_one_scale_for_all_shards() -> None:
    _, rows, _ = lines(VIEW, 120)
    assert rows[0][1].endswith("▂▅█")
    assert not rows[1][1].endswith(("█", "▁"))


def test_order_can_be_inverted() -> None:
    for inverted, order in ((False, [0, 12]), (True, [12, 0])):
        _, rows, _ = lines(VIEW, 80, "conns", upside_down=inverted)
        assert [shard.shard for shard, _ in rows] == order


def test_words_of_others_move_no_cursor() -> None:
    assert printable("a\x1b[2Jb\nc\u202e") == "a?[2Jb?c?"
    assert "\x1b" not in header(VIEW, {"name": "\x1b[2J"}, 80)[0]


@pytest.mark.parametrize("width", [0, 1, 8, 9, 10, 30, 100])
def test_long_lines_are_folded_and_lose_nothing(width: int) -> None:
    text = ['  File "/srv/app.py", line 41 in handler', "", "short"]
    found = folded(text, width)
    assert all(len(line) <= width for line in found)
    if width > 8:
        assert "".join(found).replace(" ", "") == "".join(text).replace(" ", "")


def test_header_tells_of_reloads() -> None:
    assert header(VIEW, {}, 200)[1].endswith("no reload yet")
    view = replace(VIEW, reloads_ok=2, reloads_failed=1, loaded_s=65.0, reloading=True)
    notes = header(view, {}, 200)[1]
    assert notes.startswith("reload under way, ready, ")
    assert notes.endswith("reloads: 2 ok, 1 failed, code loaded 1m 5s ago")


@pytest.mark.parametrize("sort", SORTS)
def test_lines_can_be_sorted_by_each_column(sort: str) -> None:
    _, rows, _ = lines(VIEW, 80, sort)
    assert len(rows) == 2
    if sort == "conns":
        assert [shard.shard for shard, _ in rows] == [0, 12]
    assert lines(replace(VIEW, shards=()), 80, sort)[1] == []


def test_header_says_what_is_wrong_first() -> None:
    view = replace(VIEW, ready=False, lame_duck=True, reload_failed=True)
    _, notes = header(view, {"name": "x", "addresses": []}, 120)
    assert notes.startswith("LAST RELOAD FAILED, LAME DUCK, NOT READY, 2/2 shards serve")
