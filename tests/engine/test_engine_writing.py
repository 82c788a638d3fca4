"""Submitted writes of an endpoint: every byte in order, one completion each, `on_sent` once per emptied queue."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from collections.abc import Iterable, Iterator
from itertools import islice

import pytest

from shardnet.errors import ConnectionFreed
from shardnet.watcher import _sockets, _sys
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.hooks import WRITES_PER_TURN_MAX
from tests.engine.kit import (
    Bench,
    RecordingEndpoint,
    drain,
    fill,
    raiser,
    receive_all,
    receive_exactly,
    reset,
    wait_for,
)

NARROW_BYTES = 1  # The kernel makes the least of it: 4608 bytes of bookkeeping, about half of that of data.


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which a hole, a repetition or a swap shows."""
    return bytes((index * 31 + (index >> 8) * 7 + seed) & 0xFF for index in range(size))


# At once.


def test_small_write_is_with_the_kernel_on_return_and_calls_no_hook(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    assert endpoint.submit_write(b"hello ")
    assert endpoint.submit_write(bytearray(b"wide "))
    assert endpoint.submit_write(memoryview(b"world"))
    assert (endpoint.sent_bytes, endpoint.unsent_bytes) == (16, 0)
    assert receive_exactly(peer, 16) == b"hello wide world"
    bench.settle()
    assert bench.journal == []
    assert bench.counts(Op.WRITE) == {Outcome.OK: 3}
    assert bench.sent_bytes == 16


def test_views_of_wider_items_are_sent_by_bytes(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    numbers = array.array("I", range(1000))
    square = memoryview(bytes(range(100))).cast("B", (10, 10))
    assert endpoint.submit_write(memoryview(numbers))
    assert endpoint.submit_write(square)
    assert receive_exactly(peer, 4100) == numbers.tobytes() + bytes(range(100))
    assert endpoint.sent_bytes == 4100


def test_views_of_wider_items_are_queued_by_bytes(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    size = fill(endpoint)
    numbers = array.array("Q", range(5000))
    assert not endpoint.submit_write(memoryview(numbers))
    assert endpoint.sent_bytes + endpoint.unsent_bytes == size + 40000
    assert drain(bench, peer, size + 40000)[size:] == numbers.tobytes()


@pytest.mark.parametrize("data", ["text", None, 7, memoryview(bytes(10))[::2], [b"x"]])
def test_what_is_no_buffer_of_bytes_is_refused_and_nothing_is_accepted(bench: Bench, data: object) -> None:
    endpoint, _peer = bench.tcp()
    with pytest.raises(TypeError):
        endpoint.submit_write(data)  # type: ignore[arg-type]
    fill(endpoint)
    with pytest.raises(TypeError):
        endpoint.submit_write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b"")])
def test_empty_write_is_refused_and_stops_nothing(bench: Bench, data: bytes) -> None:
    """Behind a queue it used to be accepted, and the queue never got empty: no `on_sent`."""
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    with pytest.raises(ValueError, match="empty"):
        endpoint.submit_write(data)
    size = fill(endpoint)
    with pytest.raises(ValueError, match="empty"):
        endpoint.submit_write(data)
    drain(bench, peer, size)
    bench.until(lambda: bench.of("a") == ["sent"])


# Queued.


def test_large_write_goes_out_whole_and_is_told_once(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    data = pattern(1_000_000)
    assert not endpoint.submit_write(data)
    assert endpoint.sent_bytes + endpoint.unsent_bytes == len(data)
    assert drain(bench, peer, len(data)) == data
    bench.until(lambda: bench.of("a"))
    bench.settle()
    assert bench.of("a") == ["sent"]
    assert (endpoint.sent_bytes, endpoint.unsent_bytes) == (len(data), 0)
    assert bench.counts(Op.WRITE) == {Outcome.OK: 1}
    assert bench.sent_bytes == len(data)


def test_writes_of_all_sizes_keep_their_order_and_complete_once_each(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    pieces = [pattern(1 + number * number * 37 % 3001, number) for number in range(500)]
    for piece in pieces:
        endpoint.submit_write(piece)
    expected = b"".join(pieces)
    assert drain(bench, peer, len(expected)) == expected
    bench.until(lambda: bench.of("a"))
    assert bench.of("a") == ["sent"]
    assert bench.counts(Op.WRITE) == {Outcome.OK: 500}


def test_many_small_buffers_go_out_together_and_in_order(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    size = fill(endpoint)
    submitted = bench.count(Op.WRITE, Outcome.OK) + 1
    small = [b"%05d," % number for number in range(5000)]
    for piece in small:
        assert not endpoint.submit_write(piece)
    expected = b"".join(small)
    assert drain(bench, peer, size + len(expected))[size:] == expected
    bench.until(lambda: bench.of("a"))
    assert bench.of("a") == ["sent"]
    assert bench.counts(Op.WRITE) == {Outcome.OK: submitted + 5000}


def test_mutable_buffer_may_change_and_grow_once_it_is_submitted(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    size = fill(endpoint)
    plain, viewed = bytearray(b"as it was"), bytearray(b" at the call")
    endpoint.submit_write(plain)
    endpoint.submit_write(memoryview(viewed))
    for buffer in (plain, viewed):
        buffer[:2] = b"??"
        buffer.extend(b"?" * 1000)
    assert drain(bench, peer, size + 21)[size:] == b"as it was at the call"


def test_mutable_buffer_may_change_when_only_its_front_was_taken(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    data = bytearray(pattern(200_000))
    expected = bytes(data)
    assert not endpoint.submit_write(data)
    assert endpoint.sent_bytes > 0
    data[:] = bytes(200_000)
    data.clear()
    assert drain(bench, peer, 200_000) == expected


@pytest.mark.interpreted
def test_one_byte_at_a_time_arrives_in_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, peer = bench.unix()
    size = fill(endpoint)

    def send_one(fd: int, data: bytes) -> int:
        return os.write(fd, memoryview(data)[:1])

    def send_one_of_many(fd: int, buffers: Iterable[bytes]) -> int:
        return send_one(fd, next(iter(buffers)))

    pieces = [pattern(1 + number % 5, number) for number in range(100)]
    for piece in pieces:
        endpoint.submit_write(piece)
    receive_exactly(peer, endpoint.sent_bytes)
    bench.until(lambda: endpoint.unsent_bytes < 4096)
    monkeypatch.setattr(_sys, "send", send_one)
    monkeypatch.setattr(_sys, "send_many", send_one_of_many)
    expected = b"".join(pieces)
    assert drain(bench, peer, endpoint.unsent_bytes + unread(peer))[-len(expected) :] == expected
    assert endpoint.sent_bytes == size + len(expected)
    assert bench.of("a") == ["sent"]


def unread(peer: socket.socket) -> int:
    return _sockets.unread_bytes(peer.fileno())


def test_write_behind_a_queue_waits_although_the_kernel_has_room(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    size = fill(endpoint, pattern(4096))
    receive_exactly(peer, 65536)  # There is room now, and the engine has not heard of it.
    assert not endpoint.submit_write(b"behind")
    data = drain(bench, peer, size - 65536 + 6)
    assert data.endswith(b"behind")


# What hooks are told.


def test_sent_comes_once_for_every_emptied_queue(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    for round_ in range(1, 4):
        before = endpoint.sent_bytes
        size = fill(endpoint)
        assert endpoint.submit_write(b"x") is False
        drain(bench, peer, size + 1)
        bench.until(lambda round_=round_: len(bench.of("a")) == round_)  # type: ignore[misc]
        assert endpoint.sent_bytes == before + size + 1
    assert endpoint.submit_write(b"at once")
    bench.settle()
    assert bench.of("a") == ["sent"] * 3


@pytest.mark.interpreted
def test_progress_is_told_when_some_went_and_some_wait_and_never_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be told as well when the kernel took nothing."""
    endpoint, peer = bench.unix()
    fill(endpoint)
    with monkeypatch.context() as patch:
        patch.setattr(_sys, "send", lambda _fd, _data: 0)
        receive_exactly(peer, endpoint.sent_bytes)
        bench.settle()
        assert bench.journal == []
    slow, slow_peer = bench.unix("slow")
    size = fill(slow)
    slow.submit_write(bytes(4_000_000))
    receive_exactly(slow_peer, slow.sent_bytes)
    bench.settle()
    unsent = slow.unsent_bytes
    assert [entry for entry in bench.journal if entry[0] == "slow"] == [("slow", "progress", unsent)]
    assert 0 < unsent < size + 4_000_000
    drain(bench, slow_peer, size + 4_000_000 - slow.sent_bytes + unread(slow_peer))
    bench.until(lambda: bench.of("slow") == ["sent"])
    assert bench.journal[-1] == ("slow", "sent", None)
    told = [detail for _, what, detail in bench.journal if what == "progress"]
    assert told == sorted(set(told), reverse=True)
    assert 0 not in told


def test_hook_may_submit_more_and_is_told_again(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    size = fill(endpoint)
    left = [b"second " * 100_000, b"third " * 100_000]
    queues = 1

    def more() -> None:
        nonlocal queues
        # A peer that reads fast enough takes it all at once: then nothing is queued, and nothing told.
        while left:
            if not endpoint.submit_write(left.pop(0)):
                queues += 1
                return

    expected = size + 700_000 + 600_000
    endpoint.then["sent"] = more
    assert drain(bench, peer, expected)[size:] == b"second " * 100_000 + b"third " * 100_000
    bench.until(lambda: len(bench.of("a")) == queues)
    bench.settle()
    assert bench.of("a") == ["sent"] * queues


@pytest.mark.parametrize("what", ["sent", "progress", "failed"])
def test_hook_of_a_write_may_free_its_endpoint(bench: Bench, what: str) -> None:
    endpoint, peer = bench.unix()
    size = fill(endpoint)
    if what != "sent":
        endpoint.submit_write(bytes(1_000_000))
    endpoint.then[what] = lambda: bench.engine.free(endpoint)
    if what == "failed":
        peer.close()
    else:
        receive_exactly(peer, size - 4096)
    bench.until(lambda: endpoint.fd < 0)
    bench.settle()
    assert endpoint.unsent_bytes == 0
    with pytest.raises(ConnectionFreed):
        endpoint.submit_write(b"late")


# The turn's share.


@pytest.mark.interpreted
def test_flush_has_a_bound_and_another_endpoint_its_share_of_the_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (greedy, greedy_peer), (modest, modest_peer) = bench.unix("greedy"), bench.unix("modest")
    sizes = [fill(greedy), fill(modest)]
    small = _sys.BUFFERS_PER_WRITE_MAX * (2 * WRITES_PER_TURN_MAX + 1)
    for _ in range(small):
        greedy.submit_write(b"x")
    receive_exactly(greedy_peer, greedy.sent_bytes)
    receive_exactly(modest_peer, modest.sent_bytes)
    calls: list[int] = []

    def sending_many(fd: int, buffers: Iterable[bytes | memoryview]) -> int:
        calls.append(fd)
        # As slow as a kernel that takes little at a time, so that the room is not what ends the turn.
        return os.writev(fd, list(islice(buffers, _sys.BUFFERS_PER_WRITE_MAX)))

    monkeypatch.setattr(_sys, "send_many", sending_many)
    bench.engine.turn(0)
    assert calls.count(greedy.fd) == WRITES_PER_TURN_MAX
    assert greedy.unsent_bytes > 0
    assert bench.of("modest") == ["sent"]
    bench.engine.turn(None)  # No edge comes: the rest stands in the agenda.
    assert calls.count(greedy.fd) == 2 * WRITES_PER_TURN_MAX
    bench.until(lambda: bench.of("greedy") == ["sent"])
    assert greedy.sent_bytes == sizes[0] + small


def test_hook_that_raises_leaves_the_other_flushes_for_the_next_turn(bench: Bench) -> None:
    endpoints = [bench.unix(name) for name in "abc"]
    for endpoint, _ in endpoints:
        fill(endpoint)
        endpoint.then["sent"] = raiser(KeyboardInterrupt())
    for endpoint, peer in endpoints:
        receive_exactly(peer, endpoint.sent_bytes)
    for count in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            bench.settle()
        assert len(bench.journal) == count
    bench.settle()
    assert sorted(bench.journal) == [(name, "sent", None) for name in "abc"]


# Errors.


def test_write_to_a_peer_that_is_gone_raises_at_once_and_is_counted(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    reset(peer)
    wait_for(endpoint.fd, select.POLLERR)
    with pytest.raises(ConnectionResetError):
        endpoint.submit_write(b"x")
    with pytest.raises(BrokenPipeError):
        endpoint.submit_write(b"x")
    bench.settle()
    assert bench.journal == []
    assert bench.counts(Op.WRITE) == {Outcome.RESET: 2}


def queue_of(bench: Bench, count: int) -> tuple[RecordingEndpoint, socket.socket, int]:
    """An endpoint with `count` writes queued, its peer, and how many writes were submitted in all."""
    endpoint, peer = bench.unix()
    fill(endpoint)
    for _ in range(count - 1):
        endpoint.submit_write(b"queued")
    return endpoint, peer, bench.count(Op.WRITE, Outcome.OK) + count


def test_error_mid_queue_ends_every_queued_write_exactly_once(bench: Bench) -> None:
    """The write that failed used to be counted again, as cancelled, when the endpoint was freed."""
    endpoint, peer, submitted = queue_of(bench, 10)
    peer.close()
    bench.until(lambda: bench.of("a") == ["failed"])
    bench.settle()
    assert bench.of("a") == ["failed"]
    assert endpoint.unsent_bytes == 0
    assert bench.count(Op.WRITE, Outcome.RESET) == 1
    assert bench.count(Op.WRITE, Outcome.CANCELLED) == 9
    bench.engine.free(endpoint)
    assert sum(bench.counts(Op.WRITE).values()) == submitted


@pytest.mark.interpreted
def test_nothing_is_sent_behind_a_hole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in the middle of the stream that passes, the rest of the queue used to follow as if whole."""
    endpoint, peer = bench.unix()
    fill(endpoint)
    for number in range(1000):
        endpoint.submit_write(b"%4d" % number)
    first = True

    def fail_second(fd: int, buffers: Iterable[bytes | memoryview]) -> int:
        nonlocal first
        if first:
            first = False
            return os.write(fd, next(iter(buffers)))
        return -errno.ENOBUFS

    with monkeypatch.context() as patch:
        patch.setattr(_sys, "send_many", fail_second)
        taken = receive_exactly(peer, endpoint.sent_bytes)
        bench.until(lambda: "failed" in bench.of("a"))
    bench.settle()
    assert bench.of("a") == ["failed"]
    assert bench.journal[-1] == ("a", "failed", errno.ENOBUFS)
    assert bench.count(Op.WRITE, Outcome.ERROR) == 1
    sent_bytes = endpoint.sent_bytes
    bench.engine.free(endpoint)
    assert len(taken) + len(receive_all(peer)) == sent_bytes == bench.sent_bytes


def test_reading_goes_on_after_a_write_failed(bench: Bench) -> None:
    """The directions are independent: what the peer had sent before is there to be read."""
    endpoint, peer = bench.tcp(buffer_bytes=NARROW_BYTES)
    fill(endpoint)
    peer.sendall(b"last words")
    wait_for(endpoint.fd, select.POLLIN)
    reset(peer)
    wait_for(endpoint.fd, select.POLLERR)
    bench.until(lambda: bench.of("a") == ["failed"])
    endpoint.read_on()
    bench.until(lambda: len(bench.of("a")) > 1)
    assert endpoint.received == b"last words"


def test_free_cancels_what_is_queued_without_a_hook(bench: Bench) -> None:
    endpoint, peer, submitted = queue_of(bench, 7)
    endpoint.post_read()
    bench.engine.free(endpoint)
    bench.engine.free(endpoint)
    receive_all(peer)
    bench.settle()
    assert bench.journal == []
    assert bench.count(Op.WRITE, Outcome.CANCELLED) == 7
    assert sum(bench.counts(Op.WRITE).values()) == submitted
    assert bench.counts(Op.READ) == {Outcome.CANCELLED: 1}
    assert endpoint.unsent_bytes == 0
