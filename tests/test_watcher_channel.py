"""Posted reads of a channel: one completion each, in order, and no byte lost. Writing is in test_watcher_writing.py."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from shardnet.errors import ConnectionFreed
from shardnet.watcher import (
    CHUNK_MAX_BYTES,
    Channel,
    Op,
    Outcome,
    _sys,
)
from shardnet.watcher.channel import RECEIVES_PER_TURN_MAX
from tests.watcher_kit import Bench, receive_all, reset, tcp_pair, wait_for, wait_unread


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def send_and_wait(peer: socket.socket, channel: Channel, data: bytes) -> None:
    """Send, and see it in the channel's kernel buffer."""
    before = channel.unread_in_kernel()
    peer.sendall(data)
    wait_unread(channel.fd, before + len(data))


# Posting.


def test_posted_read_completes_once_with_what_has_come(bench: Bench) -> None:
    channel, peer = bench.tcp()
    channel.post_read()
    assert channel.reading
    bench.settle()
    assert bench.journal == []
    send_and_wait(peer, channel, b"one")
    bench.until(lambda: bench.journal)
    send_and_wait(peer, channel, b"two")
    bench.settle()
    assert bench.journal == [("a", "received", b"one")]
    assert not channel.reading
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_bytes_without_a_posted_read_stay_in_the_kernel(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"early")
    peer.shutdown(socket.SHUT_WR)
    bench.settle()
    assert bench.journal == []
    assert channel.unread_in_kernel() == 5
    channel.read_on()
    assert bench.journal == []  # Never from inside the call that asks.
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"early")]


def test_read_of_a_size_takes_no_more_and_leaves_the_rest_for_the_next(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"abcdefghij")
    for size, expected in ((3, b"abc"), (1, b"d"), (6, b"efghij")):
        channel.post_read(size)
        bench.until(lambda: not channel.reading)
        assert bench.journal.pop() == ("a", "received", expected)
    channel.post_read(5)
    bench.settle()
    assert channel.reading
    assert bench.counts(Op.READ) == {Outcome.OK: 3}


def test_later_post_replaces_the_size_and_is_the_same_read(bench: Bench) -> None:
    channel, peer = bench.tcp()
    channel.post_read(2)
    channel.post_read(4)
    send_and_wait(peer, channel, b"abcdef")
    bench.until(lambda: bench.journal)
    bench.settle()
    assert bench.journal == [("a", "received", b"abcd")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_read_is_at_most_one_chunk() -> None:
    with Bench(swap_size=8 * CHUNK_MAX_BYTES) as large:
        channel, peer = large.unix()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK_MAX_BYTES)
        peer.setblocking(False)
        assert peer.send(bytes(3 * CHUNK_MAX_BYTES)) > 2 * CHUNK_MAX_BYTES
        channel.post_read(10 * CHUNK_MAX_BYTES)
        large.until(lambda: large.journal)
        assert len(channel.received) == CHUNK_MAX_BYTES
        assert len(channel.receive_now(10 * CHUNK_MAX_BYTES) or b"") == CHUNK_MAX_BYTES


@pytest.mark.parametrize("size", [0, -1])
def test_read_of_no_bytes_is_refused(bench: Bench, size: int) -> None:
    """It used to look like the end of the stream: receiving into no space gives 0, as the end does."""
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"x")
    bench.settle()
    with pytest.raises(ValueError, match="size"):
        channel.post_read(size)
    with pytest.raises(ValueError, match="size"):
        channel.receive_now(size)
    bench.settle()
    assert (bench.journal, bench.counts(Op.READ)) == ([], {})
    assert channel.receive_now(9) == b"x"


def test_post_on_a_freed_channel_is_refused(bench: Bench) -> None:
    """It used to be accepted and never to complete."""
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"x")
    bench.until(lambda: channel.readable)
    bench.watcher.free(channel)
    with pytest.raises(ConnectionFreed):
        channel.post_read()
    assert not channel.reading
    assert channel.receive_now(1) is None
    assert not channel.withdraw_read()
    assert bench.counts(Op.READ) == {}


# The end.


def test_end_of_stream_comes_after_the_bytes_and_again_for_every_later_read(bench: Bench) -> None:
    channel, peer = bench.tcp()
    peer.sendall(b"last words")
    peer.shutdown(socket.SHUT_WR)
    channel.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    for _ in range(3):
        channel.post_read()
        bench.until(lambda: not channel.reading)
    assert bench.of("a") == ["received", "end", "end", "end", "end"]
    assert [channel.receive_now(10), channel.receive_now(10)] == [b"", b""]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.EOF: 6}


def test_writing_works_after_the_peer_ended_its_stream(bench: Bench) -> None:
    channel, peer = bench.tcp()
    channel.post_read()
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: bench.of("a") == ["end"])
    assert channel.submit_write(b"still here")
    channel.end_output()
    assert receive_all(peer) == b"still here"


def test_reset_with_unread_bytes_gives_the_bytes_first_then_the_error(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"before the reset")
    reset(peer)
    wait_for(channel.fd, select.POLLERR)
    channel.read_on()
    bench.until(lambda: "failed" in bench.of("a"))
    assert bench.journal == [("a", "received", b"before the reset"), ("a", "failed", errno.ECONNRESET)]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.RESET: 1}


def test_hangup_with_nothing_posted_is_told_to_the_next_read_and_never_spins(bench: Bench) -> None:
    channel, peer = bench.tcp()
    reset(peer)
    wait_for(channel.fd, select.POLLHUP)
    bench.settle()
    assert bench.journal == []
    channel.post_read()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "failed", errno.ECONNRESET)]
    bench.watcher.after(0.001, lambda: bench.journal.append(("timer", "fired", None)))
    turns = 0
    while len(bench.journal) < 2:
        bench.watcher.turn(None)
        turns += 1
    assert turns <= 3


def test_error_that_passes_strands_no_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive that failed used to count as "nothing there": no further edge came for the bytes that were."""
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"kept")
    channel.post_read()

    def fail(_swap: _sys.SwapBuffer, _fd: int, _start: int, _room: int) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(_sys.SwapBuffer, "receive", fail)
        bench.until(lambda: bench.journal)
    channel.post_read()
    bench.until(lambda: len(bench.journal) == 2)
    assert bench.journal == [("a", "failed", errno.ENOMEM), ("a", "received", b"kept")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.ERROR: 1}


def test_error_that_passes_strands_no_bytes_of_receive_now(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"kept")
    bench.until(lambda: channel.readable)

    def fail(_fd: int, _size: int) -> bytes | None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(_sys, "receive", fail)
        with pytest.raises(OSError) as raised:
            channel.receive_now(10)
    assert raised.value.errno == errno.ENOMEM
    assert channel.receive_now(10) == b"kept"


# Withdrawing.


def test_withdrawn_read_leaves_its_bytes_in_the_kernel(bench: Bench) -> None:
    channel, peer = bench.tcp()
    channel.post_read()
    assert channel.withdraw_read()
    assert not channel.withdraw_read()
    assert not channel.reading
    send_and_wait(peer, channel, b"abc")
    bench.settle()
    assert (bench.journal, channel.unread_in_kernel()) == ([], 3)
    channel.post_read()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"abc")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 1}


def test_withdrawn_when_on_the_agenda_loses_no_byte_and_posts_again_once(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"abc")
    bench.settle()
    channel.post_read(1)
    assert channel.withdraw_read()
    channel.post_read(2)
    assert channel.withdraw_read()
    bench.settle()
    assert channel.unread_in_kernel() == 3
    channel.post_read(1)
    assert channel.withdraw_read()
    channel.post_read(3)
    bench.until(lambda: bench.journal)
    bench.settle()
    assert bench.journal == [("a", "received", b"abc")]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.CANCELLED: 3}


def test_read_that_was_reaped_cannot_be_withdrawn_and_completes(bench: Bench) -> None:
    """The hook of the first completion of a batch asks for the second's read back."""
    (first, first_peer), (second, second_peer) = bench.tcp("first"), bench.tcp("second")
    answers: list[bool] = []
    first.then["received"] = lambda: answers.append(second.withdraw_read())
    for channel, peer in ((first, first_peer), (second, second_peer)):
        send_and_wait(peer, channel, b"x")
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
    for channel, peer in ((first, first_peer), (second, second_peer)):
        send_and_wait(peer, channel, b"abcd")
    bench.settle()
    first.post_read()
    second.post_read(2)
    bench.until(lambda: len(bench.journal) == 3)
    assert bench.journal[1:] == [("second", "received", b"ab"), ("second", "received", b"cd")]
    assert bench.counts(Op.READ) == {Outcome.OK: 3}


# Receiving at once.


def test_receive_now_waits_for_news_then_takes_what_is_there(bench: Bench) -> None:
    channel, peer = bench.tcp()
    assert channel.receive_now(10) is None
    send_and_wait(peer, channel, b"abcdef")
    bench.until(lambda: channel.readable)
    assert channel.receive_now(4) == b"abcd"
    assert channel.receive_now(4) == b"ef"
    assert channel.receive_now(4) is None
    channel.post_read()
    send_and_wait(peer, channel, b"more")
    bench.until(lambda: bench.journal)
    assert bench.journal == [("a", "received", b"more")]
    assert bench.counts(Op.READ) == {Outcome.OK: 3}
    assert bench.received_bytes == 10


def test_receive_now_after_exactly_all_finds_the_kernel_empty(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, b"abc")
    bench.until(lambda: channel.readable)
    assert channel.receive_now(3) == b"abc"  # A full receive proves nothing.
    assert channel.readable
    assert channel.receive_now(3) is None
    assert not channel.readable
    assert bench.counts(Op.READ) == {Outcome.OK: 1}


def test_receive_now_is_limited_in_a_turn_and_a_posted_read_goes_on(bench: Bench) -> None:
    """A handler that reads in a loop from a peer that always has more is to let the others have their turn."""
    channel, peer = bench.tcp()
    total = RECEIVES_PER_TURN_MAX + 5
    send_and_wait(peer, channel, bytes(total))
    bench.until(lambda: channel.readable)
    chunks = 0
    while channel.receive_now(1) is not None:
        chunks += 1
    assert chunks <= RECEIVES_PER_TURN_MAX
    channel.post_read()
    bench.until(lambda: bench.journal)
    assert len(channel.received) == total - chunks


def test_receive_now_has_its_share_again_in_every_turn(bench: Bench) -> None:
    channel, peer = bench.tcp()
    send_and_wait(peer, channel, bytes(3 * RECEIVES_PER_TURN_MAX))
    bench.until(lambda: channel.readable)
    for _ in range(2):
        bench.watcher.turn(0)
        assert [channel.receive_now(1) for _ in range(RECEIVES_PER_TURN_MAX)] == [b"\0"] * RECEIVES_PER_TURN_MAX
        assert channel.receive_now(1) is None


def test_receive_now_raises_what_killed_the_connection(bench: Bench) -> None:
    channel, peer = bench.tcp()
    reset(peer)
    bench.until(lambda: channel.readable)
    with pytest.raises(ConnectionResetError):
        channel.receive_now(10)
    assert bench.counts(Op.READ) == {Outcome.RESET: 1}


# The helpers that are public beside.


def test_unread_bytes_counts_what_waits(bench: Bench) -> None:
    channel, peer = bench.tcp()
    assert channel.unread_in_kernel() == 0
    send_and_wait(peer, channel, bytes(1234))
    assert channel.unread_in_kernel() == 1234


def test_local_address_is_our_end_and_leaves_the_descriptor_open(bench: Bench) -> None:
    channel, peer = bench.tcp()
    assert channel.local_address() == peer.getpeername()
    assert channel.local_address() == peer.getpeername()


def test_end_of_output_raises_when_the_peer_is_gone(bench: Bench) -> None:
    channel, peer = bench.tcp()
    reset(peer)
    wait_for(channel.fd, select.POLLHUP)
    with pytest.raises(OSError) as raised:
        channel.end_output()
    assert raised.value.errno == errno.ENOTCONN
    channel.post_read()  # The descriptor is still ours.
    bench.until(lambda: bench.journal)


def test_reset_on_close_shows_the_peer_a_reset(bench: Bench) -> None:
    channel, peer = bench.tcp()
    channel.reset_on_close()
    bench.watcher.free(channel)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_channel_counts_its_traffic_where_its_owner_says(bench: Bench) -> None:
    """Groups of channels count side by side, in cells that the owner lays out."""
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    group = 3  # Any two cells will do.
    channel = bench.adopt(ours, traffic=group)
    before = list(bench.watcher.cells[group : group + 2])
    channel.post_read()
    theirs.sendall(b"12345")
    bench.until(lambda: bench.journal)
    channel.submit_write(b"123")
    after = list(bench.watcher.cells[group : group + 2])
    assert [now - then for now, then in zip(after, before, strict=True)] == [5, 3]
    assert (bench.received_bytes, bench.sent_bytes) == (0, 0)
