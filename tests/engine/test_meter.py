"""The meter: what turns of a loop add to which cells. Times are given, but for the last tests, which turn an engine."""

from __future__ import annotations

import os
from array import array

import pytest

from shardnet.watcher import _sys, counters
from shardnet.watcher.counters import (
    BATCH_BUCKETS,
    BATCH_SIZE,
    CELLS_ALONE,
    COMPLETION_LATENCY_NS,
    CONNECTIONS_PAUSED,
    LOOP_BUCKETS_NS,
    LOOP_BUSY_NS,
    LOOP_LAG_NS,
    READ_PENDING,
    SEND_QUEUE_BYTES,
    SWAP_SPILL_BYTES,
    TIMER_PENDING,
    TURN_DURATION_NS,
    WRITE_PENDING,
)
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.meter import Meter
from tests.engine.kit import tcp_pair, wait_unread

MS = 1_000_000
MOMENT_NS = 10 * MS
SAMPLE_EVERY = 64
START_NS = 1_000_000 * MS


class Cells:
    """Cells of an engine, read as what they mean."""

    def __init__(self) -> None:
        self.memory = memoryview(array("Q", [0] * CELLS_ALONE))

    def histogram(self, first: int, bounds: tuple[int, ...]) -> dict[float, int]:
        """How many fell into each bucket that is not empty, by its upper bound."""
        counts = self.memory[first : first + len(bounds) + 1].tolist()
        return {bound: count for bound, count in zip((*bounds, float("inf")), counts, strict=True) if count}

    def total(self, first: int, bounds: tuple[int, ...]) -> int:
        return self.memory[first + len(bounds) + 1]

    @property
    def lag(self) -> dict[float, int]:
        return self.histogram(LOOP_LAG_NS, LOOP_BUCKETS_NS)


@pytest.fixture
def cells() -> Cells:
    return Cells()


@pytest.fixture
def meter(cells: Cells) -> Meter:
    """One whose loop has waited for the first time, until START_NS."""
    meter = Meter(cells.memory)
    meter.end_turn(START_NS - MS)
    meter.begin_turn(START_NS)
    return meter


def test_meter_adds_up_how_long_the_loop_was_at_work(cells: Cells, meter: Meter) -> None:
    meter.end_turn(START_NS + 3 * MS)
    meter.begin_turn(START_NS + 90 * MS)
    meter.end_turn(START_NS + 90 * MS + 70_000)
    assert cells.memory[LOOP_BUSY_NS] == 3 * MS + 70_000
    assert cells.histogram(TURN_DURATION_NS, LOOP_BUCKETS_NS) == {5 * MS: 1, 100_000: 1}
    assert cells.total(TURN_DURATION_NS, LOOP_BUCKETS_NS) == 3 * MS + 70_000


def test_meter_counts_nothing_before_the_first_turn(cells: Cells) -> None:
    Meter(cells.memory).end_turn(START_NS)
    assert not any(cells.memory)


def test_lag_is_nothing_while_the_loop_waits(cells: Cells, meter: Meter) -> None:
    meter.end_turn(START_NS)
    meter.begin_turn(START_NS + 995 * MS)
    meter.end_turn(START_NS + 995 * MS)
    assert cells.lag == {50_000: 99}  # The moments are at 9, 19, … ms; that at 999 is still to come.
    assert cells.total(LOOP_LAG_NS, LOOP_BUCKETS_NS) == 0


def test_lag_is_what_is_left_of_the_turn_at_each_moment(cells: Cells, meter: Meter) -> None:
    meter.end_turn(START_NS + 40 * MS)  # The moments are at 9, 19, 29 and 39 ms.
    assert cells.lag == {50 * MS: 1, 25 * MS: 2, 1 * MS: 1}
    assert cells.total(LOOP_LAG_NS, LOOP_BUCKETS_NS) == (31 + 21 + 11 + 1) * MS


@pytest.mark.parametrize("stall_s", [61, 10**6])
def test_lag_of_a_long_stall_is_that_of_its_last_minute(cells: Cells, meter: Meter, stall_s: int) -> None:
    """A machine that slept for days must not be followed by a loop over all the moments that it missed."""
    meter.end_turn(START_NS + stall_s * 1000 * MS)
    moments = 60 * 1000 * MS // MOMENT_NS + 1
    assert sum(cells.lag.values()) == moments
    assert cells.total(LOOP_LAG_NS, LOOP_BUCKETS_NS) == 30 * 1000 * MS * moments


def test_lag_goes_on_where_it_was(cells: Cells, meter: Meter) -> None:
    now_ns = START_NS
    for _ in range(1000):  # Turns of 1 ms, with waits of 2 ms between.
        meter.end_turn(now_ns := now_ns + MS)
        meter.begin_turn(now_ns := now_ns + 2 * MS)
    assert cells.lag == {50_000: 199, 1 * MS: 100}


def test_batches_are_counted_by_their_size(cells: Cells, meter: Meter) -> None:
    for size in (0, 1, 2, 3, 256, 300):
        meter.note_batch(size)
    assert cells.histogram(BATCH_SIZE, BATCH_BUCKETS) == {1: 1, 2: 1, 4: 1, 256: 1, float("inf"): 1}
    assert cells.total(BATCH_SIZE, BATCH_BUCKETS) == 562


def test_latency_is_looked_at_for_one_read_of_many(cells: Cells, meter: Meter) -> None:
    for _ in range(3 * SAMPLE_EVERY - 1):
        meter.note_read()
    assert sum(cells.histogram(COMPLETION_LATENCY_NS, LOOP_BUCKETS_NS).values()) == 2


def test_latency_counts_from_when_the_turn_began(cells: Cells, meter: Meter) -> None:
    meter.sample(START_NS + 2 * MS)
    assert cells.histogram(COMPLETION_LATENCY_NS, LOOP_BUCKETS_NS) == {2_500_000: 1}


class Told:
    """An overseer that keeps what it is told."""

    def __init__(self) -> None:
        self.watched = 0
        self.slow: list[int] = []

    def watch(self) -> None:
        self.watched += 1

    def tell(self, busy_ns: int) -> None:
        self.slow.append(busy_ns)


def test_overseer_is_told_of_turns_that_take_long(meter: Meter) -> None:
    meter.overseer, meter.slow_ns = told, _ = Told(), 5 * MS
    meter.end_turn(START_NS + 5 * MS)
    meter.begin_turn(START_NS + 10 * MS)
    meter.end_turn(START_NS + 15 * MS + 1)
    assert told.slow == [5 * MS + 1]


def test_overseer_is_asked_to_watch_only_while_it_does_not(meter: Meter) -> None:
    meter.overseer = told = Told()
    meter.begin_turn(START_NS + MS)
    assert told.watched == 0
    meter.overseen = False
    meter.begin_turn(START_NS + 2 * MS)
    assert told.watched == 1


# With an engine.


def test_engine_counts_what_is_pending(cells: Cells) -> None:
    engine = Engine(65536, cells.memory)
    ours, theirs = tcp_pair(4096)
    ours.setblocking(False)
    endpoint = HookEndpoint(engine.agenda, os.dup(ours.fileno()))
    with ours, theirs:
        engine.add(endpoint)
        timer = engine.after(60.0, lambda: None)
        endpoint.post_read()
        endpoint.post_read(5)
        engine.turn(0)
        assert (cells.memory[READ_PENDING], cells.memory[TIMER_PENDING]) == (1, 1)
        assert not endpoint.submit_write(bytes(1 << 22))
        assert not endpoint.submit_write(b"more")
        assert (cells.memory[WRITE_PENDING], cells.memory[CONNECTIONS_PAUSED]) == (2, 1)
        assert cells.memory[SEND_QUEUE_BYTES] == endpoint.unsent_bytes > 0
        theirs.settimeout(5)
        while endpoint.unsent_bytes:
            assert theirs.recv(1 << 16)
            engine.turn(0)
        assert not cells.memory[SEND_QUEUE_BYTES]
        assert not cells.memory[WRITE_PENDING]
        assert not cells.memory[CONNECTIONS_PAUSED]
        assert not endpoint.submit_write(bytes(1 << 22))
        engine.cancel(timer)
        engine.free(endpoint)
        engine.turn(0)
    for cell in (READ_PENDING, WRITE_PENDING, TIMER_PENDING, SEND_QUEUE_BYTES, CONNECTIONS_PAUSED):
        assert cells.memory[cell] == 0
    engine.close()


def test_engine_counts_what_is_received_past_the_swap_buffer(cells: Cells) -> None:
    engine = Engine(65536, cells.memory)
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    endpoint = HookEndpoint(engine.agenda, os.dup(ours.fileno()))
    with ours, theirs:
        engine.add(endpoint)
        theirs.sendall(b"x" * 10)
        wait_unread(endpoint.fd, 10)
        engine.turn(0)
        assert endpoint.receive_now(100) == b"x" * 10
        engine.free(endpoint)
    assert cells.memory[SWAP_SPILL_BYTES] == 10
    engine.close()


def test_engine_measures_its_turns_for_who_wants_it(cells: Cells) -> None:
    engine = Engine(65536, cells.memory)
    engine.turn(0)
    assert not cells.memory[LOOP_BUSY_NS]
    engine.meter = Meter(engine.cells)
    for _ in range(10):
        engine.turn(0)
    assert cells.memory[LOOP_BUSY_NS]
    assert sum(cells.histogram(TURN_DURATION_NS, LOOP_BUCKETS_NS).values()) == 9
    engine.close()


def test_engine_tells_the_meter_of_batches_and_reads(cells: Cells) -> None:
    engine = Engine(65536, cells.memory)
    engine.meter = Meter(engine.cells)
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    endpoint = HookEndpoint(engine.agenda, os.dup(ours.fileno()))
    with ours, theirs:
        engine.add(endpoint)
        for _ in range(SAMPLE_EVERY):
            theirs.sendall(b"x")
            wait_unread(endpoint.fd, 1)
            endpoint.post_read()
            engine.turn(0)
            assert not endpoint.reading
        engine.free(endpoint)
    assert cells.histogram(BATCH_SIZE, BATCH_BUCKETS) == {1: SAMPLE_EVERY}
    assert sum(cells.histogram(COMPLETION_LATENCY_NS, LOOP_BUCKETS_NS).values()) == 1
    engine.close()


def test_cells_of_the_meter_do_not_overlap() -> None:
    loop, batches = len(LOOP_BUCKETS_NS) + 2, len(BATCH_BUCKETS) + 2
    assert TURN_DURATION_NS == LOOP_BUSY_NS + 1
    assert TURN_DURATION_NS + loop == LOOP_LAG_NS
    assert LOOP_LAG_NS + loop == BATCH_SIZE
    assert BATCH_SIZE + batches == COMPLETION_LATENCY_NS
    assert COMPLETION_LATENCY_NS + loop == counters.CELLS_OWN


@pytest.mark.interpreted
def test_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    bounds = _sys.values_of(memoryview(array("d", [1.0, 2.0])))
    assert [_sys.bucket_of(bounds, 2, value) for value in (-5.0, 1.0, 1.5, 2.0, 2.1)] == [0, 0, 1, 1, 2]
