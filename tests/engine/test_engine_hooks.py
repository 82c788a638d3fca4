"""Posted reads of an endpoint: one completion each, in order, and no byte lost. For writes: test_engine_writing.py."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from shardnet.errors import ConnectionFreed
from shardnet.watcher import _sys
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, RECEIVES_PER_TURN_MAX
from shardnet.watcher.hooks import HookEndpoint
from tests.engine.kit import Bench, receive_all, reset, tcp_pair, wait_for, wait_unread


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def send_and_wait(peer: socket.socket, endpoint: HookEndpoint, data: bytes) -> None:
    """Send, and see it in the endpoint's kernel buffer."""
    before = endpoint.unread_in_kernel()
    peer.sendall(data)
    wait_unread(endpoint.fd, before + len(data))


# Posting.


def test_posted_read_completes_once_with_what_has_come(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.post_read()
    assert endpoint.reading
    bench.settle()
    assert bench.journal == []
    send_and_wait(peer, endpoint, b"one")
    bench.until(lambda: bench.journal)
    send_and_wait(peer, endpoint, b"two")
    bench.settle()
    assert bench.journal == [("a", "received", b"one")]
    assert not endpoint.reading
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_bytes_without_a_posted_read_stay_in_the_kernel(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"early")
    peer.shutdown(socket.SHUT_WR)
    bench.settle()
    assert bench.journal == []
    assert endpoint.unread_in_kernel() == 5
    endpoint.read_on()
    assert bench.journal == []  # Never from inside the call that asks.
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"early")]


def test_read_of_a_size_takes_no_more_and_leaves_the_rest_for_the_next(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"abcdefghij")
    for size, expected in ((3, b"abc"), (1, b"d"), (6, b"efghij")):
        endpoint.post_read(size)
        bench.until(lambda: not endpoint.reading)
        assert bench.journal.pop() == ("a", "received", expected)
    endpoint.post_read(5)
    bench.settle()
    assert endpoint.reading
    assert bench.counts(Op.READ) == {Outcome.OK: 3}


def test_later_post_replaces_the_size_and_is_the_same_read(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.post_read(2)
    endpoint.post_read(4)
    send_and_wait(peer, endpoint, b"abcdef")
    bench.until(lambda: bench.journal)
    bench.settle()
    assert bench.journal == [("a", "received", b"abcd")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_read_is_at_most_one_chunk() -> None:
    with Bench(swap_size=8 * CHUNK_MAX_BYTES) as large:
        endpoint, peer = large.unix()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK_MAX_BYTES)
        peer.setblocking(False)
        assert peer.send(bytes(3 * CHUNK_MAX_BYTES)) > 2 * CHUNK_MAX_BYTES
        endpoint.post_read(10 * CHUNK_MAX_BYTES)
        large.until(lambda: large.journal)
        assert len(endpoint.received) == CHUNK_MAX_BYTES
        assert len(endpoint.receive_now(10 * CHUNK_MAX_BYTES) or b"") == CHUNK_MAX_BYTES


@pytest.mark.parametrize("size", [0, -1])
def test_read_of_no_bytes_is_refused(bench: Bench, size: int) -> None:
    """It used to look like the end of the stream: receiving into no space gives 0, as the end does."""
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"x")
    bench.settle()
    with pytest.raises(ValueError, match="size"):
        endpoint.post_read(size)
    with pytest.raises(ValueError, match="size"):
        endpoint.receive_now(size)
    bench.settle()
    assert (bench.journal, bench.counts(Op.READ)) == ([], {})
    assert endpoint.receive_now(9) == b"x"


def test_post_on_a_freed_endpoint_is_refused(bench: Bench) -> None:
    """It used to be accepted and never to complete."""
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"x")
    bench.until(lambda: endpoint.readable)
    bench.engine.free(endpoint)
    with pytest.raises(ConnectionFreed):
        endpoint.post_read()
    assert not endpoint.reading
    assert endpoint.receive_now(1) is None
    assert not endpoint.withdraw_read()
    assert bench.counts(Op.READ) == {}


# The end.


def test_end_of_stream_comes_after_the_bytes_and_again_for_every_later_read(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    peer.sendall(b"last words")
    peer.shutdown(socket.SHUT_WR)
    endpoint.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    for _ in range(3):
        endpoint.post_read()
        bench.until(lambda: not endpoint.reading)
    assert bench.of("a") == ["received", "end", "end", "end", "end"]
    assert [endpoint.receive_now(10), endpoint.receive_now(10)] == [b"", b""]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.EOF: 6}


def test_writing_works_after_the_peer_ended_its_stream(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.post_read()
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: bench.of("a") == ["end"])
    assert endpoint.submit_write(b"still here")
    endpoint.end_output()
    assert receive_all(peer) == b"still here"


def test_reset_with_unread_bytes_gives_the_bytes_first_then_the_error(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"before the reset")
    reset(peer)
    wait_for(endpoint.fd, select.POLLERR)
    endpoint.read_on()
    bench.until(lambda: "failed" in bench.of("a"))
    assert bench.journal == [("a", "received", b"before the reset"), ("a", "failed", errno.ECONNRESET)]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.RESET: 1}


def test_hangup_with_nothing_posted_is_told_to_the_next_read_and_never_spins(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    reset(peer)
    wait_for(endpoint.fd, select.POLLHUP)
    bench.settle()
    assert bench.journal == []
    endpoint.post_read()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "failed", errno.ECONNRESET)]
    bench.engine.after(0.001, lambda: bench.journal.append(("timer", "fired", None)))
    turns = 0
    while len(bench.journal) < 2:
        bench.engine.turn(None)
        turns += 1
    assert turns <= 3


@pytest.mark.interpreted
def test_error_that_passes_strands_no_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive that failed used to count as "nothing there": no further edge came for the bytes that were."""
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"kept")
    endpoint.post_read()

    def fail(_swap: _sys.SwapBuffer, _fd: int, _start: int, _room: int) -> int:
        return _sys.FAILED - errno.ENOMEM

    with monkeypatch.context() as patch:
        patch.setattr(_sys.SwapBuffer, "receive", fail)
        bench.until(lambda: bench.journal)
    endpoint.post_read()
    bench.until(lambda: len(bench.journal) == 2)
    assert bench.journal == [("a", "failed", errno.ENOMEM), ("a", "received", b"kept")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.ERROR: 1}


@pytest.mark.interpreted
def test_error_that_passes_strands_no_bytes_of_receive_now(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"kept")
    bench.until(lambda: endpoint.readable)

    def fail(_fd: int, _size: int) -> bytes | None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(_sys, "receive", fail)
        with pytest.raises(OSError) as raised:
            endpoint.receive_now(10)
    assert raised.value.errno == errno.ENOMEM
    assert endpoint.receive_now(10) == b"kept"


# Withdrawing.


def test_withdrawn_read_leaves_its_bytes_in_the_kernel(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.post_read()
    assert endpoint.withdraw_read()
    assert not endpoint.withdraw_read()
    assert not endpoint.reading
    send_and_wait(peer, endpoint, b"abc")
    bench.settle()
    assert (bench.journal, endpoint.unread_in_kernel()) == ([], 3)
    endpoint.post_read()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"abc")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 1}


def test_withdrawn_when_on_the_agenda_loses_no_byte_and_posts_again_once(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"abc")
    bench.settle()
    endpoint.post_read(1)
    assert endpoint.withdraw_read()
    endpoint.post_read(2)
    assert endpoint.withdraw_read()
    bench.settle()
    assert endpoint.unread_in_kernel() == 3
    endpoint.post_read(1)
    assert endpoint.withdraw_read()
    endpoint.post_read(3)
    bench.until(lambda: bench.journal)
    bench.settle()
    assert bench.journal == [("a", "received", b"abc")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 3}


def test_read_that_was_reaped_cannot_be_withdrawn_and_completes(bench: Bench) -> None:
    """The hook of the first completion of a batch asks for the second's read back."""
    (first, first_peer), (second, second_peer) = bench.tcp("first"), bench.tcp("second")
    answers: list[bool] = []
    first.then["received"] = lambda: answers.append(second.withdraw_read())
    for endpoint, peer in ((first, first_peer), (second, second_peer)):
        send_and_wait(peer, endpoint, b"x")
    bench.settle()
    first.post_read()
    second.post_read()
    bench.until(lambda: len(bench.journal) == 2)
    assert answers == [False]
    assert bench.journal == [("first", "received", b"x"), ("second", "received", b"x")]
    assert bench.counts(Op.READ) == {Outcome.OK: 2}


def test_read_posted_while_the_reaped_one_is_still_to_be_told_is_another_read(bench: Bench) -> None:
    (first, first_peer), (second, second_peer) = bench.tcp("first"), bench.tcp("second")
    first.then["received"] = second.post_read
    for endpoint, peer in ((first, first_peer), (second, second_peer)):
        send_and_wait(peer, endpoint, b"abcd")
    bench.settle()
    first.post_read()
    second.post_read(2)
    bench.until(lambda: len(bench.journal) == 3)
    assert bench.journal[1:] == [("second", "received", b"ab"), ("second", "received", b"cd")]
    assert bench.counts(Op.READ) == {Outcome.OK: 3}


# Receiving at once.


def test_receive_now_waits_for_news_then_takes_what_is_there(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    assert endpoint.receive_now(10) is None
    send_and_wait(peer, endpoint, b"abcdef")
    bench.until(lambda: endpoint.readable)
    assert endpoint.receive_now(4) == b"abcd"
    assert endpoint.receive_now(4) == b"ef"
    assert endpoint.receive_now(4) is None
    endpoint.post_read()
    send_and_wait(peer, endpoint, b"more")
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"more")]
    assert bench.counts(Op.READ) == {Outcome.OK: 3}
    assert bench.received_bytes == 10


def test_receive_now_after_exactly_all_finds_the_kernel_empty(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, b"abc")
    bench.until(lambda: endpoint.readable)
    assert endpoint.receive_now(3) == b"abc"  # A full receive proves nothing.
    assert endpoint.readable
    assert endpoint.receive_now(3) is None
    assert not endpoint.readable
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_receive_now_is_limited_in_a_turn_and_a_posted_read_goes_on(bench: Bench) -> None:
    """A handler that reads in a loop from a peer that always has more is to let the others have their turn."""
    endpoint, peer = bench.tcp()
    total = RECEIVES_PER_TURN_MAX + 5
    send_and_wait(peer, endpoint, bytes(total))
    bench.until(lambda: endpoint.readable)
    chunks = 0
    while endpoint.receive_now(1) is not None:
        chunks += 1
    assert chunks <= RECEIVES_PER_TURN_MAX
    endpoint.post_read()
    bench.until(lambda: bench.journal)
    assert len(endpoint.received) == total - chunks


def test_receive_now_has_its_share_again_in_every_turn(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    send_and_wait(peer, endpoint, bytes(3 * RECEIVES_PER_TURN_MAX))
    bench.until(lambda: endpoint.readable)
    for _ in range(2):
        bench.engine.turn(0)
        assert [endpoint.receive_now(1) for _ in range(RECEIVES_PER_TURN_MAX)] == [b"\0"] * RECEIVES_PER_TURN_MAX
        assert endpoint.receive_now(1) is None


def test_receive_now_raises_what_killed_the_connection(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    reset(peer)
    bench.until(lambda: endpoint.readable)
    with pytest.raises(ConnectionResetError):
        endpoint.receive_now(10)
    assert bench.counts(Op.READ) == {Outcome.RESET: 1}


# The helpers that are public beside.


def test_unread_bytes_counts_what_waits(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    assert endpoint.unread_in_kernel() == 0
    send_and_wait(peer, endpoint, bytes(1234))
    assert endpoint.unread_in_kernel() == 1234


def test_local_address_is_our_end_and_leaves_the_descriptor_open(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    assert endpoint.local_address() == peer.getpeername()
    assert endpoint.local_address() == peer.getpeername()


def test_end_of_output_raises_when_the_peer_is_gone(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    reset(peer)
    wait_for(endpoint.fd, select.POLLHUP)
    with pytest.raises(OSError) as raised:
        endpoint.end_output()
    assert raised.value.errno == errno.ENOTCONN
    endpoint.post_read()  # The descriptor is still ours.
    bench.until(lambda: bench.journal)


def test_reset_on_close_shows_the_peer_a_reset(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.reset_on_close()
    bench.engine.free(endpoint)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_endpoint_counts_its_traffic_where_its_owner_says(bench: Bench) -> None:
    """Groups of endpoints count side by side, in cells that the owner lays out."""
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    group = 3  # Any two cells will do.
    endpoint = bench.adopt(ours, traffic=group)
    before = list(bench.engine.cells[group : group + 2])
    endpoint.post_read()
    theirs.sendall(b"12345")
    bench.until(lambda: bench.journal)
    endpoint.submit_write(b"123")
    after = list(bench.engine.cells[group : group + 2])
    assert [now - then for now, then in zip(after, before, strict=True)] == [5, 3]
    assert (bench.received_bytes, bench.sent_bytes) == (0, 0)
