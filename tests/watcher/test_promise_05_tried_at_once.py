"""An operation is tried at once when no older one of its direction is queued; otherwise it waits its turn."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.engine.kit import receive_exactly, wait_unread
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import TIMEOUT_S, full, hold, stop_time


def done(bench: Bench) -> int:
    """Operations that are complete, without a look at the network."""
    said = bench.watcher.statistics()
    assert said.turns == 0, "the poller was asked"
    return said.completed


# At once.


@pytest.mark.parametrize("buffer", [None, bytearray(100)], ids=["swap", "own"])
def test_read_is_complete_on_return_when_bytes_are_there(bench: Bench, buffer: bytearray | None) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"x")
    wait_unread(ours.fileno(), 1)
    bench.watcher.read(ours, buffer)
    assert done(bench) == 1
    assert bench.one().data == b"x"


def test_read_is_complete_on_return_when_the_stream_has_ended(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.close()
    bench.watcher.read(ours)
    assert done(bench) == 1
    assert isinstance(bench.one().error, EOFError)


def test_full_read_takes_on_submission_what_is_there(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"half")
    buffer = bytearray(8)
    bench.watcher.read_full(ours, buffer)
    assert done(bench) == 0
    assert buffer == b"half\0\0\0\0"
    theirs.sendall(b"half")
    assert bench.one().data == b"halfhalf"


def test_write_has_arrived_on_return_when_there_is_room(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.write(ours, b"at once")
    assert receive_exactly(theirs, 7) == b"at once"
    assert done(bench) == 1
    bench.one()


def test_accept_is_complete_on_return_when_a_connection_waits(bench: Bench) -> None:
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    bench.watcher.accept(listener)
    assert done(bench) == 1
    hold(bench, bench.one().conn)


def test_connect_is_complete_on_return_to_a_unix_socket(bench: Bench, tmp_path: Path) -> None:
    path = str(tmp_path / "listener.sock")
    listener = bench.keep(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()
    bench.watcher.connect(path)
    assert done(bench) == 1
    hold(bench, bench.one().conn)


def test_operations_are_each_complete_on_return_when_none_waits(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"abc")
    for count in range(1, 4):
        bench.watcher.read(ours, bytearray(1))
        bench.watcher.write(ours, b"x")
        assert done(bench) == 2 * count
    assert len(bench.collect(6)) == 6


def test_operation_is_tried_at_once_again_when_those_before_it_have_completed(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read(ours)
    theirs.sendall(b"first")
    assert bench.one().data == b"first"
    theirs.sendall(b"second")
    bench.watcher.read(ours)
    assert bench.watcher.statistics().waiting == 1
    assert bench.one().data == b"second"


def test_operation_is_tried_at_once_when_the_one_before_it_has_expired(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=TIMEOUT_S)
    clock.advance(TIMEOUT_S)
    bench.one()
    theirs.sendall(b"x")
    bench.watcher.read(ours)
    assert bench.watcher.statistics().waiting == 1
    assert bench.one().data == b"x"


# Its turn.


def test_read_does_not_overtake_one_that_waits_though_bytes_have_come(bench: Bench) -> None:
    ours, theirs = bench.unix()
    first, second = bytearray(8), bytearray(8)
    bench.watcher.read(ours, first, ctx="first")
    theirs.sendall(b"x")
    bench.watcher.read(ours, second, ctx="second")
    answer = bench.one()
    assert (answer.ctx, answer.data) == ("first", b"x")
    assert second == bytes(8)
    bench.none()


def test_write_does_not_overtake_one_that_waits_though_room_has_come(bench: Bench) -> None:
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"first")
    receive_exactly(theirs, size)
    bench.watcher.write(ours, b"second")
    assert len(bench.collect(2)) == 2
    assert receive_exactly(theirs, 11) == b"firstsecond"


def test_accept_does_not_overtake_one_that_waits(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener, ctx="first")
    bench.keep(socket.create_connection(listener.getsockname()))
    bench.watcher.accept(listener, ctx="second")
    answer = bench.one()
    hold(bench, answer.conn)
    assert answer.ctx == "first"
    bench.none()


def test_small_write_waits_behind_a_large_one_though_it_would_fit(bench: Bench) -> None:
    ours, theirs, size = full(bench)
    large = b"L" * (4 * size)
    bench.watcher.write(ours, large, ctx="large")
    bench.watcher.write(ours, b"s", ctx="small")
    received = bytearray()
    order = []
    while len(received) < size + len(large) + 1:
        received += theirs.recv(4096)
        order += [completion.ctx for completion in bench.watcher.wait_io(0)]
    assert order == ["large", "small"]
    assert received[size:] == large + b"s"


def test_next_operation_is_tried_as_soon_as_its_turn_comes(bench: Bench) -> None:
    """The bytes that complete the first may hold the second's, too, and nothing will tell of them again."""
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(2))
    bench.watcher.read_full(ours, bytearray(2))
    theirs.sendall(b"abcd")
    assert [answer.data for answer in bench.collect(2)] == [b"ab", b"cd"]


def test_next_operation_has_its_turn_when_the_one_before_it_has_expired(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(100), timeout=TIMEOUT_S)
    bench.watcher.read(ours)
    clock.advance(TIMEOUT_S)
    bench.one()
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_next_write_has_its_turn_when_the_one_before_it_has_expired(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"expires", timeout=TIMEOUT_S)
    bench.watcher.write(ours, b"follows")
    clock.advance(TIMEOUT_S)
    assert bench.one().size == 0
    receive_exactly(theirs, size)
    assert bench.one().size == 7
    assert receive_exactly(theirs, 7) == b"follows"
