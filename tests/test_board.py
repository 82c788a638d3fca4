"""The board, with the processes that share it."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.board import Board, Kind, Labels, Metric, Role, Row
from shardnet.board.row import CELLS_MAX
from shardnet.board.schema import Declaration
from shardnet.errors import InternalError, SystemFault, UsageError

HITS = Metric("test_hits_total", Kind.COUNTER, "Hits.")
SEEN = Metric("test_seen_total", Kind.COUNTER, "Seen, by colour.", ("colour",))
BUSY = Metric("test_busy_seconds_total", Kind.COUNTER, "Busy time.", cell="f64")
OPEN = Metric("test_open", Kind.GAUGE, "Open now.")
IDLE = Metric("test_idle_seconds_total", Kind.COUNTER, "Idle time.", cell="ns")
WAIT = Metric("test_wait_seconds", Kind.HISTOGRAM, "Waits, by colour.", ("colour",), "ns", (0.1, 1.0))
SIZE = Metric("test_size", Kind.HISTOGRAM, "Sizes.", cell="f64", buckets=(1.0, 8.0))
LEVEL = Metric("test_level_ratio", Kind.GAUGE, "Level.", cell="f64")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(shards_max=4)
    yield board
    board.close()


def claim(board: Board, shard: int = 0, generation: int = 1, incarnation: int = 1) -> Row:
    return board.row(board.claim(Role.WORKER, shard, generation, incarnation, started_ns=0))


def forked(body: Callable[[], None]) -> int:
    """The pid of a child that runs `body` and ends: with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def running(body: Callable[[], None]) -> Iterator[int]:
    """A child that runs `body` until it is killed at the end."""
    pid = forked(body)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL


# Declaring and counting.


def test_row_gives_neighbouring_cells_from_zero_on(board: Board) -> None:
    row = claim(board)
    assert row.declare(SEEN, [("red",), ("green",)]) == 0
    assert row.declare(HITS) == 2
    assert row.declare(SEEN, [("blue",)]) == 3


def test_row_shows_one_cell_as_count_and_as_value(board: Board) -> None:
    row = claim(board)
    cell = row.declare(LEVEL)
    row.values[cell] = 0.25
    assert row.counts[cell] == 0x3FD0_0000_0000_0000
    assert board.snapshot().value(LEVEL, shard="0") == 0.25


def test_row_shows_nanoseconds_as_seconds(board: Board) -> None:
    row = claim(board)
    row.counts[row.declare(IDLE)] += 1_500_000_000
    assert board.snapshot().value(IDLE, shard="0") == 1.5


def test_row_has_a_cell_for_each_bucket_of_a_histogram_and_two_more(board: Board) -> None:
    row = claim(board)
    first = row.declare(WAIT, [("red",), ("green",)])
    assert row.declare(HITS) == first + 2 * 4
    for cell, value in enumerate((1, 2, 3, 4_000_000_000)):
        row.counts[first + 4 + cell] = value
    snapshot = board.snapshot()
    green = snapshot.distribution(WAIT, shard="0", colour="green")
    assert (green.counts, green.total, green.count) == ([1, 2, 3], 4.0, 6)
    assert snapshot.distribution(WAIT, shard="0", colour="red").count == 0
    assert snapshot.distribution(WAIT, shard="9", colour="red").counts == [0, 0, 0]


def test_row_is_one_memory_for_parent_and_child(board: Board) -> None:
    row = claim(board)

    def count() -> None:
        cell = row.declare(HITS)
        row.publish_pid(os.getpid())
        row.beat(123)
        for _ in range(1000):
            row.counts[cell] += 1

    pid = forked(count)
    assert ended(pid) == 0
    snapshot = board.snapshot()
    assert snapshot.value(HITS, shard="0") == 1000
    assert [(w.pid, w.heartbeat_ns) for w in snapshot.workers] == [(pid, 123)]


def test_row_refuses_label_values_that_do_not_fit_the_labels(board: Board) -> None:
    with pytest.raises(UsageError, match="no values for"):
        claim(board).declare(SEEN)
    with pytest.raises(UsageError, match="twice"):
        claim(board).declare(SEEN, [("red",), ("red",)])


def test_row_says_so_when_it_has_no_cells_left(board: Board) -> None:
    row = claim(board)
    row.declare(SEEN, [(str(n),) for n in range(CELLS_MAX - 1)])
    with pytest.raises(SystemFault, match="no room on the board for metric test_seen_total"):
        row.declare(SEEN, [("a",), ("b",)])
    assert row.declare(HITS) == CELLS_MAX - 1


def test_row_says_so_when_it_has_no_room_for_names(board: Board) -> None:
    row = claim(board)
    long = "x" * 50_000
    row.declare(SEEN, [(long + "a",)])
    row.declare(SEEN, [(long + "b",)])
    with pytest.raises(SystemFault, match="no room on the board"):
        row.declare(SEEN, [(long + "c",)])
    assert row.declare(HITS) == 2
    assert len(board.snapshot().families[SEEN.name].values) == 2


# Claiming.


def test_board_names_the_workers_in_order(board: Board) -> None:
    board.claim(Role.WORKER, shard=1, generation=7, incarnation=9, started_ns=5)
    board.claim(Role.WORKER, shard=0, generation=8, incarnation=11, started_ns=6)
    board.claim(Role.WORKER, shard=0, generation=7, incarnation=10, started_ns=4)
    workers = board.snapshot().workers
    assert [(w.shard, w.generation, w.incarnation, w.started_ns) for w in workers] == [
        (0, 7, 10, 4),
        (0, 8, 11, 6),
        (1, 7, 9, 5),
    ]


def test_board_says_so_when_every_row_is_taken(board: Board) -> None:
    rows = [claim(board, shard % 4) for shard in range(12)]
    with pytest.raises(SystemFault, match="every row of the board that a worker may have is taken"):
        claim(board)
    board.fold(rows[5].index)
    assert claim(board).index == rows[5].index


def test_board_has_one_row_for_the_supervisor(board: Board) -> None:
    board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=77)
    supervisor = board.snapshot().supervisor
    assert supervisor is not None
    assert supervisor.started_ns == 77
    with pytest.raises(SystemFault, match="supervisor"):
        board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=78)


def test_board_folds_no_rows_but_those_of_workers(board: Board) -> None:
    supervisor = board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0)
    with pytest.raises(InternalError):
        board.fold(supervisor)


# Adding up.


def test_snapshot_adds_generations_of_one_shard(board: Board) -> None:
    for generation, hits, connections in [(1, 10, 5), (2, 20, 6)]:
        row = claim(board, shard=3, generation=generation)
        row.counts[row.declare(HITS)] = hits
        row.counts[row.declare(OPEN)] = connections
    snapshot = board.snapshot()
    assert snapshot.value(HITS, shard="3") == 30
    assert snapshot.value(OPEN, shard="3") == 11


def test_snapshot_leaves_the_labels_of_the_supervisor_alone(board: Board) -> None:
    row = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    row.counts[row.declare(OPEN)] = 1
    assert board.snapshot().families[OPEN.name].values == {Labels.of({}): 1}


def test_snapshot_holds_every_declared_series_from_the_start(board: Board) -> None:
    claim(board).declare(SEEN, [("red",), ("green",)])
    assert board.snapshot().families[SEEN.name].values == {
        Labels.of({"colour": "red", "shard": "0"}): 0,
        Labels.of({"colour": "green", "shard": "0"}): 0,
    }


def test_fold_keeps_counters_and_drops_gauges(board: Board) -> None:
    for hits in (3, 4):
        row = claim(board, shard=2)
        row.counts[row.declare(OPEN)] = 9
        row.counts[row.declare(HITS)] = hits
        row.values[row.declare(BUSY)] = 0.5
        assert board.fold(row.index) == 0
    row = claim(board, shard=2)
    row.counts[row.declare(HITS)] = 5
    snapshot = board.snapshot()
    assert snapshot.value(HITS, shard="2") == 12
    assert snapshot.value(BUSY, shard="2") == 1.0
    assert OPEN.name not in snapshot.families


def test_fold_keeps_counters_that_earlier_workers_did_not_have(board: Board) -> None:
    for colours in (["red"], ["green", "red"], ["blue"]):
        row = claim(board)
        cell = row.declare(SEEN, [(colour,) for colour in colours])
        for offset in range(len(colours)):
            row.counts[cell + offset] = 1
        board.fold(row.index)
    assert {labels.pairs["colour"]: value for labels, value in board.snapshot().families[SEEN.name].values.items()} == {
        "red": 2,
        "green": 1,
        "blue": 1,
    }


def test_fold_keeps_histograms(board: Board) -> None:
    for shard_row in (False, True):
        row = claim(board)
        first = row.declare(SIZE)
        row.counts[first + 1] = 2
        row.values[first + 3] = 9.5
        if not shard_row:
            board.fold(row.index)
    size = board.snapshot().distribution(SIZE, shard="0")
    assert (size.counts, size.total) == ([0, 4, 0], 19.0)


def test_snapshot_leaves_out_what_older_code_meant_by_the_same_name(board: Board) -> None:
    """Law: after a reload, a metric is what the new code says; its old values do not mix with others."""
    old = Metric(SIZE.name, Kind.HISTOGRAM, "Sizes.", cell="f64", buckets=(1.0, 2.0, 4.0))
    row = claim(board)
    row.counts[row.declare(old)] = 5
    row.counts[row.declare(Metric(OPEN.name + "_total", Kind.COUNTER, "Opened."))] = 1
    board.fold(row.index)
    row = claim(board)
    row.counts[row.declare(SIZE)] = 7
    size = board.snapshot().distribution(SIZE, shard="0")
    assert size.counts == [7, 0, 0]


def test_fold_leaves_a_row_of_zeros(board: Board) -> None:
    """Law: what a worker stored where it should not have is no concern of its successor's."""
    row = claim(board)
    row.declare(HITS)
    row.counts[1] = row.counts[CELLS_MAX - 1] = 13
    row.beat(1)
    board.fold(row.index)
    successor = claim(board)
    assert successor.index == row.index
    assert successor.declare(OPEN) == 0
    assert not any(successor.counts.tolist())
    assert board.snapshot().workers[0].heartbeat_ns == 0


def test_fold_counts_what_it_loses_when_the_retired_have_no_room(board: Board) -> None:
    crowd = claim(board)
    crowd.declare(SEEN, [(str(n),) for n in range(CELLS_MAX)])
    assert board.fold(crowd.index) == 0
    late = claim(board)
    late.counts[late.declare(HITS)] = 5
    late.counts[late.declare(SEEN, [("0",)])] = 6
    assert board.fold(late.index) == 1
    snapshot = board.snapshot()
    assert HITS.name not in snapshot.families
    assert snapshot.value(SEEN, shard="0", colour="0") == 6
    assert snapshot.workers == ()


def test_fold_wraps_a_counter_rather_than_fail(board: Board) -> None:
    for hits in (2**64 - 1, 3):
        row = claim(board)
        row.counts[row.declare(HITS)] = hits
        board.fold(row.index)
    assert board.snapshot().value(HITS, shard="0") == 2


# With processes that do as they please.


def test_snapshot_counts_everything_once_while_workers_die(board: Board) -> None:
    """Law: whatever a reader's moment, each count is in the snapshot once: in the row of the worker, or in that of
    the retired. So totals never fall, are never below what is surely counted, never above what can be."""
    rounds, hits_each = 150, 200
    supervisor = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    rounds_done = supervisor.declare(OPEN)
    told_to_stop, to_stop = os.pipe()

    def read() -> None:
        os.close(to_stop)
        os.set_blocking(told_to_stop, False)
        last, stopping, snapshots = 0, False, 0
        while not stopping:
            try:
                stopping = os.read(told_to_stop, 1) == b""
            except BlockingIOError:
                stopping = False
            floor = supervisor.counts[rounds_done] * hits_each
            total = int(board.snapshot().value(HITS, shard="0"))
            ceiling = (supervisor.counts[rounds_done] + 1) * hits_each
            assert max(floor, last) <= total <= ceiling, (floor, last, total, ceiling)
            last, snapshots = total, snapshots + 1
        assert last == rounds * hits_each, last
        assert snapshots > rounds

    reader = forked(read)
    os.close(told_to_stop)

    def count() -> None:
        cell = row.declare(HITS)
        for _ in range(hits_each):
            row.counts[cell] += 1

    for incarnation in range(rounds):
        row = claim(board, incarnation=incarnation)
        assert ended(forked(count)) == 0
        board.fold(row.index)
        supervisor.counts[rounds_done] += 1
    os.close(to_stop)
    assert ended(reader) == 0


def test_row_never_shows_half_a_store(board: Board) -> None:
    row = claim(board)
    cell = row.declare(OPEN)
    nothing, everything = 0, 2**64 - 1
    seen: set[int] = set()

    def flicker() -> None:
        while True:
            row.counts[cell] = everything
            row.counts[cell] = nothing

    with running(flicker):
        reads = 0
        while reads < 100_000 or len(seen) < 2:
            seen.add(row.copy()[1][cell])
            reads += 1
    assert seen == {nothing, everything}


def test_board_shrugs_at_a_worker_that_dies_while_it_declares(board: Board) -> None:
    """Law: a declaration is on the board whole or not at all, and a row that was left in the middle of one serves
    the next worker as well as any."""
    metrics = [Metric(f"test_m{n}_total", Kind.COUNTER, "Some.", ("a",)) for n in range(400)]

    def declare(row: Row, worth_a_line: int) -> None:
        for n, metric in enumerate(metrics):
            row.counts[row.declare(metric, [("x" * 100,)])] = 1
            if n == worth_a_line:
                os.write(to_parent, b"\n")
        signal.pause()

    from_child, to_parent = os.pipe()
    for incarnation in range(20):
        row = claim(board, incarnation=incarnation)
        with running(functools.partial(declare, row, 10 * incarnation)):
            assert os.read(from_child, 1) == b"\n"
        assert row.declarations() == tuple(
            Declaration(metric, (("x" * 100,),), n) for n, metric in enumerate(metrics[: len(row.declarations())])
        )
        assert len(row.declarations()) > 10 * incarnation
        board.fold(row.index)
    assert board.snapshot().value(metrics[0], a="x" * 100, shard="0") == 20
    os.close(from_child)
    os.close(to_parent)


def test_snapshot_gives_up_when_the_supervisor_died_in_the_middle_of_a_change(board: Board) -> None:
    def die_within() -> None:
        with board._changing():
            os._exit(0)

    assert ended(forked(die_within)) == 0
    with pytest.raises(SystemFault, match="is the supervisor stopped"):
        board.snapshot()


# The memory.


def test_board_holds_one_descriptor(board: Board) -> None:
    ours = [fd for fd in Path("/proc/self/fd").iterdir() if "shardnet-board" in str(fd.resolve())]
    assert [int(fd.name) for fd in ours] == [board.fd]
    assert not os.get_inheritable(board.fd)


def test_board_costs_only_what_is_used() -> None:
    board = Board.create(shards_max=256)
    for shard in range(256):
        row = claim(board, shard)
        row.counts[row.declare(HITS)] = 1
    board.snapshot()
    used = os.fstat(board.fd).st_blocks * 512
    board.close()
    assert used < 256 * 5 * 4096  # Names and cells, live and retired, and the directory: a page each.


def test_board_cannot_be_truncated_under_its_readers(board: Board) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 0)


def test_board_attaches_by_descriptor(board: Board) -> None:
    row = claim(board, shard=1)
    row.counts[row.declare(HITS)] = 5
    other = Board.attach(os.dup(board.fd))
    row.counts[0] += 1
    assert other.shards_max == 4
    assert other.snapshot().value(HITS, shard="1") == 6
    other.fold(row.index)
    assert board.snapshot().value(HITS, shard="1") == 6
    other.close()


def open_descriptors() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 1_000_000, b"\0" * 4096])
def test_board_does_not_attach_what_is_no_board(content: bytes) -> None:
    fd = os.memfd_create("else")
    os.write(fd, content)
    before = open_descriptors()
    with pytest.raises(SystemFault, match="is no board"):
        Board.attach(fd)
    assert open_descriptors() == before - {str(fd)}


def test_board_does_not_attach_a_closed_descriptor() -> None:
    fd = os.memfd_create("else")
    os.close(fd)
    with pytest.raises(SystemFault, match="is no board"):
        Board.attach(fd)


# Reading while others write.


def test_no_cell_and_no_histogram_is_ever_seen_torn(board: Board) -> None:
    """Law: each cell is read as it was before a store or after it. A writer flips all 64 bits, and a double's sign and
    every digit of it, as fast as it can; snapshots meet the one or the other, and never anything between."""
    row = claim(board)
    count, level, size = row.declare(HITS), row.declare(LEVEL), row.declare(SIZE)

    def flip() -> None:
        while True:
            row.counts[count] = 0xFFFF_FFFF_FFFF_FFFF
            row.values[level] = -1.2345678901234567e-300
            row.counts[size] = 1 << 63
            row.counts[count] = 0
            row.values[level] = 9.87654321e300
            row.counts[size] = 1

    counts, levels, sizes = set(), set(), set()
    with running(flip):
        for _ in range(20_000):
            snapshot = board.snapshot()
            counts.add(snapshot.value(HITS, shard="0"))
            levels.add(snapshot.value(LEVEL, shard="0"))
            sizes.add(snapshot.distribution(SIZE, shard="0").counts[0])
    assert counts <= {0, 0xFFFF_FFFF_FFFF_FFFF}
    assert len(counts) == 2
    assert levels <= {0.0, -1.2345678901234567e-300, 9.87654321e300}
    assert sizes <= {0, 1, 1 << 63}


def test_counters_never_go_back_while_workers_are_folded(board: Board) -> None:
    """Law: a reader that comes in the middle of a fold starts over; it never counts a worker twice, or not at all."""
    done = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    rounds = done.declare(OPEN)

    def live_and_die() -> None:
        for number in range(1, 10**9):
            row = claim(board, incarnation=number)
            cell, size = row.declare(HITS), row.declare(SIZE)
            row.counts[cell] += 1
            row.counts[size + 1] += 1
            board.fold(row.index)
            done.counts[rounds] = number

    with running(live_and_die):
        before = (0.0, 0)
        while done.counts[rounds] < 500:
            at_least = done.counts[rounds]
            snapshot = board.snapshot()
            at_most = done.counts[rounds] + 1
            seen = (snapshot.value(HITS, shard="0"), snapshot.distribution(SIZE, shard="0").count)
            assert seen >= before
            assert all(at_least <= value <= at_most for value in seen)
            before = seen


@pytest.mark.parametrize("metric", [IDLE, BUSY], ids=["ns", "f64"])
def test_counters_of_seconds_never_go_back_by_a_hair_when_a_worker_is_folded(board: Board, metric: Metric) -> None:
    """A sum of doubles depends on the order of its parts; a counter that went from 0.004995151000000001 to 0.004995151
    was a restart from zero for Prometheus."""
    chance = random.Random(7)
    rows = [claim(board, incarnation=number) for number in range(3)]
    before = 0.0
    for number in range(3, 1500):
        for row in rows:
            cell = row.declare(metric) if not row.declarations() else 0
            if metric.cell == "ns":
                row.counts[cell] += chance.randrange(10**7)
            else:
                row.values[cell] += chance.random() * 10 ** chance.randrange(-9, 1)
        for _ in range(2):
            now = board.snapshot().value(metric, shard="0")
            assert now >= before
            before = now
            if chance.random() < 0.3 and len(rows) > 1:
                board.fold(rows.pop(0).index)
        while len(rows) < 3:
            rows.append(claim(board, incarnation=number))
