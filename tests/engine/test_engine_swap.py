"""Batches through the swap buffer: its cells, its limits, and nobody's bytes in another's hands."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator

import pytest

from shardnet.watcher import _sys
from shardnet.watcher.counters import (
    CELLS_ALONE,
    LOOP_TURNS,
    SWAP_CAPACITY_BYTES,
    SWAP_EXHAUSTED,
    SWAP_IN_USE_BYTES,
    SWAP_IN_USE_PEAK_BYTES,
)
from shardnet.watcher.engine import ROOM_MIN_BYTES, Engine
from tests.engine.kit import Bench, open_fds


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def test_batch_hands_everybody_his_own_bytes_and_the_cells_tell_its_size(bench: Bench) -> None:
    cells = bench.engine.cells
    assert cells[SWAP_CAPACITY_BYTES] == 65536
    payloads = {name: name.encode() * 1000 for name in "abcdefgh"}
    endpoints = bench.ready(payloads)
    for endpoint in endpoints.values():
        endpoint.post_read()
    bench.engine.turn(0)
    assert [(who, data) for who, _, data in bench.journal] == list(payloads.items())
    assert (cells[SWAP_IN_USE_BYTES], cells[SWAP_IN_USE_PEAK_BYTES], cells[SWAP_EXHAUSTED]) == (8000, 8000, 0)


def test_in_use_is_the_last_batch_and_peak_the_largest(bench: Bench) -> None:
    cells = bench.engine.cells
    for size, peak in ((300, 300), (1000, 1000), (20, 1000)):
        endpoint = bench.ready({f"{size}": bytes(size)})[f"{size}"]
        endpoint.post_read()
        bench.engine.turn(0)
        assert (cells[SWAP_IN_USE_BYTES], cells[SWAP_IN_USE_PEAK_BYTES]) == (size, peak)
    assert cells[SWAP_EXHAUSTED] == 0


def test_full_buffer_cuts_the_batch_and_the_next_follows_in_the_same_turn() -> None:
    with Bench(swap_size=2 * ROOM_MIN_BYTES) as bench:
        cells = bench.engine.cells
        endpoints = bench.ready({name: name.encode() * (ROOM_MIN_BYTES + 1) for name in "abc"})
        for endpoint in endpoints.values():
            endpoint.post_read()
        bench.engine.turn(0)
        assert bench.order() == "abc"
        for name, endpoint in endpoints.items():
            assert endpoint.received == name.encode() * (ROOM_MIN_BYTES + 1)
        assert cells[SWAP_EXHAUSTED] == 2
        assert cells[SWAP_IN_USE_BYTES] == cells[SWAP_IN_USE_PEAK_BYTES] == ROOM_MIN_BYTES + 1


def test_batch_is_dispatched_before_the_next_is_received() -> None:
    """So a hook of the first batch can still take back a read of the second."""
    with Bench(swap_size=ROOM_MIN_BYTES) as bench:
        endpoints = bench.ready({"a": b"aaa", "b": b"bbb"})
        answers: list[bool] = []
        endpoints["a"].then["received"] = lambda: answers.append(endpoints["b"].withdraw_read())
        for endpoint in endpoints.values():
            endpoint.post_read()
        bench.engine.turn(0)
        bench.settle()
        assert answers == [True]
        assert bench.order() == "a"
        assert endpoints["b"].receive_now(10) == b"bbb"


def test_last_room_is_used_down_to_the_least_useful_size() -> None:
    with Bench(swap_size=3 * ROOM_MIN_BYTES) as bench:
        endpoints = bench.ready({"a": bytes(2 * ROOM_MIN_BYTES), "b": bytes(ROOM_MIN_BYTES + 7), "c": bytes(1)})
        for endpoint in endpoints.values():
            endpoint.read_on()
        bench.engine.turn(0)
        assert [len(data) for _, _, data in bench.journal] == [2 * ROOM_MIN_BYTES, ROOM_MIN_BYTES, 1]
        bench.until(lambda: len(bench.journal) == 4)
        assert bench.journal[-1] == ("b", "received", bytes(7))


@pytest.mark.parametrize("swap_size", [1, 2, 100, ROOM_MIN_BYTES - 1, ROOM_MIN_BYTES + 1])
def test_tiny_swap_buffer_loses_and_mixes_nothing(swap_size: int) -> None:
    with Bench(swap_size) as bench:
        payloads = {name: bytes(range(256))[: 10 * number] for number, name in enumerate("abcd", 1)}
        endpoints = bench.ready(payloads)
        for endpoint in endpoints.values():
            endpoint.read_on()
        bench.until(lambda: sum(len(endpoint.received) for endpoint in endpoints.values()) == 100)
        assert {name: bytes(endpoint.received) for name, endpoint in endpoints.items()} == payloads
        assert bench.engine.cells[SWAP_IN_USE_PEAK_BYTES] <= swap_size
        assert bench.received_bytes == 100


@pytest.mark.parametrize("swap_size", [-1, -65536])
def test_swap_buffer_without_room_is_refused(swap_size: int) -> None:
    before = open_fds()
    with pytest.raises(ValueError, match="swap_size"):
        Engine(swap_size)
    assert open_fds() <= before


def test_bytes_of_a_full_buffer_stay_what_they_were() -> None:
    """The compiled engine hands out the buffer itself, and takes it back when nobody has the bytes any more."""
    with Bench() as bench:
        endpoint, peer = bench.unix()
        kept: list[tuple[bytes, bytes, int]] = []
        for number in range(60):
            size = (65536, 65536, 20_000, 65536, 100, 16_384, 40_000)[number % 7]
            sent = bytes([number]) * size
            peer.sendall(sent)
            endpoint.received.clear()
            bench.journal.clear()
            while len(endpoint.received) < size:
                endpoint.post_read()
                bench.until(lambda: bench.journal)
                data: bytes = bench.journal.pop()[2]
                assert data == sent[: len(data)]
                assert hash(data) == hash(bytes(bytearray(data)))
                if number % 3 == 0:
                    kept.append((data, bytes(bytearray(data)), hash(data)))
            del data
            if number % 10 == 9:
                del kept[::2]
        assert all(data == copy and hash(bytes(bytearray(data))) == digest for data, copy, digest in kept)


def test_bytes_may_be_taken_more_than_once(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    swap = bench.engine.swap
    again: list[bytes] = []

    def take() -> None:
        again.extend((swap.take(0, 50_000), swap.take(10, 20), swap.take(0, 50_000)))

    endpoint.then["received"] = take
    peer.sendall(bytes(range(250)) * 200)
    bench.until(lambda: endpoint.readable)
    endpoint.post_read()
    bench.until(lambda: again)
    assert again == [endpoint.received, endpoint.received[10:30], endpoint.received]


def test_engine_counts_on_when_its_cells_were_released() -> None:
    cells = memoryview(array("Q", [0] * CELLS_ALONE))
    engine = Engine(65536, cells)
    cells.release()
    for _ in range(3):
        engine.turn(0)
    assert engine.cells[LOOP_TURNS] == 3
    engine.close()


def test_bytes_that_were_put_are_taken_as_if_received() -> None:
    """By who has connections without sockets: the test kit."""
    swap = _sys.SwapBuffer(100)
    swap.put(10, b"hello")
    swap.put(95, b"there")
    assert (swap.take(10, 5), swap.take(12, 3), swap.take(95, 5)) == (b"hello", b"llo", b"there")


def test_clock_in_nanoseconds_is_the_monotonic_one() -> None:
    before = time.monotonic_ns()
    now = _sys.monotonic_ns()
    assert before <= now <= time.monotonic_ns()
