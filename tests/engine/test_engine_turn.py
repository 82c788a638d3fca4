"""The turn: fairness, batches through the swap buffer, and what hooks may do to the endpoints around them."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from shardnet.errors import WatcherClosed
from shardnet.watcher import _sys, engine
from shardnet.watcher.counters import (
    ACCEPT_ERROR,
    ACCEPT_OK,
    CELLS_ALONE,
    LOOP_TURNS,
    READ_CANCELLED,
    READ_EOF,
    READ_OK,
    SWAP_CAPACITY_BYTES,
    TIMER_CANCELLED,
    TIMER_OK,
    WRITE_CANCELLED,
    WRITE_OK,
    Op,
    Outcome,
    completions_cell,
)
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES
from shardnet.watcher.engine import ROOM_MIN_BYTES, Engine
from tests.engine.kit import Bench, RecordingEndpoint, fill, raiser, tcp_pair, wait_unread


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


# Fairness.


def test_flooding_peer_gets_one_chunk_a_turn_like_everybody(bench: Bench) -> None:
    flood, flooder = bench.unix("F")
    flooder.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * CHUNK_MAX_BYTES)
    flooder.setblocking(False)
    flooder.send(bytes(4 * CHUNK_MAX_BYTES))
    endpoints = bench.ready(dict.fromkeys("abc", b"small"))
    flood.then["received"] = flood.post_read
    for endpoint in (flood, *endpoints.values()):
        endpoint.post_read()
    bench.engine.turn(0)
    assert bench.order() == "Fabc"
    bench.engine.turn(0)
    assert bench.order() == "FabcF"


def test_endpoints_with_much_to_read_take_turns(bench: Bench) -> None:
    endpoints = bench.ready({"a": bytes(1000), "b": bytes(10), "c": bytes(10)})
    for endpoint in endpoints.values():
        endpoint.then["received"] = partial(endpoint.post_read, 1)
        endpoint.post_read(1)
    for _ in range(10):
        bench.engine.turn(0)
    assert bench.order() == "abc" * 10
    bench.settle(5)
    assert bench.order() == "abc" * 10 + "a" * 5


def test_endpoint_gets_one_chunk_a_turn_although_news_of_it_comes_while_it_waits_for_its_turn() -> None:
    with Bench(swap_size=1) as bench:  # Every read is a batch of its own.
        endpoint, peer = bench.unix()
        endpoint.read_on()
        peer.sendall(b"xx")
        bench.until(lambda: endpoint.received)
        for count in range(2, 20):
            peer.sendall(b"xx")
            bench.engine.turn(0)
            assert len(endpoint.received) == count


def test_flooding_peer_does_not_keep_timers_writes_and_wakes_waiting(bench: Bench) -> None:
    flood = bench.ready({"F": bytes(5000)})["F"]
    flood.then["received"] = lambda: flood.post_read(1)
    flood.post_read(1)
    other, peer = bench.unix("other")
    size = fill(other)
    bench.engine.after(0.0, lambda: bench.journal.append(("timer", "fired", None)))
    peer.setblocking(False)
    received = 0
    while received < size:
        received += len(peer.recv(65536))
        bench.engine.turn(0)
    bench.until(lambda: bench.of("other") == ["sent"])
    assert ("timer", "fired", None) in bench.journal
    assert len(flood.received) < 5000


def test_turn_sees_everybody_although_a_poll_has_a_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sys, "EVENTS_PER_POLL_MAX", 3)
    pairs = [bench.unix(f"{number}") for number in range(20)]
    for endpoint, peer in pairs:
        endpoint.post_read()
        peer.sendall(b"x")
    bench.until(lambda: len(bench.journal) == 20)
    bench.settle()
    assert sorted(who for who, _, _ in bench.journal) == sorted(f"{number}" for number in range(20))


def test_turn_ends_although_many_are_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn once completed a read for every ready endpoint: with thousands of busy peers it took a third of a second,
    and timers, accepts and all of asyncio waited that long."""
    monkeypatch.setattr(engine, "READS_PER_TURN_MAX", 3)
    endpoints = bench.ready(dict.fromkeys("abcdefgh", b"x"))
    for endpoint in endpoints.values():
        endpoint.post_read()
    for order in ("abc", "abcdef", "abcdefgh"):
        bench.engine.turn(None)
        assert bench.order() == order


# Freeing in hooks, and numbers that come back.


def test_hook_that_frees_another_of_its_batch_cancels_its_completion(bench: Bench) -> None:
    endpoints = bench.ready(dict.fromkeys("abc", b"x"))
    endpoints["a"].then["received"] = lambda: bench.engine.free(endpoints["b"])
    for endpoint in endpoints.values():
        endpoint.post_read()
    bench.engine.turn(0)
    bench.settle()
    assert bench.order() == "ac"
    assert bench.counts(Op.READ) == {Outcome.OK: 2, Outcome.CANCELLED: 1}


def test_hook_may_free_itself_and_everybody(bench: Bench) -> None:
    endpoints = bench.ready(dict.fromkeys("abc", b"x"))

    def free_all() -> None:
        for endpoint in endpoints.values():
            bench.engine.free(endpoint)

    for endpoint in endpoints.values():
        endpoint.then["received"] = free_all
        endpoint.post_read()
    bench.engine.turn(0)
    bench.settle()
    assert bench.order() == "a"
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 2}
    assert bench.engine.endpoints() == []


def test_end_and_error_of_a_freed_endpoint_are_cancelled_too(bench: Bench) -> None:
    first = bench.ready({"a": b"x"})["a"]
    ended, peer = bench.unix("ended")
    peer.close()
    bench.until(lambda: ended.readable)
    first.then["received"] = lambda: bench.engine.free(ended)
    first.post_read()
    ended.post_read()
    bench.engine.turn(0)
    assert bench.order() == "a"
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 1}


def succeed(bench: Bench, old: RecordingEndpoint, name: str) -> tuple[RecordingEndpoint, socket.socket]:
    """Free `old`, and add a new TCP endpoint whose descriptor has the same number."""
    ours, theirs = tcp_pair()
    number = old.fd
    bench.engine.free(old)
    os.dup2(ours.fileno(), number)
    ours.close()
    return bench.adopt(socket.socket(fileno=number), name), bench.keep(theirs)


def test_completion_of_a_freed_endpoint_never_reaches_who_inherits_its_number(bench: Bench) -> None:
    endpoints = bench.ready(dict.fromkeys("ab", b"old"))
    number = endpoints["b"].fd
    heirs: list[tuple[RecordingEndpoint, socket.socket]] = []

    def replace() -> None:
        heirs.append(succeed(bench, endpoints["b"], "heir"))
        heirs[0][0].post_read()

    endpoints["a"].then["received"] = replace
    for endpoint in endpoints.values():
        endpoint.post_read()
    bench.engine.turn(0)
    bench.settle()
    [(heir, peer)] = heirs
    assert (heir.fd, heir.readable, heir.reading) == (number, False, True)
    assert bench.order() == "a"
    peer.sendall(b"new")
    bench.until(lambda: bench.of("heir"))
    assert bench.journal[-1] == ("heir", "received", b"new")
    assert bench.counts(Op.READ) == {Outcome.OK: 2, Outcome.CANCELLED: 1}


def test_event_of_a_freed_endpoint_never_reaches_who_inherits_its_number(bench: Bench) -> None:
    """The number changes hands after the poll told of it and before anything is received: by a timer."""
    old, old_peer = bench.tcp("old")
    number = old.fd
    heirs: list[RecordingEndpoint] = []

    def replace() -> None:
        assert old.readable  # The event is resolved.
        heirs.append(succeed(bench, old, "heir")[0])
        heirs[0].post_read()

    old.post_read()
    bench.settle()
    old_peer.sendall(b"for the old one")
    wait_unread(number, 15)
    bench.engine.after(0.0, replace)
    bench.engine.turn(0)
    bench.settle()
    assert (heirs[0].fd, heirs[0].readable) == (number, False)
    assert bench.journal == []


def test_number_that_comes_back_in_a_later_turn_starts_clean(bench: Bench) -> None:
    old = bench.ready({"old": b"unread"})["old"]
    number = old.fd
    old.post_read()
    heir, peer = succeed(bench, old, "heir")  # While the old one stands in the agenda.
    bench.settle()
    assert (heir.fd, heir.readable) == (number, False)
    peer.sendall(b"new")
    heir.post_read()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("heir", "received", b"new")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 1}


def test_number_is_free_for_the_kernel_at_once(bench: Bench) -> None:
    endpoint, _peer = bench.unix()
    number = endpoint.fd
    bench.engine.free(endpoint)
    with pytest.raises(OSError):
        os.fstat(number)
    bench.engine.free(endpoint)


# Exceptions.


@pytest.mark.parametrize("error", [ValueError("hook"), KeyboardInterrupt(), SystemExit(3)])
def test_exception_out_of_a_hook_leaves_the_rest_of_the_batch_for_the_next_turn(
    bench: Bench, error: BaseException
) -> None:
    payloads = {name: name.encode() * 10 for name in "abcd"}
    endpoints = bench.ready(payloads)
    endpoints["b"].then["received"] = raiser(error)
    for endpoint in endpoints.values():
        endpoint.post_read()
    with pytest.raises(type(error)):
        bench.engine.turn(0)
    assert bench.order() == "ab"
    endpoints["a"].post_read()
    bench.engine.turn(None)  # Waits for nothing: there is work left.
    assert [(who, data) for who, _, data in bench.journal] == list(payloads.items())
    bench.settle()
    assert bench.counts(Op.READ) == {Outcome.OK: 4}
    assert endpoints["a"].reading


def test_every_hook_raises_and_every_completion_comes_once() -> None:
    with Bench(swap_size=2 * ROOM_MIN_BYTES) as bench:
        payloads = {name: name.encode() * ROOM_MIN_BYTES for name in "abcdefg"}
        endpoints = bench.ready(payloads)
        for endpoint in endpoints.values():
            endpoint.then["received"] = raiser(KeyboardInterrupt())
            endpoint.post_read()
        for count in range(1, 8):
            with pytest.raises(KeyboardInterrupt):
                bench.engine.turn(0)
            assert len(bench.journal) == count
        bench.settle()
        assert [(who, data) for who, _, data in bench.journal] == list(payloads.items())
        assert bench.counts(Op.READ) == {Outcome.OK: 7}


def test_batch_left_over_by_an_exception_can_still_be_freed(bench: Bench) -> None:
    endpoints = bench.ready(dict.fromkeys("abc", b"x"))
    endpoints["a"].then["received"] = raiser(KeyboardInterrupt())
    for endpoint in endpoints.values():
        endpoint.post_read()
    with pytest.raises(KeyboardInterrupt):
        bench.engine.turn(0)
    bench.engine.free(endpoints["b"])
    bench.settle()
    assert bench.order() == "ac"
    assert bench.counts(Op.READ) == {Outcome.OK: 2, Outcome.CANCELLED: 1}


# Cells.


def test_plain_cell_numbers_are_those_of_the_grid() -> None:
    grid: dict[int, tuple[Op, Outcome]] = {
        READ_OK: (Op.READ, Outcome.OK),
        READ_EOF: (Op.READ, Outcome.EOF),
        READ_CANCELLED: (Op.READ, Outcome.CANCELLED),
        WRITE_OK: (Op.WRITE, Outcome.OK),
        WRITE_CANCELLED: (Op.WRITE, Outcome.CANCELLED),
        ACCEPT_OK: (Op.ACCEPT, Outcome.OK),
        ACCEPT_ERROR: (Op.ACCEPT, Outcome.ERROR),
        TIMER_OK: (Op.TIMER, Outcome.OK),
        TIMER_CANCELLED: (Op.TIMER, Outcome.CANCELLED),
    }
    assert {cell: completions_cell(*place) for cell, place in grid.items()} == {cell: cell for cell in grid}
    every = [completions_cell(op, outcome) for op in Op for outcome in Outcome]
    assert every == list(range(LOOP_TURNS))


def test_engine_counts_in_the_cells_of_its_owner() -> None:
    cells = memoryview(array("Q", [0] * CELLS_ALONE))
    engine = Engine(1234, cells)
    try:
        assert cells[SWAP_CAPACITY_BYTES] == 1234
        engine.turn(0)
        engine.turn(0)
        assert cells[LOOP_TURNS] == 2
        assert engine.cells.obj is cells.obj
    finally:
        engine.close()
    with pytest.raises(WatcherClosed):
        engine.turn(0)


def test_deferred_calls_run_at_the_top_of_the_next_turn_in_order(bench: Bench) -> None:
    calls: list[object] = []
    engine = bench.engine

    def again(number: int) -> None:
        calls.append(number)
        engine.defer(calls.append, number + 1)

    engine.defer(again, 1)
    engine.defer(calls.append, "x")
    assert calls == []
    engine.turn(None)
    assert calls == [1, "x"]
    engine.turn(None)
    assert calls == [1, "x", 2]


def test_deferred_call_that_raises_leaves_the_others(bench: Bench) -> None:
    calls: list[int] = []
    steps: list[Callable[[], object]] = [lambda: calls.append(1), raiser(KeyboardInterrupt()), lambda: calls.append(2)]
    for step in steps:
        bench.engine.defer(step)
    with pytest.raises(KeyboardInterrupt):
        bench.engine.turn(None)
    bench.engine.turn(None)
    assert calls == [1, 2]
