"""Per connection and direction, operations start and complete in the order in which they were asked."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardnet.watcher import ConnectionFreed, DeadlineExceeded, Op, WatcherClosed
from tests.engine.kit import receive_exactly
from tests.watcher.kit import Answer, Bench
from tests.watcher.promise_kit import TIMEOUT_S, full, stop_time

LETTERS = bytes(range(ord("a"), ord("z") + 1))
COUNT = 60  # More than one pass over a queue may do.


def orders(answers: list[Answer]) -> list[object]:
    return [answer.ctx for answer in answers]


# Reads.


def test_reads_complete_in_order_whatever_they_read_into(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(5), ctx=0)
    bench.watcher.read(ours, bytearray(3), ctx=1)
    bench.watcher.read_full(ours, bytearray(4), ctx=2)
    bench.watcher.read(ours, memoryview(bytearray(9))[:2], ctx=3)
    bench.watcher.read(ours, ctx=4)
    theirs.sendall(LETTERS)
    answers = bench.collect(5)
    assert orders(answers) == [0, 1, 2, 3, 4]
    assert [answer.data for answer in answers] == [b"abcde", b"fgh", b"ijkl", b"mn", LETTERS[14:]]


@pytest.mark.parametrize("connect", ["tcp", "unix"])
def test_reads_complete_in_order_when_the_bytes_come_one_by_one(bench: Bench, connect: str) -> None:
    ours, theirs = bench.tcp() if connect == "tcp" else bench.unix()
    for index in range(COUNT):
        bench.watcher.read_full(ours, bytearray(1 + index % 3), ctx=index)
    answers: list[Answer] = []
    sent = b""
    while len(answers) < COUNT:
        byte = LETTERS[len(sent) % 26 :][:1]
        theirs.sendall(byte)
        sent += byte
        answers += [Answer(c.op, c.ctx, c.conn, bytes(c.data), c.error, c) for c in bench.watcher.wait_io(0)]
    assert orders(answers) == list(range(COUNT))
    data = b"".join(answer.data for answer in answers)
    assert data == sent[: len(data)]


def test_reads_complete_in_order_when_there_are_bytes_for_all_of_many(bench: Bench) -> None:
    ours, theirs = bench.unix()
    for index in range(COUNT):
        bench.watcher.read(ours, bytearray(1), ctx=index)
    data = bytes(index % 256 for index in range(COUNT))
    theirs.sendall(data)
    answers = bench.collect(COUNT)
    assert orders(answers) == list(range(COUNT))
    assert b"".join(answer.data for answer in answers) == data


def test_read_gets_no_byte_before_the_full_read_ahead_of_it_has_all(bench: Bench) -> None:
    ours, theirs = bench.unix()
    first, second = bytearray(10), bytearray(10)
    bench.watcher.read_full(ours, first, ctx=0)
    bench.watcher.read(ours, second, ctx=1)
    theirs.sendall(b"123456789")
    bench.none()
    assert first == b"123456789\0"
    assert second == bytes(10)
    theirs.sendall(b"0abc")
    assert [(answer.ctx, answer.data) for answer in bench.collect(2)] == [(0, b"1234567890"), (1, b"abc")]


def test_reads_end_in_order_when_the_stream_does(bench: Bench) -> None:
    ours, theirs = bench.unix()
    for index in range(COUNT):
        bench.watcher.read_full(ours, bytearray(2), ctx=index)
    theirs.sendall(b"abc")
    theirs.close()
    answers = bench.collect(COUNT)
    assert orders(answers) == list(range(COUNT))
    assert [answer.size for answer in answers] == [2, 1] + [0] * (COUNT - 2)
    assert all(isinstance(answer.error, EOFError) for answer in answers[1:])


def test_reads_that_were_done_at_once_come_before_those_that_waited(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"ab")
    bench.watcher.read(ours, bytearray(1), ctx=0)
    bench.watcher.read(ours, bytearray(1), ctx=1)
    bench.watcher.read(ours, bytearray(1), ctx=2)
    theirs.sendall(b"cd")
    bench.watcher.read(ours, bytearray(1), ctx=3)
    assert [(answer.ctx, answer.data) for answer in bench.collect(4)] == [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")]


# Writes.


def test_writes_complete_in_order_and_their_bytes_arrive_in_it(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    sizes = [1, 300_000, 2, 70_000, 65_536, 65_537, 3]
    data = [bytes([ord("a") + index]) * size for index, size in enumerate(sizes)]
    for index, piece in enumerate(data):
        bench.watcher.write(ours, piece, ctx=index)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receive_exactly, theirs, sum(sizes))
        answers = bench.collect(len(sizes))
        assert receiving.result() == b"".join(data)
    assert orders(answers) == list(range(len(sizes)))
    assert [answer.size for answer in answers] == sizes


def test_many_small_writes_behind_one_that_waits_arrive_in_order(bench: Bench) -> None:
    ours, theirs, size = full(bench)
    data = bytes(index % 256 for index in range(COUNT))
    for index in range(COUNT):
        bench.watcher.write(ours, data[index : index + 1], ctx=index)
    bench.none()
    receive_exactly(theirs, size)
    assert orders(bench.collect(COUNT)) == list(range(COUNT))
    assert receive_exactly(theirs, COUNT) == data


def test_writes_fail_in_order_when_the_peer_goes(bench: Bench) -> None:
    ours, theirs, _ = full(bench)
    for index in range(COUNT):
        bench.watcher.write(ours, b"x", ctx=index)
    theirs.close()
    answers = bench.collect(COUNT)
    assert orders(answers) == list(range(COUNT))
    assert all(isinstance(answer.error, BrokenPipeError) for answer in answers)


# Accepts.


def test_accepts_complete_in_order(bench: Bench) -> None:
    listener = bench.listener()
    for index in range(COUNT):
        bench.watcher.accept(listener, ctx=index)
    peers = [bench.keep(socket.create_connection(listener.getsockname())) for _ in range(COUNT)]
    answers = bench.collect(COUNT)
    assert orders(answers) == list(range(COUNT))
    assert [answer.conn.peer for answer in answers if answer.conn] == [  # type: ignore[union-attr]
        peer.getsockname() for peer in peers
    ]
    for answer in answers:
        assert answer.conn is not None
        bench.watcher.free(answer.conn)


# What ends without success.


@pytest.mark.parametrize("end", ["free", "close"])
def test_what_waits_ends_in_order(bench: Bench, end: str) -> None:
    ours, _, _ = full(bench)
    for index in range(5):
        bench.watcher.write(ours, b"x", ctx=("write", index))
        bench.watcher.read(ours, ctx=("read", index))
    if end == "free":
        bench.watcher.free(ours)
    else:
        bench.watcher.close()
    answers = bench.collect(10)
    assert [ctx for ctx in orders(answers) if ctx[0] == "read"] == [("read", i) for i in range(5)]  # type: ignore[index]
    assert [ctx for ctx in orders(answers) if ctx[0] == "write"] == [("write", i) for i in range(5)]  # type: ignore[index]
    assert {type(answer.error) for answer in answers} == {ConnectionFreed if end == "free" else WatcherClosed}


def test_equal_deadlines_pass_in_order(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, _, _ = full(bench)
    for index in range(COUNT):
        bench.watcher.read(ours, ctx=index, timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    assert orders(bench.collect(COUNT)) == list(range(COUNT))


def test_deadline_that_passes_ends_its_own_operation_ahead_of_older_ones(bench: Bench) -> None:
    """The one exception. Those that stay keep their order."""
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(1), ctx=0)
    bench.watcher.read_full(ours, bytearray(1), ctx=1, timeout=TIMEOUT_S)
    bench.watcher.read_full(ours, bytearray(1), ctx=2, timeout=2 * TIMEOUT_S)
    bench.watcher.read_full(ours, bytearray(1), ctx=3)
    clock.advance(TIMEOUT_S)
    expired = bench.one()
    assert expired.ctx == 1
    assert isinstance(expired.error, DeadlineExceeded)
    bench.none()
    theirs.sendall(b"abc")
    assert [(answer.ctx, answer.data) for answer in bench.collect(3)] == [(0, b"a"), (2, b"b"), (3, b"c")]


def test_write_that_expires_in_the_queue_leaves_the_others_in_order(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"0", ctx=0)
    bench.watcher.write(ours, b"1", ctx=1, timeout=TIMEOUT_S)
    bench.watcher.write(ours, b"2", ctx=2)
    clock.advance(TIMEOUT_S)
    assert bench.one().ctx == 1
    receive_exactly(theirs, size)
    assert orders(bench.collect(2)) == [0, 2]
    assert receive_exactly(theirs, 2) == b"02"


# Reads and writes.


def test_read_completes_while_a_write_waits(bench: Bench) -> None:
    ours, theirs, _ = full(bench)
    bench.watcher.write(ours, b"x", ctx="write")
    bench.watcher.read(ours, ctx="read")
    theirs.sendall(b"question")
    answer = bench.one()
    assert (answer.ctx, answer.data) == ("read", b"question")
    bench.none()
    assert bench.watcher.statistics().pending == 1


def test_read_that_is_asked_after_a_write_began_to_wait_is_tried_at_once(bench: Bench) -> None:
    ours, theirs, _ = full(bench)
    bench.watcher.write(ours, b"x")
    theirs.sendall(b"question")
    bench.watcher.read(ours)
    assert bench.watcher.statistics().waiting == 1
    assert bench.one().op is Op.READ


def test_write_completes_while_a_read_waits(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(100), ctx="read")
    bench.watcher.write(ours, b"answer", ctx="write")
    assert bench.one().ctx == "write"
    assert receive_exactly(theirs, 6) == b"answer"
    bench.none()
    assert bench.watcher.statistics().pending == 1


@pytest.mark.parametrize("first", ["read", "write"])
def test_deadline_of_one_direction_leaves_the_other_alone(bench: Bench, first: str) -> None:
    clock = stop_time(bench)
    ours, theirs, size = full(bench)
    bench.watcher.read(ours, ctx="read", timeout=TIMEOUT_S if first == "read" else None)
    bench.watcher.write(ours, b"x", ctx="write", timeout=TIMEOUT_S if first == "write" else None)
    clock.advance(TIMEOUT_S)
    assert bench.one().ctx == first
    if first == "write":
        theirs.sendall(b"x")
    else:
        receive_exactly(theirs, size)
    answer = bench.one()
    assert answer.ctx != first
    assert answer.error is None


def test_connections_do_not_wait_for_each_other(bench: Bench) -> None:
    slow, _, _ = full(bench)
    quick, theirs = bench.unix()
    bench.watcher.read(slow)
    bench.watcher.write(slow, b"x")
    bench.watcher.read(quick, ctx="read")
    bench.watcher.write(quick, b"y", ctx="write")
    theirs.sendall(b"z")
    assert sorted(map(str, orders(bench.collect(2)))) == ["read", "write"]
