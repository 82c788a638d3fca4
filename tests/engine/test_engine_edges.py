"""The traps of edge-triggered epoll: an edge that is missed, or taken for another, strands bytes for ever.

Between the poll and the receive of one turn run the timers: that is where these tests let the peer act "just then".
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from shardnet.watcher import _sys
from shardnet.watcher.counters import Op, Outcome
from tests.engine.kit import Bench, RecordingEndpoint, receive_exactly, reset, tcp_pair, wait_for, wait_unread

Pair = Callable[[Bench], tuple[RecordingEndpoint, socket.socket]]
over_both = pytest.mark.parametrize("pair", [Bench.tcp, Bench.unix], ids=["tcp", "unix"])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def between_poll_and_receive(bench: Bench, action: Callable[[], object]) -> None:
    """Run one turn in which `action` happens after the poll and before anything is received."""
    bench.engine.after(0.0, action)
    bench.engine.turn(0)


# The end of the stream.


@over_both
@pytest.mark.parametrize("posted_first", [True, False])
def test_end_that_comes_with_data_is_met_after_it(bench: Bench, pair: Pair, posted_first: bool) -> None:
    endpoint, peer = pair(bench)
    if posted_first:
        endpoint.read_on()
    peer.sendall(b"data")
    peer.shutdown(socket.SHUT_WR)
    wait_for(endpoint.fd, select.POLLIN | select.POLLRDHUP)
    bench.settle()
    if not posted_first:
        endpoint.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    assert bench.journal == [("a", "received", b"data"), ("a", "end", None)]
    assert bench.counts(Op.READ) == {Outcome.OK: 1, Outcome.EOF: 1}


@over_both
def test_end_that_comes_after_a_short_read_is_met(bench: Bench, pair: Pair) -> None:
    endpoint, peer = pair(bench)
    endpoint.read_on()
    peer.sendall(b"data")
    bench.until(lambda: bench.journal)
    bench.settle()
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: "end" in bench.of("a"))
    assert bench.of("a") == ["received", "end"]


@over_both
def test_end_that_comes_between_poll_and_receive_is_met(bench: Bench, pair: Pair) -> None:
    """The poll told of data alone, the receive comes back short, and the end is in the kernel already."""
    endpoint, peer = pair(bench)
    endpoint.read_on()
    bench.settle()
    peer.sendall(b"data")
    wait_for(endpoint.fd, select.POLLIN)

    def end() -> None:
        peer.shutdown(socket.SHUT_WR)
        wait_for(endpoint.fd, select.POLLRDHUP)

    between_poll_and_receive(bench, end)
    bench.until(lambda: "end" in bench.of("a"))
    assert bench.of("a") == ["received", "end"]


@over_both
def test_end_that_comes_while_the_hook_runs_is_met(bench: Bench, pair: Pair) -> None:
    endpoint, peer = pair(bench)

    def end_then_post() -> None:
        peer.shutdown(socket.SHUT_WR)
        wait_for(endpoint.fd, select.POLLRDHUP)
        endpoint.post_read()

    endpoint.then["received"] = end_then_post
    endpoint.post_read()
    peer.sendall(b"data")
    bench.until(lambda: "end" in bench.of("a"))
    assert bench.of("a") == ["received", "end"]


def test_end_of_a_peer_that_closes_wholly_leaves_the_bytes_readable(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    peer.sendall(b"all that I had to say")
    peer.close()
    wait_for(endpoint.fd, select.POLLRDHUP)
    endpoint.then["received"] = lambda: endpoint.post_read(5)
    endpoint.post_read(5)
    bench.until(lambda: "end" in bench.of("a"))
    assert endpoint.received == b"all that I had to say"


def test_half_close_of_both_ends_is_met_although_everything_hangs_up(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.submit_write(b"bye")
    endpoint.end_output()
    peer.sendall(b"bye")
    peer.shutdown(socket.SHUT_WR)
    wait_for(endpoint.fd, select.POLLHUP | select.POLLRDHUP)
    endpoint.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    assert bench.journal == [("a", "received", b"bye"), ("a", "end", None)]
    assert receive_exactly(peer, 3) == b"bye"


# Data.


@over_both
def test_data_that_comes_between_poll_and_receive_is_not_waited_for_again(bench: Bench, pair: Pair) -> None:
    """The receive takes it too; the edge that follows finds nothing, and the read posted for it goes on waiting."""
    endpoint, peer = pair(bench)
    endpoint.read_on()
    bench.settle()
    peer.sendall(b"one ")
    wait_for(endpoint.fd, select.POLLIN)

    def more() -> None:
        peer.sendall(b"two ")
        if peer.family == socket.AF_INET:
            wait_unread(endpoint.fd, 8)

    between_poll_and_receive(bench, more)
    bench.until_received(endpoint, b"one two ")
    bench.settle()
    peer.sendall(b"three")
    bench.until_received(endpoint, b"one two three")


@over_both
def test_read_that_takes_exactly_what_there_is_meets_what_comes_later(bench: Bench, pair: Pair) -> None:
    endpoint, peer = pair(bench)
    endpoint.then["received"] = lambda: endpoint.post_read(4)
    endpoint.post_read(4)
    for number in range(1, 50):
        peer.sendall(b"%4d" % number)
        bench.until(lambda number=number: len(endpoint.received) == 4 * number)  # type: ignore[misc]
        if number % 7 == 0:
            bench.settle()
    assert endpoint.received == b"".join(b"%4d" % number for number in range(1, 50))


@pytest.mark.parametrize("make_pair", [tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def test_data_and_end_that_came_before_the_endpoint_was_added_are_found(
    bench: Bench, make_pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    ours, theirs = make_pair()
    bench.keep(theirs)
    theirs.sendall(b"early")
    theirs.shutdown(socket.SHUT_WR)
    wait_for(ours, select.POLLIN | select.POLLRDHUP)
    endpoint = bench.adopt(ours, unix=ours.family == socket.AF_UNIX)
    endpoint.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    assert endpoint.received == b"early"


@pytest.mark.interpreted
def test_short_receive_spares_the_second_call_on_tcp(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law that the traps are exceptions to: one message, one receive."""
    endpoint, peer = bench.tcp()
    receives = 0
    receive = _sys.SwapBuffer.receive

    def counting(swap: _sys.SwapBuffer, fd: int, start: int, room: int) -> int:
        nonlocal receives
        receives += 1
        return receive(swap, fd, start, room)

    monkeypatch.setattr(_sys.SwapBuffer, "receive", counting)
    endpoint.read_on()
    expected = b""
    for urgent in (False, True):
        if urgent:  # Costs receives that find nothing, until one did; then the law holds again.
            peer.send(b"!", socket.MSG_OOB)
            peer.sendall(b"x")
            expected += b"x"
            bench.until_received(endpoint, expected)
            bench.settle()
        receives = 0
        for _ in range(20):
            peer.sendall(b"y")
            expected += b"y"
            bench.until_received(endpoint, expected)
            bench.settle()
        assert receives == 20


# Urgent data.


@pytest.mark.parametrize("posted_first", [True, False])
def test_bytes_behind_an_urgent_one_are_not_stranded(bench: Bench, posted_first: bool) -> None:
    """A receive stops at the urgent mark, short, with more behind it. Seen to strand them."""
    endpoint, peer = bench.tcp()
    if posted_first:
        endpoint.read_on()
        bench.settle()
    peer.sendall(b"before ")
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(b"behind")
    wait_for(endpoint.fd, select.POLLPRI)
    bench.settle()
    endpoint.read_on()
    bench.until_received(endpoint, b"before behind")
    peer.sendall(b" and on")
    bench.until_received(endpoint, b"before behind and on")


def test_urgent_byte_between_poll_and_receive_strands_nothing(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.read_on()
    bench.settle()
    peer.sendall(b"before ")
    wait_for(endpoint.fd, select.POLLIN)

    def urgent() -> None:
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"behind")
        wait_for(endpoint.fd, select.POLLPRI)

    between_poll_and_receive(bench, urgent)
    bench.until_received(endpoint, b"before behind")


def test_urgent_bytes_again_and_again_with_single_byte_reads(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.then["received"] = lambda: endpoint.post_read(3)
    endpoint.post_read(3)
    expected = b""
    for number in range(30):
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"%03d." % number)
        expected += b"%03d." % number
        if number % 3:
            bench.until_received(endpoint, expected)
    bench.until_received(endpoint, expected)
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: "end" in bench.of("a"))
    assert endpoint.received == expected


def test_urgent_byte_alone_completes_no_read(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.read_on()
    peer.send(b"!", socket.MSG_OOB)
    wait_for(endpoint.fd, select.POLLPRI)
    bench.settle()
    assert bench.journal == []
    assert endpoint.reading
    peer.sendall(b"plain")
    bench.until_received(endpoint, b"plain")


def test_end_behind_an_urgent_byte_is_met(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    endpoint.read_on()
    peer.sendall(b"data")
    peer.send(b"!", socket.MSG_OOB)
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: "end" in bench.of("a"))
    assert endpoint.received == b"data"


def test_receive_now_goes_past_the_urgent_mark(bench: Bench) -> None:
    endpoint, peer = bench.tcp()
    peer.sendall(b"before ")
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(b"behind")
    wait_for(endpoint.fd, select.POLLPRI)
    bench.until(lambda: endpoint.readable)
    assert endpoint.receive_now(100) == b"before "
    endpoint.read_on()
    bench.until_received(endpoint, b"behind")


# Unix sockets.


def test_messages_that_carry_descriptors_do_not_strand_what_is_behind_them(bench: Bench) -> None:
    """On a unix socket a receive stops, short, between messages that carry descriptors."""
    endpoint, peer = bench.unix()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [peer.fileno()]))]
    expected = b""
    endpoint.read_on()
    for _ in range(3):  # Also when the kernel was seen empty before.
        for data in (b"one ", b"two ", b"three"):
            peer.sendmsg([data], rights)
        peer.sendall(b" plain")
        expected += b"one two three plain"
        bench.until_received(endpoint, expected)
        bench.settle()
    assert bench.journal[0] == ("a", "received", b"one ")  # It is as the docstring says.


def test_unix_receive_now_stops_between_messages_and_goes_on(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [peer.fileno()]))]
    for data in (b"one", b"two"):
        peer.sendmsg([data], rights)
    bench.until(lambda: endpoint.readable)
    assert [endpoint.receive_now(100) for _ in range(3)] == [b"one", b"two", None]


def test_unix_peer_that_closes_with_unread_bytes_is_a_reset_after_its_data(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    endpoint.submit_write(b"never read")
    peer.sendall(b"data")
    peer.close()
    endpoint.read_on()
    bench.until(lambda: len(bench.of("a")) == 2)
    # The kernel tells of the reset first, once; what the peer had sent is there all the same.
    endpoint.read_on()
    bench.until(lambda: "end" in bench.of("a"))
    assert ("a", "failed", errno.ECONNRESET) in bench.journal
    assert endpoint.received == b"data"


# Both directions.


def test_reset_wakes_both_directions(bench: Bench) -> None:
    endpoint, peer = bench.tcp(buffer_bytes=4096)
    while endpoint.submit_write(bytes(65536)):
        pass
    endpoint.post_read()
    reset(peer)
    bench.until(lambda: "failed" in bench.of("a") and not endpoint.reading)
    assert bench.count(Op.WRITE, Outcome.RESET) == 1
    assert sum(bench.counts(Op.READ).values()) == 1


def test_freed_descriptor_that_somebody_else_holds_fires_no_more(bench: Bench) -> None:
    """epoll knows open files, not numbers: one that is closed here and open elsewhere goes on firing, and its events
    would go to whoever has the number now."""
    endpoint, peer = bench.tcp()
    number = endpoint.fd
    held = os.dup(number)
    try:
        ours, theirs = tcp_pair()
        bench.keep(theirs)
        bench.engine.free(endpoint)
        os.dup2(ours.fileno(), number)
        ours.close()
        heir = bench.adopt(socket.socket(fileno=number), "heir")
        peer.sendall(b"x")
        wait_for(held, select.POLLIN)
        bench.settle()
        assert (heir.fd, heir.readable) == (number, False)
    finally:
        os.close(held)
    assert bench.journal == []
