"""When a read, a full read and a write complete."""

from __future__ import annotations

import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.kit import receive_all, receive_exactly, reset, wait_for, wait_unread
from tests.watcher.kit import Answer, Bench
from tests.watcher.promise_kit import full

POLL_HUP = 16
MEGABYTE = 1 << 20


# read: the first byte.


@pytest.mark.parametrize("buffer", [None, bytearray(100)], ids=["swap", "own"])
def test_read_completes_on_the_first_byte(bench: Bench, buffer: bytearray | None) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, buffer)
    bench.none()
    theirs.sendall(b"x")
    answer = bench.one()
    assert (answer.data, answer.size, answer.error) == (b"x", 1, None)


@pytest.mark.parametrize("buffer", [None, bytearray(100)], ids=["swap", "own"])
def test_read_completes_with_what_is_there(bench: Bench, buffer: bytearray | None) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"all of it")
    wait_unread(ours.fileno(), 9)
    bench.watcher.read(ours, buffer)
    assert bench.one().data == b"all of it"


def test_read_takes_no_more_than_its_buffer_holds(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"twelve bytes")
    memory = bytearray(10)
    bench.watcher.read(ours, memoryview(memory)[2:8])
    answer = bench.one()
    assert (answer.data, answer.size) == (b"twelve", 6)
    assert memory == b"\0\0twelve\0\0"
    bench.watcher.read(ours)
    assert bench.one().data == b" bytes"


def test_read_of_one_byte_at_a_time_gets_them_all(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"tiny")
    got = b""
    for _ in range(4):
        bench.watcher.read(ours, bytearray(1))
        got += bench.one().data
    assert got == b"tiny"
    bench.watcher.read(ours)
    bench.none()


@pytest.mark.parametrize("full_read", [False, True])
def test_read_completes_on_the_end_of_the_stream(bench: Bench, full_read: bool) -> None:
    ours, theirs = bench.tcp()
    (bench.watcher.read_full if full_read else bench.watcher.read)(ours, bytearray(4))
    bench.none()
    theirs.shutdown(socket.SHUT_WR)
    answer = bench.one()
    assert isinstance(answer.error, EOFError)
    assert (answer.data, answer.size) == (b"", 0)


@pytest.mark.parametrize("full_read", [False, True])
def test_read_completes_on_an_error(bench: Bench, full_read: bool) -> None:
    ours, theirs = bench.tcp()
    (bench.watcher.read_full if full_read else bench.watcher.read)(ours, bytearray(4))
    bench.none()
    reset(theirs)
    answer = bench.one()
    assert isinstance(answer.error, ConnectionResetError)
    assert answer.error.errno == errno.ECONNRESET
    assert answer.size == 0


# read_full: the last byte.


def test_full_read_completes_when_its_buffer_is_full_and_not_before(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(5)
    bench.watcher.read_full(ours, buffer)
    for index in range(4):
        theirs.sendall(b"12345"[index : index + 1])
        bench.none()
    theirs.sendall(b"5")
    answer = bench.one()
    assert (answer.data, answer.size, answer.error) == (b"12345", 5, None)
    assert answer.completion.buffer is buffer


def test_full_read_takes_no_byte_more_than_its_buffer_holds(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"12345678")
    bench.watcher.read_full(ours, bytearray(5))
    bench.watcher.read(ours)
    assert [answer.data for answer in bench.collect(2)] == [b"12345", b"678"]


def test_full_read_may_be_longer_than_anything_the_kernel_holds(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    data = bytes(range(256)) * (8 * MEGABYTE // 256)
    buffer = bytearray(len(data))
    bench.watcher.read_full(ours, buffer)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(theirs.sendall, data)
        answer = bench.one()
        sending.result()
    assert (answer.size, answer.error) == (len(data), None)
    assert buffer == data


def test_full_read_that_is_filled_by_the_last_bytes_of_the_stream_succeeds(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read_full(ours, bytearray(4))
    bench.watcher.read_full(ours, bytearray(4))
    theirs.sendall(b"last")
    theirs.close()
    filled, after = bench.collect(2)
    assert (filled.data, filled.error) == (b"last", None)
    assert isinstance(after.error, EOFError)
    assert after.size == 0


def test_full_read_has_the_bytes_it_got_when_the_stream_ends(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(b"..........")
    bench.watcher.read_full(ours, buffer)
    theirs.sendall(b"half ")
    bench.none()
    theirs.sendall(b"of")
    theirs.close()
    answer = bench.one()
    assert isinstance(answer.error, EOFError)
    assert (answer.data, answer.size) == (b"half of", 7)
    assert buffer == b"half of..."


def test_full_read_has_the_bytes_it_got_when_the_peer_resets(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"half")
    wait_unread(ours.fileno(), 4)
    bench.watcher.read_full(ours, bytearray(10))
    reset(theirs)
    answer = bench.one()
    assert isinstance(answer.error, ConnectionResetError)
    assert (answer.data, answer.size) == (b"half", 4)


# write: the last byte.


def test_write_does_not_complete_while_the_kernel_has_room_for_a_part_only(bench: Bench) -> None:
    ours, _ = bench.tcp(4096)
    bench.watcher.write(ours, bytes(4 * MEGABYTE))
    bench.none()
    said = bench.watcher.statistics()
    assert (said.pending, said.completed) == (1, 0)
    assert 0 < said.sent_bytes < 4 * MEGABYTE


def test_write_completes_when_every_byte_is_with_the_kernel(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    data = bytes(range(256)) * (2 * MEGABYTE // 256)
    bench.watcher.write(ours, data)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receive_exactly, theirs, len(data))
        answer = bench.one()
        assert (answer.size, answer.error) == (len(data), None)
        assert bench.watcher.statistics().sent_bytes == len(data)
        # It needs nothing of us any more, not even that we are there.
        bench.watcher.free(ours)
        assert receiving.result() == data


def test_write_completes_though_the_peer_reads_nothing_when_the_kernel_has_taken_it_all(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.write(ours, b"x" * 1000)
    assert bench.one().size == 1000
    bench.watcher.free(ours)
    assert receive_all(theirs) == b"x" * 1000


def test_write_goes_on_each_time_that_there_is_room(bench: Bench) -> None:
    ours, theirs, size = full(bench)
    data = bytes(range(256)) * (2 * size // 256)
    bench.watcher.write(ours, data)
    received = bytearray()
    answers: list[Answer] = []
    while len(received) < size + len(data):
        received += theirs.recv(4096)
        answers += [Answer(c.op, c.ctx, c.conn, b"", c.error, c) for c in bench.watcher.wait_io(0)]
        assert bool(answers) == (bench.watcher.statistics().sent_bytes == len(data))
    assert [(answer.size, answer.error) for answer in answers] == [(len(data), None)]
    assert received[size:] == data


def test_write_has_the_bytes_it_moved_when_the_peer_goes(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, bytes(4 * MEGABYTE))
    bench.none()
    sent = bench.watcher.statistics().sent_bytes
    reset(theirs)
    answer = bench.one()
    assert isinstance(answer.error, (ConnectionResetError, BrokenPipeError))
    assert answer.error.errno in (errno.ECONNRESET, errno.EPIPE)
    assert answer.size == sent


def test_read_and_write_of_one_connection_complete_each_on_their_own(bench: Bench) -> None:
    """Both directions at once, each more than the kernel holds, and one full read for all of it."""
    ours, theirs = bench.tcp()
    data = bytes(range(256)) * (8 * MEGABYTE // 256)
    bench.watcher.write(ours, data)
    bench.watcher.read_full(ours, bytearray(len(data)))
    echoing = threading.Thread(target=echo, args=(theirs, len(data)))
    echoing.start()
    answers = bench.collect(2)
    echoing.join()
    assert [(answer.size, answer.error) for answer in answers] == [(len(data), None)] * 2
    assert answers[1].data == data


def echo(sock: socket.socket, size: int) -> None:
    sock.settimeout(20)
    while size:
        data = sock.recv(65536)
        sock.sendall(data)
        size -= len(data)


def test_peer_that_has_hung_up_still_leaves_its_bytes(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"farewell")
    theirs.close()
    wait_for(ours, POLL_HUP)
    bench.watcher.read(ours, bytearray(4))
    bench.watcher.read(ours, bytearray(10))
    bench.watcher.read(ours)
    answers = bench.collect(3)
    assert [answer.data for answer in answers] == [b"fare", b"well", b""]
    assert [type(answer.error) for answer in answers] == [type(None), type(None), EOFError]
