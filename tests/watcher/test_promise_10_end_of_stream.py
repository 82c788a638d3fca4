"""Promise 10: the end of the stream is `EOFError`, again and again, and ends one direction alone."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import pytest

from shardnet.watcher import Channel, Op, Watcher
from tests.engine.kit import reset, wait_for, wait_unread
from tests.watcher.elsewhere import receiving
from tests.watcher.kit import Answer, Bench

Submit = Callable[[Watcher, "socket.socket | Channel"], None]

# Every way to ask for bytes.
READS: dict[str, Submit] = {
    "swap": lambda watcher, conn: watcher.read(conn),
    "buffer": lambda watcher, conn: watcher.read(conn, bytearray(b"......")),
    "full": lambda watcher, conn: watcher.read_full(conn, bytearray(b"......")),
    "try": lambda watcher, conn: watcher.read(conn, timeout=0),
    "deadline": lambda watcher, conn: watcher.read(conn, timeout=60),
}


@pytest.fixture(params=READS)
def submit(request: pytest.FixtureRequest) -> Submit:
    return READS[request.param]


def is_end(answer: Answer) -> bool:
    return type(answer.error) is EOFError and (answer.op, answer.size, answer.data) == (Op.READ, 0, b"")


def test_end_of_stream_completes_a_read_that_waits(bench: Bench, submit: Submit) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    submit(bench.watcher, ours)
    answer = bench.one()
    assert is_end(answer)
    assert answer.conn is ours


def test_end_of_stream_is_met_by_a_read_that_comes_later(bench: Bench, submit: Submit) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    wait_for(ours, select.POLLRDHUP)
    submit(bench.watcher, ours)
    assert is_end(bench.one())
    bench.none()


def test_end_of_stream_completes_a_read_on_a_channel_and_on_a_unix_socket(bench: Bench, submit: Submit) -> None:
    channel, peer = bench.accepted()
    ours, theirs = bench.unix()
    peer.shutdown(socket.SHUT_WR)
    theirs.close()
    for conn in (channel, ours):
        submit(bench.watcher, conn)
        answer = bench.one()
        assert is_end(answer)
        assert answer.conn is conn
    bench.watcher.free(channel)


def test_end_of_stream_is_told_again_by_every_later_read(bench: Bench, submit: Submit) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    for _ in range(3):
        bench.watcher.read(ours)
        assert is_end(bench.one())
    for _ in range(3):
        submit(bench.watcher, ours)
        bench.watcher.read(ours, bytearray(1))
        assert all(map(is_end, bench.collect(2)))


def test_end_of_stream_leaves_the_callers_buffer_alone(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    buffer = bytearray(b"keep me")
    bench.watcher.read(ours, buffer)
    completion = bench.one().completion
    assert completion.buffer is buffer
    assert buffer == b"keep me"
    buffer.append(1)  # Nobody holds it any more.


def test_end_of_stream_comes_behind_every_byte(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"last words")
    theirs.close()
    wait_for(ours, select.POLLRDHUP)
    for _ in range(3):
        bench.watcher.read(ours, bytearray(5))
    first, second, third = bench.collect(3)
    assert (first.data, first.error, second.data, second.error) == (b"last ", None, b"words", None)
    assert is_end(third)


def test_end_of_stream_completes_every_queued_read_in_order(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, ctx="bytes")
    for index in range(100):  # More than one turn does for one connection.
        if index % 3 == 0:
            bench.watcher.read(ours, ctx=index)
        elif index % 3 == 1:
            bench.watcher.read(ours, bytearray(10), ctx=index, timeout=60)
        else:
            bench.watcher.read_full(ours, bytearray(10), ctx=index)
    theirs.sendall(b"bytes")
    theirs.close()
    answers = bench.collect(101)
    assert (answers[0].ctx, answers[0].data, answers[0].error) == ("bytes", b"bytes", None)
    assert [answer.ctx for answer in answers[1:]] == list(range(100))
    assert all(map(is_end, answers[1:]))
    assert bench.watcher.statistics().deadlines == 0


def test_read_full_keeps_what_came_before_the_end(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(b".......")
    theirs.sendall(b"abc")
    wait_unread(ours.fileno(), 3)
    bench.watcher.read_full(ours, buffer, ctx="cut")
    bench.watcher.read_full(ours, bytearray(7), ctx="behind")
    bench.none()
    theirs.sendall(b"de")
    theirs.close()
    cut, behind = bench.collect(2)
    assert type(cut.error) is EOFError
    assert (cut.ctx, cut.size, cut.data) == ("cut", 5, b"abcde")
    assert buffer == b"abcde.."
    assert behind.ctx == "behind"
    assert is_end(behind)


def test_read_full_is_complete_when_the_end_stands_right_behind_its_last_byte(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"abc")
    theirs.close()
    wait_for(ours, select.POLLRDHUP)
    bench.watcher.read_full(ours, bytearray(3))
    answer = bench.one()
    assert (answer.data, answer.error) == (b"abc", None)
    bench.watcher.read_full(ours, bytearray(3))
    assert is_end(bench.one())


def test_write_works_after_the_peer_has_ended_its_stream(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    bench.watcher.read(ours)
    assert is_end(bench.one())
    for data in (b"still ", b"there"):
        bench.watcher.write(ours, data)
        answer = bench.one()
        assert (answer.op, answer.size, answer.error) == (Op.WRITE, len(data), None)
    assert theirs.recv(11, socket.MSG_WAITALL) == b"still there"


def test_write_works_after_the_peer_has_ended_its_stream_and_nobody_has_read_that(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    wait_for(ours, select.POLLRDHUP)
    bench.watcher.write(ours, b"there")
    assert bench.one().error is None
    assert theirs.recv(5, socket.MSG_WAITALL) == b"there"
    bench.watcher.read(ours)
    assert is_end(bench.one())


def test_write_that_waits_goes_on_after_the_end_of_the_other_direction(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    data = bytes(range(256)) * 4096
    bench.watcher.write(ours, data)
    bench.watcher.read(ours)
    bench.none()
    theirs.shutdown(socket.SHUT_WR)
    assert is_end(bench.one())
    with receiving(theirs, len(data)) as received:
        answer = bench.one()
        assert (answer.op, answer.size, answer.error) == (Op.WRITE, len(data), None)
        assert received.result() == data
    bench.watcher.read(ours)
    assert is_end(bench.one())


def test_end_of_stream_is_told_again_when_a_reset_stands_behind_it(bench: Bench, submit: Submit) -> None:
    """The law: the stream has ended well, and nothing that comes later takes that back."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    theirs.shutdown(socket.SHUT_WR)
    bench.watcher.read(ours)
    assert is_end(bench.one())
    reset(theirs)
    wait_for(number, select.POLLHUP | select.POLLERR)
    for _ in range(3):
        submit(bench.watcher, ours)
        assert is_end(bench.one())
    bench.watcher.write(ours, b"x")
    assert isinstance(bench.one().error, ConnectionError)
    submit(bench.watcher, ours)
    assert is_end(bench.one())


def test_end_of_stream_is_told_again_when_a_unix_peer_breaks_off_behind_it(bench: Bench, submit: Submit) -> None:
    """There the kernel would tell of the error first, in place of the end."""
    ours, theirs = bench.unix()
    number = ours.fileno()
    bench.watcher.write(ours, b"never read")
    theirs.shutdown(socket.SHUT_WR)
    assert bench.one().error is None
    bench.watcher.read(ours)
    assert is_end(bench.one())
    theirs.close()
    wait_for(number, select.POLLHUP | select.POLLERR)
    for _ in range(3):
        submit(bench.watcher, ours)
        assert is_end(bench.one())


def test_end_of_stream_is_counted(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"abc")
    theirs.close()
    bench.watcher.read_full(ours, bytearray(10))
    bench.watcher.read(ours)
    bench.collect(2)
    said = bench.watcher.statistics()
    assert (said.completed_eof, said.completed_ok, said.received_bytes) == (2, 0, 3)


def test_end_of_stream_leaves_the_connection_to_its_owner(bench: Bench) -> None:
    """It is not closed by itself: not before `free`, and not for the peer."""
    ours, theirs = bench.tcp()
    theirs.shutdown(socket.SHUT_WR)
    bench.watcher.read(ours)
    assert is_end(bench.one())
    assert bench.watcher.statistics().connections == 1
    bench.watcher.write(ours, b"bye")
    bench.watcher.free(ours)
    assert bench.one().error is None
    assert theirs.recv(10, socket.MSG_WAITALL) == b"bye"
