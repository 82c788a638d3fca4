"""Promise 14: what the kernel says of a connection comes as the `OSError` that it is, with what had moved."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shardnet.watcher import Channel, ConnectionBroken, DeadlineExceeded, Op
from tests.engine.kit import reset, tcp_pair, wait_for, wait_unread
from tests.watcher.elsewhere import at_end, no_descriptors_left
from tests.watcher.kit import Answer, Bench

BIG = bytes(1 << 20)


def is_error(answer: Answer, error: type[OSError], number: int, size: int = 0) -> bool:
    """Whether it failed with exactly this class, its errno, and the text that goes with it."""
    told = answer.error
    return (
        type(told) is error
        and (told.errno, told.strerror) == (number, os.strerror(number))
        and (answer.size, len(answer.data)) == (size, size)
    )


def hung(bench: Bench) -> tuple[socket.socket, socket.socket]:
    """A connection that the kernel gives up soon, since its peer takes no more."""
    ours, theirs = bench.tcp(4096)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
    return ours, theirs


def test_reset_completes_a_read_that_waits(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, timeout=60)
    bench.none()
    reset(theirs)
    assert is_error(bench.one(), ConnectionResetError, errno.ECONNRESET)
    said = bench.watcher.statistics()
    assert (said.completed_reset, said.completed_error, said.deadlines) == (1, 0, 0)


def test_reset_is_met_by_a_read_that_comes_later(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours, timeout=0)
    assert isinstance(bench.one().error, DeadlineExceeded)
    reset(theirs)
    wait_for(number, select.POLLERR)
    bench.watcher.read(ours, timeout=0)
    assert is_error(bench.one(), ConnectionResetError, errno.ECONNRESET)


def test_reset_completes_a_write_that_waits(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, BIG, timeout=60)
    bench.none()
    reset(theirs)
    answer = bench.one()
    assert answer.op is Op.WRITE
    assert 0 < answer.size < len(BIG)
    assert is_error(answer, ConnectionResetError, errno.ECONNRESET, answer.size)


@pytest.mark.parametrize("first", [Op.READ, Op.WRITE])
def test_reset_wakes_both_directions(bench: Bench, first: Op) -> None:
    ours, theirs = bench.tcp(4096)
    for op in (first, Op.WRITE if first is Op.READ else Op.READ):
        if op is Op.READ:
            bench.watcher.read(ours)
        else:
            bench.watcher.write(ours, BIG)
    bench.none()
    reset(theirs)
    by_op = {answer.op: answer for answer in bench.collect(2)}
    read, write = by_op[Op.READ], by_op[Op.WRITE]
    # The kernel tells of the reset once: whoever comes second hears that there is nobody.
    assert is_error(read, ConnectionResetError, errno.ECONNRESET)
    assert is_error(write, BrokenPipeError, errno.EPIPE, write.size)
    assert 0 < write.size < len(BIG)


def test_hang_up_of_a_unix_peer_wakes_both_directions(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.write(ours, BIG)
    bench.watcher.read(ours)
    bench.none()
    theirs.close()  # With bytes unread, which makes it a reset.
    by_op = {answer.op: answer for answer in bench.collect(2)}
    assert is_error(by_op[Op.READ], ConnectionResetError, errno.ECONNRESET)
    write = by_op[Op.WRITE]
    assert is_error(write, BrokenPipeError, errno.EPIPE, write.size)
    assert write.size > 0


def test_reset_completes_everything_that_is_queued(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    for index in range(40):  # More than a turn does for one connection.
        bench.watcher.read(ours, ctx=index)
        bench.watcher.write(ours, BIG, ctx=index)
    bench.none()
    reset(theirs)
    answers = bench.collect(80)
    for op in Op.READ, Op.WRITE:
        assert [answer.ctx for answer in answers if answer.op is op] == list(range(40))
    assert all(answer.error is not None for answer in answers)
    assert is_error(next(answer for answer in answers if answer.op is Op.READ), ConnectionResetError, errno.ECONNRESET)


def test_read_full_keeps_what_came_before_the_reset(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"abc")
    wait_unread(ours.fileno(), 3)
    bench.watcher.read_full(ours, bytearray(10))
    bench.none()
    reset(theirs)
    answer = bench.one()
    assert is_error(answer, ConnectionResetError, errno.ECONNRESET, 3)
    assert answer.data == b"abc"


def test_write_to_who_is_gone_is_a_broken_pipe(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.close()
    for _ in range(2):  # Nothing moved, so nothing is broken in its middle: each is told the same.
        bench.watcher.write(ours, b"x")
        assert is_error(bench.one(), BrokenPipeError, errno.EPIPE)
    assert bench.watcher.statistics().completed_reset == 2


def test_write_after_a_reset_that_was_read_is_a_broken_pipe(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    reset(theirs)
    assert is_error(bench.one(), ConnectionResetError, errno.ECONNRESET)
    bench.watcher.write(ours, b"x")
    assert is_error(bench.one(), BrokenPipeError, errno.EPIPE)


def test_write_behind_one_that_a_reset_stopped_in_its_middle_is_broken(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, BIG)
    bench.watcher.write(ours, b"behind")
    bench.none()
    reset(theirs)
    stopped, behind = bench.collect(2)
    assert is_error(stopped, ConnectionResetError, errno.ECONNRESET, stopped.size)
    assert type(behind.error) is ConnectionBroken
    assert behind.size == 0


@pytest.mark.parametrize("timeout", [None, 60], ids=["no deadline", "a deadline"])
def test_timeout_of_the_kernels_stays_its_own_when_a_write_meets_it(bench: Bench, timeout: float | None) -> None:
    """The peer takes nothing any more, and the kernel loses patience long before a deadline of ours."""
    ours, _theirs = hung(bench)
    bench.watcher.write(ours, BIG, timeout=timeout)
    answer = bench.one()
    assert is_error(answer, TimeoutError, errno.ETIMEDOUT, answer.size)
    assert 0 < answer.size < len(BIG)
    said = bench.watcher.statistics()
    assert (said.completed_error, said.completed_deadline) == (1, 0)


def test_timeout_of_the_kernels_stays_its_own_when_a_read_meets_it(bench: Bench) -> None:
    ours, _theirs = hung(bench)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(BIG)
    bench.watcher.read(ours, timeout=60)
    assert is_error(bench.one(), TimeoutError, errno.ETIMEDOUT)
    assert bench.watcher.statistics().completed_deadline == 0


def test_connect_is_refused_where_nobody_listens(bench: Bench) -> None:
    nobody = bench.keep(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    bench.watcher.connect(nobody.getsockname(), ctx="asked", timeout=60)
    answer = bench.one()
    assert is_error(answer, ConnectionRefusedError, errno.ECONNREFUSED)
    assert (answer.op, answer.ctx, answer.conn) == (Op.CONNECT, "asked", None)
    said = bench.watcher.statistics()
    assert (said.connections, said.deadlines) == (0, 0)


def test_connect_to_a_unix_socket_says_what_is_wrong(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("s")
    nobody = bench.keep(socket.socket(socket.AF_UNIX))
    nobody.bind(str(folder / "nobody"))
    bench.watcher.connect(str(folder / "nobody"))
    assert is_error(bench.one(), ConnectionRefusedError, errno.ECONNREFUSED)
    bench.watcher.connect(str(folder / "nothing"))
    assert is_error(bench.one(), FileNotFoundError, errno.ENOENT)


def test_connect_without_a_descriptor_left_says_so(bench: Bench) -> None:
    listener = bench.listener()
    with no_descriptors_left():
        bench.watcher.connect(listener.getsockname(), ctx="asked")
    answer = bench.one()
    assert is_error(answer, OSError, errno.EMFILE)
    assert (answer.op, answer.ctx, answer.conn) == (Op.CONNECT, "asked", None)
    bench.watcher.connect(listener.getsockname())
    conn = bench.one().conn
    assert isinstance(conn, Channel)
    bench.watcher.free(conn)


def test_accept_without_a_descriptor_left_says_so_to_one_and_goes_on(bench: Bench) -> None:
    """The connection stays in the backlog, and the next accept gets it as soon as there is a descriptor."""
    listener = bench.listener()
    bench.watcher.accept(listener, ctx="first")
    bench.watcher.accept(listener, ctx="second")
    bench.none()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    with no_descriptors_left():
        first = bench.one()
    assert is_error(first, OSError, errno.EMFILE)
    assert (first.op, first.ctx, first.conn) == (Op.ACCEPT, "first", None)
    second = bench.one()
    assert (second.ctx, second.error) == ("second", None)
    assert isinstance(second.conn, Channel)
    bench.watcher.write(second.conn, b"hello")
    assert bench.one().error is None
    assert theirs.recv(5, socket.MSG_WAITALL) == b"hello"
    bench.watcher.free(second.conn)


def test_accept_without_a_descriptor_left_is_not_tried_for_ever(bench: Bench) -> None:
    """A backlog that cannot be emptied is always ready: whoever polled it would never rest."""
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    with no_descriptors_left():
        bench.watcher.accept(listener)
        assert is_error(bench.one(), OSError, errno.EMFILE)
        before = bench.watcher.statistics().turns
        bench.watcher.sleep(0.05)
        assert bench.one().op is Op.TIMER
        assert bench.watcher.statistics().turns - before < 10


def test_read_without_an_error_of_its_own_is_not_touched_by_another_connections(bench: Bench) -> None:
    well, peer = bench.tcp()
    ill, gone = bench.tcp()
    bench.watcher.read(well)
    bench.watcher.read(ill)
    bench.none()
    reset(gone)
    answer = bench.one()
    assert answer.conn is ill
    bench.none()
    peer.sendall(b"x")
    assert bench.one()[2:5] == (well, b"x", None)


def broken_read(bench: Bench, ours: socket.socket, theirs: socket.socket) -> None:
    bench.watcher.read(ours)
    reset(theirs)


def broken_write(bench: Bench, ours: socket.socket, theirs: socket.socket) -> None:
    bench.watcher.write(ours, BIG)
    reset(theirs)


@pytest.mark.parametrize("break_it", [broken_read, broken_write])
def test_error_that_is_kept_does_not_hold_its_connection(
    bench: Bench, break_it: Callable[[Bench, socket.socket, socket.socket], None]
) -> None:
    """A log keeps errors for long: their frames must not keep a connection open."""
    ours, theirs = tcp_pair(4096)
    bench.keep(theirs)
    break_it(bench, ours, theirs)
    error = bench.one().error
    assert isinstance(error, ConnectionResetError)
    with pytest.warns(ResourceWarning, match="dropped"):
        del ours
    assert bench.watcher.statistics().connections_dropped == 1


def test_failed_connection_is_not_closed_by_itself(bench: Bench) -> None:
    """Its number stays its owner's until `free`, so that nobody's is closed in its place."""
    ours, theirs = bench.unix()
    theirs.shutdown(socket.SHUT_RD)
    bench.watcher.write(ours, b"x")
    assert is_error(bench.one(), BrokenPipeError, errno.EPIPE)
    assert bench.watcher.statistics().connections == 1
    theirs.sendall(b"still there")
    bench.watcher.read(ours)
    assert bench.one().data == b"still there"
    bench.watcher.free(ours)
    with contextlib.suppress(ConnectionResetError):
        assert at_end(theirs)
