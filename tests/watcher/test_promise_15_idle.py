"""Promise 15: of a connection that nobody reads, nothing is read: neither its bytes nor its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable

import pytest

from shardnet.watcher import DeadlineExceeded, Op
from tests.engine.kit import receive_exactly, reset, wait_for, wait_unread
from tests.watcher.kit import Bench


def unread(number: int) -> int:
    """How many bytes wait in the kernel."""
    answer: bytes = fcntl.ioctl(number, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", answer)[0])


def adopted(bench: Bench) -> tuple[socket.socket, socket.socket, int]:
    """A connection that the watcher polls and that nobody reads, its peer, and its number."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours)
    bench.none()
    theirs.sendall(b"first")
    assert bench.one().data == b"first"
    return ours, theirs, number


def test_bytes_of_an_idle_connection_stay_in_the_kernel(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    busy, peer = bench.tcp()
    theirs.sendall(b"later")
    wait_unread(number, 5)
    for _ in range(5):
        peer.sendall(b"x")
        bench.watcher.read(busy)
        assert bench.one().conn is busy
        assert unread(number) == 5
    said = bench.watcher.statistics()
    assert said.received_bytes == len(b"first" + b"x" * 5)
    bench.watcher.read(ours)
    assert bench.one().data == b"later"
    assert unread(number) == 0


def test_bytes_of_an_idle_channel_stay_in_the_kernel(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    theirs.sendall(b"later")
    wait_unread(channel.fileno(), 5)
    bench.none()
    assert unread(channel.fileno()) == 5
    bench.watcher.read(channel)
    assert bench.one().data == b"later"
    bench.watcher.free(channel)


def test_read_takes_no_more_than_was_asked(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    theirs.sendall(b"0123456789")
    wait_unread(number, 10)
    bench.watcher.read(ours, bytearray(3))
    assert bench.one().data == b"012"
    assert unread(number) == 7
    bench.watcher.read_full(ours, bytearray(4))
    assert bench.one().data == b"3456"
    bench.none()
    assert unread(number) == 3


def test_write_that_waits_reads_nothing(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    number = ours.fileno()
    data = bytes(1 << 18)
    bench.watcher.write(ours, data)
    theirs.sendall(b"later")
    wait_unread(number, 5)
    bench.none()
    assert unread(number) == 5
    received = 0
    while received < len(data):
        received += len(theirs.recv(65536))
        for completion in bench.watcher.wait_io(0):
            assert completion.error is None
    assert unread(number) == 5
    bench.watcher.read(ours)
    assert bench.one().data == b"later"


def test_bytes_that_come_after_a_deadline_stay_in_the_kernel(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    bench.watcher.read(ours, timeout=0.001)
    assert isinstance(bench.one().error, DeadlineExceeded)
    theirs.sendall(b"late")
    wait_unread(number, 4)
    bench.none()
    assert unread(number) == 4
    bench.watcher.read(ours, timeout=0)
    assert bench.one().data == b"late"


def test_peer_of_an_idle_connection_is_held_up(bench: Bench) -> None:
    """Unread bytes are the backpressure: a peer that sends and sends comes to a stop, and goes on when it is read."""
    ours, theirs = bench.unix()
    number = ours.fileno()
    bench.watcher.read(ours, timeout=0)
    bench.one()
    theirs.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 1 << 26:
            bench.watcher.wait_io(0)
            sent += theirs.send(bytes(4096))
    assert 0 < unread(number) == sent < 1 << 26
    bench.watcher.read_full(ours, bytearray(sent))
    assert bench.one().size == sent
    assert theirs.send(b"on") == 2


def test_end_of_stream_of_an_idle_connection_waits(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    theirs.sendall(b"last")
    theirs.shutdown(socket.SHUT_WR)
    wait_for(number, select.POLLRDHUP)
    bench.none()
    said = bench.watcher.statistics()
    assert (said.connections, said.completed_eof) == (1, 0)
    assert unread(number) == 4
    bench.watcher.write(ours, b"not closed")
    assert bench.one().error is None
    assert receive_exactly(theirs, 10) == b"not closed"
    bench.watcher.read(ours)
    assert bench.one().data == b"last"
    bench.none()
    bench.watcher.read(ours)
    assert type(bench.one().error) is EOFError


def test_reset_of_an_idle_connection_waits(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    reset(theirs)
    wait_for(number, select.POLLERR)
    bench.none()
    bench.watcher.read(ours)
    error = bench.one().error
    assert isinstance(error, OSError)
    assert error.errno == errno.ECONNRESET


def test_urgent_byte_of_an_idle_connection_waits(bench: Bench) -> None:
    ours, theirs, number = adopted(bench)
    theirs.send(b"!", socket.MSG_OOB)
    theirs.sendall(b"more")
    wait_for(number, select.POLLIN | select.POLLPRI)
    bench.none()
    bench.watcher.read_full(ours, bytearray(4))
    assert bench.one().data == b"more"


def nothing(theirs: socket.socket, number: int) -> None: ...


def unread_bytes(theirs: socket.socket, number: int) -> None:
    theirs.sendall(b"unread")
    wait_unread(number, 6)


def end(theirs: socket.socket, number: int) -> None:
    theirs.shutdown(socket.SHUT_WR)
    wait_for(number, select.POLLRDHUP)


def unread_bytes_and_end(theirs: socket.socket, number: int) -> None:
    unread_bytes(theirs, number)
    end(theirs, number)


def a_reset(theirs: socket.socket, number: int) -> None:
    reset(theirs)
    wait_for(number, select.POLLERR | select.POLLHUP)


def an_urgent_byte(theirs: socket.socket, number: int) -> None:
    theirs.send(b"!", socket.MSG_OOB)
    wait_for(number, select.POLLPRI)


@pytest.mark.parametrize("happen", [nothing, unread_bytes, end, unread_bytes_and_end, a_reset, an_urgent_byte])
def test_idle_connection_keeps_nobody_busy(bench: Bench, happen: Callable[[socket.socket, int], None]) -> None:
    """What waits in the kernel is told once at most: a wait goes on being one."""
    ours, theirs, number = adopted(bench)
    happen(theirs, number)
    turns = bench.watcher.statistics().turns
    bench.watcher.sleep(0.05)
    assert bench.one().op is Op.TIMER
    assert bench.watcher.statistics().turns - turns < 10
    del ours
