"""Deadlines: when they pass, what they end, and what of the stream is left."""

from __future__ import annotations

import errno
import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from shardnet.watcher import ConnectionBroken, DeadlineExceeded, Op, PeerError
from tests.engine.kit import PATIENCE_S, open_fds, receive_all, receive_exactly
from tests.watcher.kit import Answer, Bench
from tests.watcher.promise_kit import TIMEOUT_S, WAITING, CountedTime, fill, full, full_listener, hold, stop_time

MEGABYTE = 1 << 20
COUNT = 60  # More than one pass over a queue may do.
DATA = bytes(range(256)) * (2 * MEGABYTE // 256)


def check_expired(answer: Answer, size: int = 0) -> None:
    error = answer.error
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, PeerError)
    assert error.errno is None
    assert answer.size == size


# When.


@pytest.mark.parametrize("kind", WAITING)
def test_deadline_passes_so_many_seconds_after_the_submission_and_not_before(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    clock.advance(TIMEOUT_S - 0.001)
    bench.none()
    clock.advance(0.001)
    answer = bench.one()
    check_expired(answer, 2 if kind == "read_full" else 0)
    assert answer.op is waiting.op
    assert answer.conn is (None if kind == "accept" else waiting.conn)


def test_deadline_counts_from_the_submission_also_of_an_operation_that_waits_its_turn(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(2))
    clock.advance(1)
    bench.watcher.read(ours, ctx="second", timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S - 1)
    theirs.sendall(b"xx")  # Now it is the second's turn; its deadline is the same.
    assert bench.one().error is None
    clock.advance(1)
    answer = bench.one()
    check_expired(answer)
    assert answer.ctx == "second"


def test_deadlines_pass_in_the_order_in_which_they_are_due(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, _ = bench.unix()
    dues = [5, 1, 4, 2, 3, 1.5]
    for due in dues:
        bench.watcher.read(ours, ctx=due, timeout=due)
    for due in sorted(dues):
        clock.advance_to(1000 + due)
        answer = bench.one()
        check_expired(answer)
        assert answer.ctx == due
        bench.none()


def test_deadlines_that_pass_together_are_told_together(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, _ = bench.unix()
    for due in (3, 1, 2):
        bench.watcher.read(ours, ctx=due, timeout=due)
    clock.advance(10)
    assert [completion.ctx for completion in bench.watcher.wait_io(0)] == [1, 2, 3]


def test_deadline_wakes_a_wait_that_has_none(bench: Bench) -> None:
    ours, _ = bench.unix()
    bench.watcher.read(ours, timeout=0.02)
    (completion,) = bench.watcher.wait_io()
    assert isinstance(completion.error, DeadlineExceeded)
    bench.watcher.sleep(0.02)
    (completion,) = bench.watcher.wait_io()
    assert (completion.op, completion.error) == (Op.TIMER, None)


@pytest.mark.parametrize("timeout", [None, math.inf])
def test_operation_without_a_deadline_waits_for_ever(bench: Bench, timeout: float | None) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=timeout)
    assert bench.watcher.statistics().deadlines == 0
    clock.advance(1e12)
    bench.none()
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_deadline_may_be_too_far_for_the_kernel(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=1e300)
    bench.watcher.read(ours, timeout=1e9)
    theirs.sendall(b"x")
    (completion,) = bench.watcher.wait_io()
    assert completion.error is None
    bench.none()


@pytest.mark.parametrize("timeout", [-1, -1e-9, -math.inf, math.nan])
def test_negative_timeout_raises(bench: Bench, timeout: float) -> None:
    ours, _ = bench.unix()
    with pytest.raises(ValueError, match="timeout"):
        bench.watcher.read(ours, timeout=timeout)
    with pytest.raises(ValueError):
        bench.watcher.sleep(timeout)


@pytest.mark.parametrize("jump_s", [1e9, -1e9])
def test_wall_clock_has_no_say(bench: Bench, monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    wall, wall_ns = time.time, time.time_ns
    ours, _ = bench.unix()
    other, _ = bench.unix()
    bench.watcher.read(ours, ctx="long", timeout=3600)
    bench.watcher.read(other, ctx="short", timeout=0.05)
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(jump_s * 1e9))
    assert bench.one().ctx == "short"
    bench.none()
    bench.watcher.sleep(0.01)
    assert bench.one().op is Op.TIMER


# Zero: try once.


@pytest.mark.parametrize("kind", WAITING)
def test_timeout_zero_ends_at_once_when_nothing_can_be_done(bench: Bench, kind: str) -> None:
    WAITING[kind](bench, 0)
    said = bench.watcher.statistics()
    assert (said.waiting, said.deadlines, said.turns) == (1, 0, 0)
    check_expired(bench.one(), 2 if kind == "read_full" else 0)


@pytest.mark.parametrize("timeout", [0, 0.0, False])
def test_timeout_zero_succeeds_when_it_can(bench: Bench, tmp_path: Path, timeout: float) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"12345")
    bench.watcher.read(ours, bytearray(1), timeout=timeout)
    bench.watcher.read_full(ours, bytearray(4), timeout=timeout)
    bench.watcher.write(ours, b"x", timeout=timeout)
    path = str(tmp_path / "listener.sock")
    listener = bench.keep(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()
    bench.watcher.connect(path, timeout=timeout)
    bench.watcher.accept(listener, timeout=timeout)
    answers = bench.collect(5)
    assert [answer.error for answer in answers] == [None] * 5
    for answer in answers[3:]:
        hold(bench, answer.conn)


def test_timeout_zero_does_not_overtake_and_does_not_wait(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(4), ctx="older")
    bench.watcher.read(ours, ctx="once", timeout=0)
    answer = bench.one()
    check_expired(answer)
    assert answer.ctx == "once"
    theirs.sendall(b"four")
    assert bench.one()[1:4] == ("older", ours, b"four")


def test_sleep_of_zero_completes_with_the_next_wait(bench: Bench) -> None:
    bench.watcher.sleep(0, ctx="nap")
    (completion,) = bench.watcher.wait_io(0)
    assert (completion.op, completion.ctx, completion.error, completion.conn) == (Op.TIMER, "nap", None, None)


def test_sleeps_complete_in_the_order_in_which_they_are_due(bench: Bench) -> None:
    clock = stop_time(bench)
    for seconds in (3, 0, 2, 1, 0):
        bench.watcher.sleep(seconds, ctx=seconds)
    assert [completion.ctx for completion in bench.watcher.wait_io(0)] == [0, 0]
    clock.advance(10)
    assert [completion.ctx for completion in bench.watcher.wait_io(0)] == [1, 2, 3]


# Data wins.


@pytest.mark.parametrize("kind", [name for name in WAITING if name != "connect"])
def test_answer_that_is_there_wins_over_a_deadline_that_is_past(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    bench.none()
    waiting.answer()
    clock.advance(2 * TIMEOUT_S)
    answer = bench.one()
    assert (answer.op, answer.error) == (waiting.op, None)
    if waiting.op is Op.ACCEPT:
        hold(bench, answer.conn)
    assert bench.watcher.statistics().deadlines == 0


def test_connection_that_is_made_wins_over_a_deadline_that_is_past(bench: Bench) -> None:
    clock = stop_time(bench)
    listener = bench.listener()
    bench.watcher.connect(listener.getsockname(), timeout=TIMEOUT_S)
    bench.keep(listener.accept()[0])
    clock.advance(2 * TIMEOUT_S)
    answer = bench.one()
    assert answer.error is None
    hold(bench, answer.conn)


def test_end_of_the_stream_wins_over_a_deadline_that_is_past(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=TIMEOUT_S)
    theirs.close()
    clock.advance(TIMEOUT_S)
    assert isinstance(bench.one().error, EOFError)


def test_data_wins_for_the_last_of_many_reads(bench: Bench) -> None:
    """However many older reads have to be done before: their bytes are there, and so are the last's."""
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    for index in range(COUNT):
        bench.watcher.read(ours, bytearray(1), ctx=index, timeout=TIMEOUT_S if index == COUNT - 1 else None)
    theirs.sendall(b"x" * COUNT)
    clock.advance(TIMEOUT_S)
    answers = bench.collect(COUNT)
    assert [answer.ctx for answer in answers] == list(range(COUNT))
    assert [answer.error for answer in answers] == [None] * COUNT


def test_room_wins_for_the_last_of_many_writes(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs, size = full(bench)
    for index in range(COUNT):
        bench.watcher.write(ours, b"x", ctx=index, timeout=TIMEOUT_S if index == COUNT - 1 else None)
    receive_exactly(theirs, size)
    clock.advance(TIMEOUT_S)
    answers = bench.collect(COUNT)
    assert [answer.ctx for answer in answers] == list(range(COUNT))
    assert [answer.error for answer in answers] == [None] * COUNT


def test_connections_win_for_the_last_of_many_accepts(bench: Bench) -> None:
    clock = stop_time(bench)
    listener = bench.listener()
    for index in range(COUNT):
        bench.watcher.accept(listener, ctx=index, timeout=TIMEOUT_S if index == COUNT - 1 else None)
    for _ in range(COUNT):
        bench.keep(socket.create_connection(listener.getsockname()))
    clock.advance(TIMEOUT_S)
    answers = bench.collect(COUNT)
    for answer in answers:
        if answer.conn is not None:
            hold(bench, answer.conn)
    assert [answer.ctx for answer in answers] == list(range(COUNT))
    assert [answer.error for answer in answers] == [None] * COUNT


def test_data_wins_when_everything_before_it_expires_with_it(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    for index in range(COUNT):
        bench.watcher.read(ours, bytearray(1), ctx=index, timeout=TIMEOUT_S)
    theirs.sendall(b"x" * (COUNT - 1))
    clock.advance(TIMEOUT_S)
    answers = bench.collect(COUNT)
    assert [answer.error for answer in answers[:-1]] == [None] * (COUNT - 1)
    check_expired(answers[-1])


# What a deadline leaves of the stream.


def test_read_that_expires_leaves_the_stream_readable(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    check_expired(bench.one())
    theirs.sendall(b"late")
    bench.watcher.read(ours)
    assert bench.one().data == b"late"


def test_full_read_that_expires_half_done_says_how_much_it_has_and_the_next_goes_on_behind(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    buffer = bytearray(b"..........")
    bench.watcher.read_full(ours, buffer, timeout=TIMEOUT_S)
    theirs.sendall(b"abc")
    bench.none()
    theirs.sendall(b"de")
    clock.advance(TIMEOUT_S)
    answer = bench.one()
    check_expired(answer, 5)
    assert answer.data == b"abcde"
    assert buffer == b"abcde....."
    theirs.sendall(b"fgh")
    bench.watcher.read_full(ours, bytearray(3))
    assert bench.one().data == b"fgh"
    assert buffer == b"abcde....."


def test_full_read_that_expires_half_done_lets_the_next_in_the_queue_go_on(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(10), timeout=TIMEOUT_S)
    bench.watcher.read(ours)
    theirs.sendall(b"abc")
    clock.advance(TIMEOUT_S)
    check_expired(bench.one(), 3)
    theirs.sendall(b"def")
    assert bench.one().data == b"def"


def test_write_that_expires_half_done_breaks_the_stream(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, DATA, ctx="expires", timeout=TIMEOUT_S)
    bench.watcher.write(ours, b"queued", ctx="queued")
    bench.watcher.write(ours, b"queued, too", ctx="queued, too", timeout=TIMEOUT_S)
    bench.none()
    clock.advance(TIMEOUT_S)
    answers = bench.collect(3)
    moved = answers[0].size
    assert 0 < moved < len(DATA)
    check_expired(answers[0], moved)
    bench.watcher.write(ours, b"later", ctx="later")
    bench.watcher.write(ours, b"once", ctx="once", timeout=0)
    answers += bench.collect(2)
    assert [answer.ctx for answer in answers] == ["expires", "queued", "queued, too", "later", "once"]
    for answer in answers[1:]:
        assert isinstance(answer.error, ConnectionBroken)
        assert isinstance(answer.error, ConnectionError)
        assert answer.size == 0
    # The peer gets what was moved, and nothing behind it, though there is room now.
    assert receive_exactly(theirs, moved) == DATA[:moved]
    bench.none()
    bench.watcher.write(ours, b"and now?")
    assert isinstance(bench.one().error, ConnectionBroken)
    assert bench.watcher.statistics().sent_bytes == moved
    bench.watcher.free(ours)
    assert receive_all(theirs) == b""


def test_write_that_is_tried_once_and_not_done_breaks_the_stream(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, DATA, timeout=0)
    answer = bench.one()
    moved = answer.size
    assert 0 < moved < len(DATA)
    check_expired(answer, moved)
    bench.watcher.write(ours, b"later")
    assert isinstance(bench.one().error, ConnectionBroken)
    bench.watcher.free(ours)
    assert receive_all(theirs) == DATA[:moved]


def test_broken_stream_can_still_be_read(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.read(ours, ctx="before")
    bench.watcher.write(ours, DATA, ctx="breaks", timeout=0)
    assert bench.one().ctx == "breaks"
    theirs.sendall(b"one")
    assert bench.one()[1:4] == ("before", ours, b"one")
    bench.watcher.read(ours)
    theirs.sendall(b"two")
    assert bench.one().data == b"two"


def test_write_that_expires_before_its_first_byte_leaves_the_stream_whole(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"expires", timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    check_expired(bench.one())
    bench.watcher.write(ours, b"follows")
    receive_exactly(theirs, size)
    assert bench.one().error is None
    assert receive_exactly(theirs, 7) == b"follows"


def test_write_that_expires_in_the_queue_leaves_the_stream_whole(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, DATA, ctx="long")
    bench.watcher.write(ours, b"expires", ctx="expires", timeout=TIMEOUT_S)
    bench.watcher.write(ours, b"follows", ctx="follows")
    clock.advance(TIMEOUT_S)
    answer = bench.one()
    check_expired(answer)
    assert answer.ctx == "expires"
    bench.watcher.write(ours, b"last", ctx="last")
    received = bytearray()
    theirs.settimeout(PATIENCE_S)
    done: list[Any] = []
    while len(received) < len(DATA) + 11:
        received += theirs.recv(65536)
        done += [(completion.ctx, completion.error) for completion in bench.watcher.wait_io(0)]
    assert done == [("long", None), ("follows", None), ("last", None)]
    assert received == DATA + b"followslast"


def test_accept_that_expires_leaves_the_next_connection_to_the_next_accept(bench: Bench) -> None:
    clock = stop_time(bench)
    listener = bench.listener()
    bench.watcher.accept(listener, timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    check_expired(bench.one())
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    bench.none()
    bench.watcher.accept(listener)
    assert hold(bench, bench.one().conn).peer == theirs.getsockname()


def test_connect_that_expires_leaves_nothing_behind(bench: Bench) -> None:
    clock = stop_time(bench)
    listener = full_listener(bench)
    before = open_fds()
    bench.watcher.connect(listener.getsockname(), timeout=TIMEOUT_S)
    assert len(open_fds() - before) == 1
    clock.advance(TIMEOUT_S)
    answer = bench.one()
    check_expired(answer)
    assert answer.conn is None
    assert open_fds() == before


def test_kernels_own_timeout_keeps_its_errno(bench: Bench) -> None:
    """The peer's window stays shut, and the kernel gives up before the deadline does."""
    ours, theirs = bench.tcp(4096)
    fill(ours)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
    bench.watcher.write(ours, DATA, timeout=PATIENCE_S)
    error = bench.one().error
    assert type(error) is TimeoutError
    assert error.errno == errno.ETIMEDOUT
    assert theirs.fileno() >= 0


# What they cost.


@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_deadline_is_set_and_cancelled_in_logarithmic_time(bench: Bench, order: str) -> None:
    count = 4096
    bench.watcher._clock = lambda: CountedTime(1000.0)
    ours, theirs = bench.unix()
    CountedTime.compared = 0
    for index in range(count):
        due = {"rising": index, "falling": count - index, "mixed": index * 1237 % count}[order]
        bench.watcher.read(ours, bytearray(1), timeout=1 + due)
    assert bench.watcher.statistics().deadlines == count
    assert CountedTime.compared <= 4 * count * math.log2(count)
    for _ in range(4):
        theirs.sendall(b"x" * (count // 4))
        bench.collect(count // 4)
    assert bench.watcher.statistics().deadlines == 0
    assert CountedTime.compared <= 8 * count * math.log2(count)


def test_deadlines_that_were_cancelled_are_not_kept(bench: Bench) -> None:
    ours, theirs = bench.unix()
    for _ in range(200):
        bench.watcher.read(ours, timeout=3600)
        assert bench.watcher.statistics().deadlines == 1
        theirs.sendall(b"x")
        bench.one()
        assert bench.watcher.statistics().deadlines == 0
    bench.watcher.read(ours, timeout=3600)
    bench.watcher.free(ours)
    bench.one()
    assert bench.watcher.statistics().deadlines == 0
