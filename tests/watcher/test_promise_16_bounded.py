"""Promise 16: a call hands out 4096 completions at most, and nothing grows that nobody has asked for."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from collections.abc import Callable

import pytest

from shardnet.watcher import Channel, ConnectionFreed, Op
from tests.engine.kit import open_fds, wait_unread
from tests.watcher.kit import Bench

BATCH_MAX = 4096


def freed_reads(bench: Bench, count: int) -> None:
    ours, _ = bench.tcp()
    for index in range(count):
        bench.watcher.read(ours, ctx=index)
    bench.watcher.free(ours)


def writes(bench: Bench, count: int) -> None:
    ours, _ = bench.tcp()
    for index in range(count):
        bench.watcher.write(ours, b"x", ctx=index)


def swap_reads(bench: Bench, count: int) -> None:
    ours, theirs = bench.unix()
    number = ours.fileno()
    for index in range(count):
        theirs.sendall(b"x")
        wait_unread(number, 1)
        bench.watcher.read(ours, ctx=index)


def ends(bench: Bench, count: int) -> None:
    ours, theirs = bench.unix()
    theirs.close()
    for index in range(count):
        bench.watcher.read(ours, ctx=index)


def sleeps(bench: Bench, count: int) -> None:
    for index in range(count):
        bench.watcher.sleep(0, ctx=index)


@pytest.mark.parametrize("submit", [freed_reads, writes, swap_reads, ends, sleeps])
def test_wait_io_hands_out_a_batch_and_then_the_rest_in_order(
    bench: Bench, submit: Callable[[Bench, int], None]
) -> None:
    submit(bench, 5000)
    first = bench.watcher.wait_io()
    said = bench.watcher.statistics()
    assert said.waiting + said.pending == 5000 - BATCH_MAX  # Of what is due, a wait deals with one batch as well.
    second = bench.watcher.wait_io()  # Which waits for nothing.
    assert [len(first), len(second)] == [BATCH_MAX, 5000 - BATCH_MAX]
    assert [completion.ctx for completion in first + second] == list(range(5000))
    bench.none()
    assert bench.watcher.statistics().waiting == 0


@pytest.mark.parametrize(("count", "sizes"), [(4095, [4095]), (4096, [4096]), (4097, [4096, 1]), (8192, [4096] * 2)])
def test_wait_io_hands_out_exactly_what_there_is(bench: Bench, count: int, sizes: list[int]) -> None:
    freed_reads(bench, count)
    assert [len(bench.watcher.wait_io(0)) for _ in sizes] == sizes
    bench.none()


def test_completions_that_come_meanwhile_stand_behind_those_that_wait(bench: Bench) -> None:
    freed_reads(bench, BATCH_MAX + 10)
    assert len(bench.watcher.wait_io()) == BATCH_MAX
    ours, _ = bench.tcp()
    bench.watcher.write(ours, b"x", ctx="new")
    assert [completion.ctx for completion in bench.watcher.wait_io()] == [*range(BATCH_MAX, BATCH_MAX + 10), "new"]


def test_consumer_that_stays_away_for_long_loses_nothing(bench: Bench) -> None:
    """Nothing blocks, whatever waits: gaio's results channel is full at 16384."""
    ours, theirs = bench.tcp()
    freed_reads(bench, 20000)
    for index in range(2000):
        bench.watcher.write(ours, b"y", ctx=index)
    theirs.sendall(b"hello")
    assert len(theirs.recv(2000, socket.MSG_WAITALL)) == 2000
    assert bench.watcher.statistics().waiting == 22000
    answers = bench.collect(22000)
    assert [answer.ctx for answer in answers] == [*range(20000), *range(2000)]
    assert {type(answer.error) for answer in answers[:20000]} == {ConnectionFreed}
    assert {answer.error for answer in answers[20000:]} == {None}
    bench.watcher.read(ours)
    assert bench.one().data == b"hello"


def test_connections_are_accepted_only_as_they_are_asked_for(bench: Bench) -> None:
    """The others wait in the backlog, and cost no descriptor."""
    listener = bench.listener()
    clients = [bench.keep(socket.create_connection(listener.getsockname())) for _ in range(40)]
    before = open_fds()
    bench.watcher.accept(listener, ctx="only")
    answer = bench.one()
    bench.none()
    assert len(open_fds() - before) == 1
    assert isinstance(answer.conn, Channel)
    assert answer.conn.peer == clients[0].getsockname()
    bench.watcher.free(answer.conn)


# Memory. What grows by one reference for each round, grows by more than this.
BYTES_PER_ROUND = 16


def growth_of(rounds: int, do_one: Callable[[], object]) -> int:
    """How much more memory is in use after `rounds` of it, and some to warm up."""
    for _ in range(100):
        do_one()
    tracemalloc.start()
    try:
        do_one()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(rounds):
            do_one()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def test_memory_does_not_grow_with_bytes_that_nobody_reads(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours)
    theirs.sendall(b"x")
    bench.one()

    def receive_nothing() -> None:
        theirs.sendall(b"x")
        wait_unread(number, 1)
        assert bench.watcher.wait_io(0) == []

    rounds = 500
    assert growth_of(rounds, receive_nothing) < rounds * BYTES_PER_ROUND
    assert bench.watcher.statistics().received_bytes == 1


def test_memory_does_not_grow_with_connections_that_nobody_accepts(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener, timeout=0)
    bench.one()

    def come_and_go() -> None:
        with socket.create_connection(listener.getsockname()):
            assert bench.watcher.wait_io(0) == []
        listener.accept()[0].close()

    rounds = 500
    assert growth_of(rounds, come_and_go) < rounds * BYTES_PER_ROUND


def test_memory_does_not_grow_with_operations_that_are_complete(bench: Bench) -> None:
    """Those with a deadline, too, whose timers have come to nothing."""
    ours, theirs = bench.unix()

    def echo() -> None:
        bench.watcher.read(ours, timeout=3600)
        theirs.sendall(b"ping")
        (completion,) = bench.watcher.wait_io()
        bench.watcher.write(ours, completion.data, timeout=3600)
        bench.watcher.wait_io()
        assert theirs.recv(4) == b"ping"

    rounds = 500
    assert growth_of(rounds, echo) < rounds * BYTES_PER_ROUND
    said = bench.watcher.statistics()
    assert (said.deadlines, said.pending, said.waiting, said.swap_in_use_bytes) == (0, 0, 0, 0)


def test_memory_does_not_grow_with_deadlines_that_came_to_nothing(bench: Bench) -> None:
    """Also while an earlier one stands before them."""
    ours, theirs = bench.unix()
    bench.watcher.sleep(1800)

    def receive() -> None:
        bench.watcher.read(ours, timeout=3600)
        theirs.sendall(b"x")
        (completion,) = bench.watcher.wait_io()
        assert completion.size == 1

    rounds = 2000  # Many, as some may be carried along.
    assert growth_of(rounds, receive) < rounds * BYTES_PER_ROUND
    assert bench.watcher.statistics().deadlines == 1


def test_memory_does_not_grow_with_connections_that_are_gone(bench: Bench) -> None:
    listener = bench.listener()

    def come_and_go() -> None:
        bench.watcher.connect(listener.getsockname(), timeout=3600)
        bench.watcher.accept(listener, timeout=3600)
        conns = [answer.conn for answer in bench.collect(2)]
        for conn in conns:
            assert isinstance(conn, Channel)
            bench.watcher.read(conn, timeout=3600)
            bench.watcher.free(conn)
        bench.collect(2)

    rounds = 300
    assert growth_of(rounds, come_and_go) < rounds * BYTES_PER_ROUND
    assert bench.watcher.statistics().connections == 0


def test_memory_does_not_grow_with_waits_for_nothing_and_wakes(bench: Bench) -> None:
    def wake_and_wait() -> None:
        for _ in range(5):
            bench.watcher.wake()
        assert bench.watcher.wait_io(0) == []
        assert bench.watcher.wait_io(0) == []

    rounds = 500
    assert growth_of(rounds, wake_and_wait) < rounds * BYTES_PER_ROUND


def test_wake_is_remembered_once_however_often_it_came(bench: Bench) -> None:
    for _ in range(20000):
        bench.watcher.wake()
    assert bench.watcher.wait_io() == []
    bench.watcher.sleep(0.001)
    (completion,) = bench.watcher.wait_io()
    assert completion.op is Op.TIMER
