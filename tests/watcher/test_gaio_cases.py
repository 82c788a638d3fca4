"""The test cases of gaio (the proactor for Go whose contract the watcher follows), one by one, by what they check."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from shardnet.watcher import ConnectionBroken, ConnectionFreed, DeadlineExceeded, Op, Watcher, WatcherClosed
from tests.engine.kit import receive_all, receive_exactly
from tests.watcher.kit import Bench

# Every test case of gaio's, and which of ours says the same.
CASES: Final = {
    "TestEchoTiny": "test_gaio_cases::test_echo_through_one_byte_buffers_has_every_byte",
    "TestEchoHuge": "test_gaio_scale::test_huge_echo_has_every_byte",
    "TestBidirectionWatcher": "test_gaio_cases::test_both_directions_of_a_connection_go_at_once",
    "TestReadFull": "test_gaio_scale::test_read_full_of_much_completes_once_while_as_much_is_written",
    "TestDeadline": "test_gaio_cases::test_deadline_ends_a_read_of_silence_and_a_write_that_nobody_reads",
    "TestEmptyBuffer": "test_gaio_cases::test_empty_buffer_is_refused",
    "TestUnsupportedConn": "test_gaio_cases::test_what_is_no_stream_socket_is_refused",
    "TestSocketClose": "test_gaio_cases::test_read_after_free_says_that_the_connection_was_freed",
    "TestWriteOnClosedConn": "test_gaio_cases::test_operation_on_a_socket_that_its_user_closed_gets_ebadf",
    "Test1k": "test_gaio_scale::test_crowd_has_back_what_it_sends[1k]",
    "Test2k": "test_gaio_scale::test_crowd_has_back_what_it_sends[2k]",
    "Test4k": "test_gaio_scale::test_crowd_has_back_what_it_sends[4k]",
    "Test8k": "test_gaio_scale::test_crowd_has_back_what_it_sends[8k]",
    "Test10k": "test_gaio_scale::test_crowd_has_back_what_it_sends[10k]",
    "Test12k": "test_gaio_scale::test_crowd_has_back_what_it_sends[12k]",
    "Test1kTiny": "test_gaio_scale::test_crowd_has_back_what_it_sends_when_that_is_tiny[1k]",
    "Test2kTiny": "test_gaio_scale::test_crowd_has_back_what_it_sends_when_that_is_tiny[2k]",
    "Test4kTiny": "test_gaio_scale::test_crowd_has_back_what_it_sends_when_that_is_tiny[4k]",
    "Test10kRandomSwapBuffer": "test_gaio_scale::test_crowd_has_back_what_it_sends_when_buffers_are_mixed",
    "Test10kCompleteSwapBuffer": "test_gaio_scale::test_crowd_never_exhausts_a_swap_buffer_that_holds_all_it_sends",
    "TestDeadline1k": "test_gaio_scale::test_silent_crowd_gets_a_deadline_each[1k]",
    "TestDeadline2k": "test_gaio_scale::test_silent_crowd_gets_a_deadline_each[2k]",
    "TestDeadline4k": "test_gaio_scale::test_silent_crowd_gets_a_deadline_each[4k]",
    "TestDeadline8k": "test_gaio_scale::test_silent_crowd_gets_a_deadline_each[8k]",
    "TestGC": "test_gaio_scale::test_dropped_connections_are_closed_and_counted",
    "TestDoubleClose": "test_gaio_cases::test_watcher_closes_twice",
    "TestWaitIOAfterClose": "test_gaio_cases::test_wait_io_after_close_says_so",
    "TestReadWriteAfterClose": "test_gaio_cases::test_operation_after_close_is_refused",
    "TestContextPassing": "test_gaio_cases::test_context_comes_back_as_the_same_object",
    "TestSetPollerAffinityError": "test_gaio_cases::test_affinity_to_no_cpu_is_refused[above]",
    "TestSetLoopAffinityError": "test_gaio_cases::test_affinity_to_no_cpu_is_refused[far-above]",
    "TestSetAffinityInvalidCPU": "test_gaio_cases::test_affinity_to_no_cpu_is_refused[negative]",
    "TestSetLoopAffinityAfterClose": "test_gaio_cases::test_affinity_is_the_threads_and_outlives_the_watcher",
    "TestFree": "test_gaio_cases::test_freed_connection_is_closed",
    "TestTimedHeapOrderAndIndex": "test_gaio_cases::test_timers_fire_in_the_order_of_their_deadlines",
    "TestTimedHeapSwapUpdatesIndex": "test_gaio_cases::test_deadline_that_is_cancelled_leaves_the_others_in_order",
}
MEBIBYTE: Final = bytes(1024 * 1024)


@pytest.fixture
def pinning() -> Iterator[None]:
    """Let the test pin its thread."""
    cpus = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cpus)


def test_every_case_of_gaio_has_a_test_here() -> None:
    """36 there are, and the table names each once and no test that does not exist."""
    assert len(CASES) == 36
    assert len(set(CASES.values())) == len(CASES)
    for case in CASES.values():
        found = re.fullmatch(r"(\w+)::(\w+)(?:\[(.+)\])?", case)
        assert found, case
        test = getattr(importlib.import_module(f"tests.watcher.{found[1]}"), found[2])
        assert {"bench", "engine"} & set(inspect.signature(test).parameters), "it runs on every engine"
        marks = getattr(test, "pytestmark", [])
        ids = [param.id for mark in marks if mark.name == "parametrize" for param in mark.args[1]]
        assert found[3] in (ids or [None]), case


def test_echo_through_one_byte_buffers_has_every_byte(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    text = b"hello world"
    theirs.sendall(text)
    buffer = bytearray(1)
    for byte in text:
        bench.watcher.read(ours, buffer)
        answer = bench.one()
        assert (answer.data, answer.completion.buffer) == (bytes([byte]), buffer)
        bench.watcher.write(ours, buffer)
        assert bench.one()[:4] == (Op.WRITE, None, ours, bytes([byte]))
    assert receive_exactly(theirs, len(text)) == text
    bench.none()


def test_both_directions_of_a_connection_go_at_once(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, ctx="swap")
    bench.watcher.write(ours, b"hello world")
    assert bench.one()[:4] == (Op.WRITE, None, ours, b"hello world")
    buffer = bytearray(11)
    bench.watcher.read(ours, buffer, ctx="own")
    bench.none()
    theirs.sendall(receive_exactly(theirs, 11))
    swap = bench.one()
    assert (swap.op, swap.ctx, swap.data, swap.completion.is_swap_buffer) == (Op.READ, "swap", b"hello world", True)
    theirs.sendall(b"once again!")
    own = bench.one()
    assert (own.op, own.ctx, own.data, own.completion.is_swap_buffer) == (Op.READ, "own", b"once again!", False)
    assert buffer == b"once again!"


def test_deadline_ends_a_read_of_silence_and_a_write_that_nobody_reads(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    bench.watcher.read(ours, timeout=0.05)
    answer = bench.one()
    assert (answer.op, answer.size, type(answer.error)) == (Op.READ, 0, DeadlineExceeded)
    for _ in range(64):  # More than any socket buffers take.
        bench.watcher.write(ours, MEBIBYTE, timeout=0.05)
        answer = bench.one()
        assert answer.op is Op.WRITE
        if answer.error is not None:
            break
        assert answer.size == len(MEBIBYTE)
    assert isinstance(answer.error, DeadlineExceeded)
    assert answer.size < len(MEBIBYTE)
    bench.none()
    # gaio asks once more here, and takes what comes: it would be taken for the rest of what stopped.
    bench.watcher.write(ours, b"x", timeout=0.05)
    expected = ConnectionBroken if answer.size else DeadlineExceeded
    assert type(bench.one().error) is expected


def test_empty_buffer_is_refused(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"x")
    for timeout in (None, 0, 1.0):
        for empty in (b"", bytearray(), memoryview(b"abc")[3:]):
            with pytest.raises(ValueError, match="empty"):
                bench.watcher.write(ours, empty, timeout=timeout)
        with pytest.raises(ValueError, match="empty"):
            bench.watcher.read(ours, bytearray(), timeout=timeout)
        with pytest.raises(ValueError, match="empty"):
            bench.watcher.read_full(ours, bytearray(), timeout=timeout)
    assert bench.watcher.statistics().submitted == 0
    bench.none()
    # Refusing took nothing over, and no end of the stream was made of it.
    assert ours.recv(10) == b"x"


def test_what_is_no_stream_socket_is_refused(bench: Bench) -> None:
    datagrams = bench.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    pipe = os.pipe()
    with os.fdopen(pipe[0], "rb") as reader, os.fdopen(pipe[1], "wb") as writer:
        odd: list[Any] = [None, object(), pipe[0], reader, writer, datagrams, "127.0.0.1"]
        for conn in odd:
            with pytest.raises(TypeError):
                bench.watcher.read(conn)
            with pytest.raises(TypeError):
                bench.watcher.read_full(conn, bytearray(1))
            with pytest.raises(TypeError):
                bench.watcher.write(conn, b"x")
            with pytest.raises(TypeError):
                bench.watcher.accept(conn)
    assert bench.watcher.statistics().submitted == 0
    assert datagrams.fileno() >= 0


def test_read_after_free_says_that_the_connection_was_freed(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.write(ours, b"hello world")
    assert bench.one().error is None
    bench.watcher.free(ours)
    bench.watcher.read(ours, bytearray(11), ctx="late")
    answer = bench.one()
    assert (answer.op, answer.ctx, answer.conn, answer.size) == (Op.READ, "late", ours, 0)
    assert type(answer.error) is ConnectionFreed
    assert receive_all(theirs) == b"hello world"


def test_operation_on_a_socket_that_its_user_closed_gets_ebadf(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    ours.close()
    bench.watcher.write(ours, b"hello world", ctx=1)
    bench.watcher.read(ours, ctx=2)
    answers = bench.collect(2)
    assert [(answer.op, answer.ctx, answer.conn, answer.size) for answer in answers] == [
        (Op.WRITE, 1, ours, 0),
        (Op.READ, 2, ours, 0),
    ]
    assert [getattr(answer.error, "errno", None) for answer in answers] == [9, 9]


def test_watcher_closes_twice(bench: Bench) -> None:
    assert not bench.watcher.closed
    bench.watcher.close()
    bench.watcher.close()
    assert bench.watcher.closed


def test_wait_io_after_close_says_so(bench: Bench) -> None:
    bench.watcher.close()
    for timeout in (None, 0, 1.0):
        with pytest.raises(WatcherClosed):
            bench.watcher.wait_io(timeout)


def test_operation_after_close_is_refused(bench: Bench) -> None:
    watcher = bench.watcher
    ours, theirs = bench.tcp()
    listener = bench.listener()
    closed, _ = bench.tcp()
    closed.close()
    watcher.close()
    for conn in (ours, closed):
        with pytest.raises(WatcherClosed):
            watcher.read(conn, bytearray(1))
        with pytest.raises(WatcherClosed):
            watcher.read_full(conn, bytearray(1))
        with pytest.raises(WatcherClosed):
            watcher.write(conn, b"x")
    with pytest.raises(WatcherClosed):
        watcher.accept(listener)
    with pytest.raises(WatcherClosed):
        watcher.connect(listener.getsockname())
    with pytest.raises(WatcherClosed):
        watcher.sleep(0)
    assert watcher.statistics().submitted == 0
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"


def test_context_comes_back_as_the_same_object(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"abc")
    listener = bench.listener()
    watcher = bench.watcher
    submits: list[Callable[[object], None]] = [
        lambda ctx: watcher.write(ours, b"hello", ctx=ctx),
        lambda ctx: watcher.read(ours, bytearray(1), ctx=ctx),
        lambda ctx: watcher.read_full(ours, bytearray(2), ctx=ctx),
        lambda ctx: watcher.read(ours, ctx=ctx, timeout=0),
        lambda ctx: watcher.accept(listener, ctx=ctx, timeout=0),
        lambda ctx: watcher.sleep(0, ctx=ctx),
    ]
    for submit in submits:
        ctx = object()
        submit(ctx)
        assert bench.one().ctx is ctx
    watcher.write(ours, b"hello")
    assert bench.one().ctx is None


@pytest.mark.usefixtures("pinning")
@pytest.mark.parametrize(
    "beyond",
    [pytest.param(None, id="negative"), pytest.param(0, id="above"), pytest.param(100, id="far-above")],
)
def test_affinity_to_no_cpu_is_refused(bench: Bench, beyond: int | None) -> None:
    cpus = os.sched_getaffinity(0)
    count = os.cpu_count()
    assert count is not None
    with pytest.raises(ValueError, match="CPU"):
        bench.watcher.set_affinity(-1 if beyond is None else count + beyond)
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.usefixtures("pinning")
def test_affinity_is_the_threads_and_outlives_the_watcher(bench: Bench) -> None:
    """gaio refuses it once closed, since its loop, which is a thread of its own, is gone. Here it is the caller's."""
    cpu = max(os.sched_getaffinity(0))
    bench.watcher.set_affinity(cpu)
    assert os.sched_getaffinity(0) == {cpu}
    bench.watcher.close()
    assert os.sched_getaffinity(0) == {cpu}
    with pytest.raises(ValueError, match="CPU"):
        bench.watcher.set_affinity(-1)


def test_freed_connection_is_closed(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.write(ours, b"hello")
    assert bench.one().error is None
    bench.watcher.free(ours)
    assert receive_all(theirs) == b"hello"  # And then the end of the stream: nobody holds it any more.
    with pytest.raises(OSError, match="Bad file descriptor"):
        ours.recv(10)
    bench.watcher.write(ours, b"more")
    assert type(bench.one().error) is ConnectionFreed
    assert bench.watcher.statistics().connections == 0


def due_bounds(watcher: Watcher, seconds: float, ctx: int) -> tuple[float, float]:
    """Sleep; when that can be over at the earliest, and must be at the latest, however slow this thread is."""
    before_s = time.monotonic()
    watcher.sleep(seconds, ctx=ctx)
    return before_s + seconds, time.monotonic() + seconds


def assert_in_order(contexts: list[Any], bounds: dict[int, tuple[float, float]]) -> None:
    latest_s = float("inf")
    for ctx in reversed(contexts):
        latest_s = min(latest_s, bounds[ctx][1])
        assert bounds[ctx][0] <= latest_s, contexts


def test_timers_fire_in_the_order_of_their_deadlines(bench: Bench) -> None:
    chance = random.Random(1)
    bounds = {ctx: due_bounds(bench.watcher, chance.random() / 10, ctx) for ctx in range(300)}
    fired = [answer.ctx for answer in bench.collect(300)]
    assert sorted(fired) == list(range(300))
    assert_in_order(fired, bounds)
    bench.none()


def test_deadline_that_is_cancelled_leaves_the_others_in_order(bench: Bench) -> None:
    """Each is found and taken out wherever in the queue it stands: two of three are, because their bytes arrive."""
    chance = random.Random(2)
    watcher = bench.watcher
    bounds: dict[int, tuple[float, float]] = {}
    peers = []
    for ctx in range(60):
        seconds = chance.random() / 10
        before_s = time.monotonic()
        if ctx % 3:
            ours, theirs = bench.unix()
            watcher.read(ours, ctx=ctx, timeout=10 + seconds)
            peers.append(theirs)
            bounds[ctx] = (before_s + 10 + seconds, before_s + 20 + seconds)
        else:
            bounds[ctx] = due_bounds(watcher, seconds, ctx)
    for theirs in peers:
        theirs.sendall(b"x")
    answers = bench.collect(60)
    assert watcher.statistics().deadlines == 0
    assert {answer.ctx for answer in answers if answer.op is Op.READ} == {ctx for ctx in bounds if ctx % 3}
    assert all(answer.error is None for answer in answers)
    assert_in_order([answer.ctx for answer in answers if answer.op is Op.TIMER], bounds)
    bench.none()
