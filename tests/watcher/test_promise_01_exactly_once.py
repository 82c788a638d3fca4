"""Exactly one completion for each submission that was accepted; none for a call that raises."""

from __future__ import annotations

import errno
import socket
from collections import Counter

import pytest

from shardnet.watcher import Channel, ConnectionFreed, DeadlineExceeded, Op, WatcherClosed
from tests.engine.kit import reset
from tests.watcher.kit import Answer, Bench
from tests.watcher.promise_kit import (
    FREEABLE,
    REFUSED,
    SUBMISSIONS,
    TIMEOUT_S,
    WAITING,
    full,
    hold,
    stop_time,
    submissions,
    unused_address,
)


def only(bench: Bench) -> Answer:
    """The completion of the one operation that was asked, and none besides."""
    answer = bench.one()
    if isinstance(answer.conn, Channel):
        hold(bench, answer.conn)
    if not bench.watcher.closed:
        bench.none()
    said = bench.watcher.statistics()
    assert (said.submitted, said.completed, said.pending, said.waiting) == (1, 1, 0, 0)
    return answer


# Done.


@pytest.mark.parametrize("kind", WAITING)
def test_operation_that_waited_completes_once_when_it_succeeds(bench: Bench, kind: str) -> None:
    waiting = WAITING[kind](bench, None)
    bench.none()
    waiting.answer()
    answer = only(bench)
    assert (answer.op, answer.error) == (waiting.op, None)


def test_read_completes_once_when_its_bytes_are_there_already(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"x")
    bench.watcher.read(ours)
    assert only(bench).data == b"x"


def test_read_full_completes_once_when_its_bytes_are_there_already(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"four, and more")
    bench.watcher.read_full(ours, bytearray(4))
    assert only(bench).data == b"four"


def test_write_completes_once_when_there_is_room(bench: Bench) -> None:
    ours, _ = bench.unix()
    bench.watcher.write(ours, b"x")
    assert only(bench).error is None


def test_accept_completes_once_when_a_connection_is_there_already(bench: Bench) -> None:
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    bench.watcher.accept(listener)
    assert only(bench).error is None


def test_connect_completes_once(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.connect(listener.getsockname())
    assert only(bench).error is None


def test_sleep_completes_once(bench: Bench) -> None:
    clock = stop_time(bench)
    bench.watcher.sleep(TIMEOUT_S)
    bench.none()
    clock.advance(TIMEOUT_S)
    answer = only(bench)
    assert (answer.op, answer.error) == (Op.TIMER, None)
    clock.advance(TIMEOUT_S)
    bench.none()


def test_every_operation_of_many_completes_once(bench: Bench) -> None:
    clock = stop_time(bench)
    asked = 0
    # In each round one that succeeds, one that fails, one that expires, one that is freed.
    for _ in range(50):
        ours, theirs = bench.unix()
        bench.watcher.read(ours, ctx=asked, timeout=TIMEOUT_S)
        bench.watcher.read_full(ours, bytearray(2), ctx=asked + 1, timeout=TIMEOUT_S)
        bench.watcher.write(ours, b"x", ctx=asked + 2, timeout=TIMEOUT_S)
        bench.watcher.connect(unused_address(), ctx=asked + 3, timeout=TIMEOUT_S)
        bench.watcher.sleep(TIMEOUT_S, ctx=asked + 4)
        theirs.sendall(b"x")
        other, _ = bench.unix()
        bench.watcher.read(other, ctx=asked + 5, timeout=TIMEOUT_S)
        bench.watcher.free(other)
        asked += 6
    answers = bench.collect(4 * 50)
    clock.advance(TIMEOUT_S)
    answers += bench.collect(2 * 50)
    bench.none()
    assert Counter(answer.ctx for answer in answers) == Counter(range(asked))
    assert bench.watcher.statistics().completed_deadline == 50


# Freed.


@pytest.mark.parametrize("kind", FREEABLE)
def test_operation_completes_once_when_its_conn_is_freed(bench: Bench, kind: str) -> None:
    waiting = WAITING[kind](bench, None)
    assert waiting.conn is not None
    bench.watcher.free(waiting.conn)
    answer = only(bench)
    assert answer.op is waiting.op
    assert isinstance(answer.error, ConnectionFreed)


@pytest.mark.parametrize("kind", FREEABLE)
def test_operation_completes_once_when_its_conn_is_freed_twice_and_its_deadline_passes(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    assert waiting.conn is not None
    bench.watcher.free(waiting.conn)
    bench.watcher.free(waiting.conn)
    clock.advance(TIMEOUT_S)
    assert isinstance(only(bench).error, ConnectionFreed)
    assert bench.watcher.statistics().deadlines == 0


def test_read_that_is_done_completes_once_when_its_conn_is_freed_before_it_is_handed_out(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"x")
    bench.watcher.read(ours)
    bench.watcher.free(ours)
    answer = only(bench)
    assert (answer.data, answer.error) == (b"x", None)


@pytest.mark.parametrize("kind", SUBMISSIONS[:3])
def test_operation_completes_once_when_its_conn_was_freed_before(bench: Bench, kind: str) -> None:
    ours, _ = bench.unix()
    bench.watcher.free(ours)
    submissions(bench, ours)[kind]()
    assert only(bench).error is not None


# Expired.


@pytest.mark.parametrize("kind", WAITING)
def test_operation_completes_once_when_its_deadline_passes(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    bench.none()
    clock.advance(TIMEOUT_S)
    answer = only(bench)
    assert answer.op is waiting.op
    assert isinstance(answer.error, DeadlineExceeded)
    clock.advance(TIMEOUT_S)
    bench.none()


@pytest.mark.parametrize("kind", [name for name in WAITING if name != "connect"])
def test_operation_that_has_expired_does_not_complete_again_when_the_answer_comes(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    assert isinstance(only(bench).error, DeadlineExceeded)
    waiting.answer()
    bench.none()


@pytest.mark.parametrize("kind", WAITING)
def test_operation_completes_once_when_it_is_tried_only_once(bench: Bench, kind: str) -> None:
    WAITING[kind](bench, 0)
    assert isinstance(only(bench).error, DeadlineExceeded)


@pytest.mark.parametrize("kind", [name for name in WAITING if name != "connect"])
def test_operation_completes_once_when_its_deadline_and_the_answer_meet(bench: Bench, kind: str) -> None:
    clock = stop_time(bench)
    waiting = WAITING[kind](bench, TIMEOUT_S)
    waiting.answer()
    clock.advance(TIMEOUT_S)
    only(bench)


# Closed.


@pytest.mark.parametrize("kind", WAITING)
def test_operation_completes_once_when_the_watcher_is_closed(bench: Bench, kind: str) -> None:
    waiting = WAITING[kind](bench, TIMEOUT_S)
    bench.watcher.close()
    bench.watcher.close()
    answer = only(bench)
    assert answer.op is waiting.op
    assert isinstance(answer.error, WatcherClosed)
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io(0)


def test_sleep_completes_once_when_the_watcher_is_closed(bench: Bench) -> None:
    bench.watcher.sleep(TIMEOUT_S, ctx="nap")
    bench.watcher.close()
    answer = only(bench)
    assert answer[:3] == (Op.TIMER, "nap", None)
    assert isinstance(answer.error, WatcherClosed)


def test_read_that_is_done_completes_once_when_the_watcher_is_closed_before_it_is_handed_out(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"x")
    bench.watcher.read(ours)
    bench.watcher.close()
    answer = only(bench)
    assert (answer.data, answer.error) == (b"x", None)


def test_operation_completes_once_when_its_conn_is_freed_and_the_watcher_closed(bench: Bench) -> None:
    ours, _ = bench.unix()
    bench.watcher.read(ours)
    bench.watcher.free(ours)
    bench.watcher.close()
    assert isinstance(only(bench).error, ConnectionFreed)


# Failed.


@pytest.mark.parametrize("kind", ["read", "read_into", "read_full"])
def test_read_completes_once_when_the_peer_ends_the_stream(bench: Bench, kind: str) -> None:
    ours, theirs = bench.unix()
    buffer = None if kind == "read" else bytearray(4)
    (bench.watcher.read_full if kind == "read_full" else bench.watcher.read)(ours, buffer)
    theirs.close()
    assert isinstance(only(bench).error, EOFError)


def test_read_completes_once_when_the_peer_resets(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    reset(theirs)
    error = only(bench).error
    assert isinstance(error, ConnectionResetError)
    assert error.errno == errno.ECONNRESET


def test_write_completes_once_when_the_peer_goes(bench: Bench) -> None:
    ours, theirs, _ = full(bench)
    bench.watcher.write(ours, b"x")
    bench.none()
    theirs.close()
    assert isinstance(only(bench).error, ConnectionError)


def test_connect_completes_once_when_it_is_refused(bench: Bench) -> None:
    bench.watcher.connect(unused_address())
    assert isinstance(only(bench).error, ConnectionRefusedError)


@pytest.mark.parametrize("kind", SUBMISSIONS[:3])
def test_operation_completes_once_when_the_socket_is_closed(bench: Bench, kind: str) -> None:
    ours, _ = bench.unix()
    ours.close()
    submissions(bench, ours)[kind]()
    assert isinstance(only(bench).error, OSError)


def test_accept_completes_once_when_the_listener_is_closed(bench: Bench) -> None:
    listener = bench.listener()
    listener.close()
    bench.watcher.accept(listener)
    assert isinstance(only(bench).error, OSError)


# Refused.


@pytest.mark.parametrize("name", REFUSED)
def test_call_that_raises_has_accepted_nothing(bench: Bench, name: str) -> None:
    ours, theirs = bench.unix()
    before = bench.watcher.statistics()
    with pytest.raises((TypeError, ValueError)):
        REFUSED[name].call(bench, ours)
    assert bench.watcher.statistics() == before
    bench.none()
    # Nor was the connection taken over.
    ours.sendall(b"still mine")
    assert theirs.recv(100) == b"still mine"


@pytest.mark.parametrize("kind", SUBMISSIONS)
def test_call_that_raises_has_accepted_nothing_when_the_watcher_is_closed(bench: Bench, kind: str) -> None:
    ours, _ = bench.unix()
    bench.watcher.close()
    before = bench.watcher.statistics()
    with pytest.raises(WatcherClosed):
        submissions(bench, ours)[kind]()
    assert bench.watcher.statistics() == before
    assert ours.fileno() >= 0


def test_call_that_raises_leaves_what_waits_alone(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read(ours, ctx="first")
    with pytest.raises(ValueError, match="empty"):
        bench.watcher.read(ours, bytearray())
    with pytest.raises(ValueError, match="empty"):
        bench.watcher.write(ours, b"")
    theirs.sendall(b"x")
    assert only(bench)[:4] == (Op.READ, "first", ours, b"x")


def test_bytes_wait_for_the_next_read_when_one_has_expired(bench: Bench) -> None:
    """The one completion of a read is all that it gets: what comes later is not its."""
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    buffer = bytearray(4)
    bench.watcher.read(ours, buffer, timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    assert isinstance(only(bench).error, DeadlineExceeded)
    theirs.sendall(b"late")
    bench.none()
    assert buffer == bytes(4)
    assert bench.keep(bench.watcher.detach(ours)).recv(10) == b"late"
