"""Promise 18: the kernel gives the number of a closed descriptor to the next; what was meant for the old is not told to
the new."""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable

import pytest

from shardnet.watcher import Channel, ConnectionFreed, DeadlineExceeded, Op
from tests.engine.kit import reset, tcp_pair, wait_unread
from tests.watcher.elsewhere import copy_at, is_open, successor
from tests.watcher.kit import Bench


def waiting(bench: Bench) -> tuple[socket.socket, socket.socket, int]:
    """A connection that the watcher polls for a read, its peer, and its number."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours, ctx="old")
    bench.none()
    return ours, theirs, number


def successor_of(bench: Bench, number: int) -> tuple[socket.socket, socket.socket]:
    """A connection with this number, which must be free, and its peer."""
    ours, theirs = successor(number)
    return bench.keep(ours), bench.keep(theirs)


def send(theirs: socket.socket, number: int) -> None:
    theirs.sendall(b"old bytes")
    wait_unread(number, 9)


def send_and_end(theirs: socket.socket, number: int) -> None:
    send(theirs, number)
    theirs.close()


def end(theirs: socket.socket, number: int) -> None:
    theirs.shutdown(socket.SHUT_WR)


def break_off(theirs: socket.socket, number: int) -> None:
    reset(theirs)


@pytest.fixture(params=[send, send_and_end, end, break_off])
def happen(request: pytest.FixtureRequest) -> Callable[[socket.socket, int], None]:
    what: Callable[[socket.socket, int], None] = request.param
    return what


def test_events_that_nobody_has_fetched_do_not_reach_the_successor(
    bench: Bench, happen: Callable[[socket.socket, int], None]
) -> None:
    ours, theirs, number = waiting(bench)
    happen(theirs, number)
    bench.watcher.free(ours)
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    answer = bench.one()
    assert (answer.ctx, type(answer.error), answer.conn) == ("old", ConnectionFreed, ours)
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def test_completion_that_waits_stays_the_old_ones(bench: Bench, happen: Callable[[socket.socket, int], None]) -> None:
    """It was complete before the number changed hands, and is handed out afterwards."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.write(ours, b"x", ctx="old")
    happen(theirs, number)
    bench.watcher.free(ours)
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    answer = bench.one()
    assert answer[:5] == (Op.WRITE, "old", ours, b"x", None)
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def test_swap_bytes_that_wait_stay_the_old_ones(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    send(theirs, number)
    bench.watcher.read(ours, ctx="old")
    bench.watcher.free(ours)
    new, peer = successor_of(bench, number)
    peer.sendall(b"new bytes")
    wait_unread(number, 9)
    bench.watcher.read(new, ctx="new")
    old, young = bench.collect(2)
    assert old[1:5] == ("old", ours, b"old bytes", None)
    assert young[1:5] == ("new", new, b"new bytes", None)


def test_number_that_changes_hands_inside_a_batch(bench: Bench) -> None:
    """Two complete at once; handling the first closes the second, whose number goes on at once."""
    first, first_peer = bench.tcp()
    second, second_peer = bench.tcp()
    numbers = first.fileno(), second.fileno()
    bench.watcher.read(first, ctx="first")
    bench.watcher.read(second, ctx="second")
    bench.none()
    for peer, number in zip((first_peer, second_peer), numbers, strict=True):
        peer.sendall(b"bytes")
        wait_unread(number, 5)
    completions = bench.watcher.wait_io()
    assert {completion.ctx for completion in completions} == {"first", "second"}
    bench.watcher.read(second, ctx="behind")
    bench.watcher.free(second)
    new, new_peer = successor_of(bench, numbers[1])
    bench.watcher.read(new, ctx="new")
    assert {completion.ctx: completion.conn for completion in completions} == {"first": first, "second": second}
    assert [bytes(completion.data) for completion in completions] == [b"bytes"] * 2
    answer = bench.one()
    assert (answer.ctx, type(answer.error), answer.conn) == ("behind", ConnectionFreed, second)
    new_peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def test_work_that_a_turn_has_left_over_is_not_done_on_the_successor(bench: Bench) -> None:
    """More operations wait than a turn carries out, in both directions: the rest stands in line by then."""
    ours, theirs = bench.unix()
    number = ours.fileno()
    for index in range(100):
        bench.watcher.read(ours, bytearray(1), ctx=index)
    bench.none()
    theirs.sendall(bytes(100))
    done = len(bench.watcher.wait_io())
    assert 0 < done < 100
    bench.watcher.free(ours)
    new, peer = successor_of(bench, number)
    peer.sendall(b"new")
    wait_unread(number, 3)
    buffer = bytearray(3)
    bench.watcher.read_full(new, buffer, ctx="new")
    answers = bench.collect(100 - done + 1)
    assert [answer.ctx for answer in answers] == [*range(done, 100), "new"]
    assert {type(answer.error) for answer in answers[:-1]} == {ConnectionFreed}
    assert {answer.conn for answer in answers[:-1]} == {ours}
    assert (answers[-1].data, answers[-1].conn) == (b"new", new)
    bench.none()


def test_number_that_changes_hands_in_a_later_turn(bench: Bench) -> None:
    ours, theirs, number = waiting(bench)
    send(theirs, number)
    assert bench.one()[1:4] == ("old", ours, b"old bytes")
    bench.watcher.free(ours)
    bench.none()
    new, peer = successor_of(bench, number)
    theirs.close()
    bench.watcher.read(new, ctx="new")
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")
    bench.watcher.read(ours)
    answer = bench.one()
    assert (type(answer.error), answer.conn) == (ConnectionFreed, ours)


def test_number_that_changes_hands_again_and_again(bench: Bench) -> None:
    """Every connection hears its own bytes, once, whatever stage its predecessor was in."""
    number = bench.tcp()[0].fileno()
    first = True
    for index in range(60):
        if first:
            ours, theirs, number = waiting(bench)
            first = False
        else:
            ours, theirs = successor_of(bench, number)
            bench.watcher.read(ours, ctx="old")
        if index % 3 == 1:
            bench.none()
        theirs.sendall(index.to_bytes(1, "big"))
        if index % 3 == 2:
            bench.watcher.free(ours)
            answer = bench.one()
            assert (type(answer.error), answer.conn) == (ConnectionFreed, ours)
        else:
            assert bench.one()[2:5] == (ours, index.to_bytes(1, "big"), None)
            bench.watcher.free(ours)
    bench.none()


def test_copy_of_the_old_one_that_somebody_else_holds_does_not_reach_the_successor(bench: Bench) -> None:
    """The kernel polls what a number stood for until every copy of it is closed."""
    ours, theirs, number = waiting(bench)
    copy = os.dup(number)
    try:
        bench.watcher.free(ours)
        assert bench.one().conn is ours
        new, peer = successor_of(bench, number)
        bench.watcher.read(new, ctx="new")
        bench.none()
        send(theirs, copy)
        bench.none()
        theirs.close()
        bench.none()
        peer.sendall(b"new bytes")
        assert bench.one()[1:4] == ("new", new, b"new bytes")
    finally:
        os.close(copy)


def test_deadline_of_the_old_one_does_not_reach_the_successor(bench: Bench) -> None:
    ours, _ = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours, ctx="old", timeout=0.01)
    bench.watcher.write(ours, bytes(1 << 24), ctx="old", timeout=0.01)
    bench.watcher.free(ours)
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    bench.watcher.sleep(0.02)
    answers = bench.collect(3)
    assert [type(answer.error) for answer in answers] == [ConnectionFreed, ConnectionFreed, type(None)]
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def test_number_of_a_connect_that_did_not_come_about_goes_on(bench: Bench) -> None:
    full = bench.listener(backlog=0)
    bench.keep(socket.create_connection(full.getsockname()))
    nobody = bench.keep(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    probe, number = tcp_number()
    probe.close()
    bench.watcher.connect(full.getsockname(), timeout=0)
    assert isinstance(bench.one().error, DeadlineExceeded)
    assert not is_open(number)
    bench.watcher.connect(nobody.getsockname())
    assert isinstance(bench.one().error, ConnectionRefusedError)
    assert not is_open(number)
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def tcp_number() -> tuple[socket.socket, int]:
    """A socket with the number that the next one would have got."""
    sock = socket.socket()
    return sock, sock.fileno()


def test_number_of_a_detached_connection_is_its_owners(bench: Bench) -> None:
    """It comes back as a new connection with the old number, and what was asked of the old object is refused."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours, timeout=0)
    bench.one()
    again = bench.keep(bench.watcher.detach(ours))
    assert again.fileno() == number
    bench.watcher.read(again, ctx="new")
    bench.watcher.read(ours, ctx="old")
    answer = bench.one()
    assert (answer.ctx, answer.conn) == ("old", ours)
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EBADF
    bench.watcher.free(ours)
    bench.none()
    theirs.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", again, b"new bytes")


def test_number_of_a_connection_that_nobody_held_goes_on(bench: Bench) -> None:
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    number = ours.fileno()
    bench.watcher.read(ours)
    bench.none()
    theirs.sendall(b"x")
    bench.one()
    theirs.sendall(b"unread")
    wait_unread(number, 6)
    with pytest.warns(ResourceWarning, match="dropped"):
        del ours
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")


def test_number_of_a_listener_goes_to_a_connection_and_back(bench: Bench) -> None:
    listener = bench.listener()
    number = listener.fileno()
    bench.watcher.accept(listener, ctx="old")
    bench.none()
    client = bench.keep(socket.create_connection(listener.getsockname()))
    bench.watcher.free(listener)
    listener.close()
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    answer = bench.one()
    assert (answer.ctx, type(answer.error)) == ("old", ConnectionFreed)
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")

    bench.watcher.free(new)
    with bench.listener() as fresh:
        again = bench.keep(fresh if fresh.fileno() == number else copy_at(fresh, number))
        bench.watcher.accept(again, ctx="accept")
        bench.none()
        bench.keep(socket.create_connection(again.getsockname()))
        answer = bench.one()
        assert answer.ctx == "accept"
        assert isinstance(answer.conn, Channel)
        bench.watcher.free(answer.conn)
    client.close()


def test_number_of_a_listener_that_rests_goes_to_a_connection_when_its_user_closed_it(bench: Bench) -> None:
    """Nothing waits on it, so nothing is to be freed; yet it was polled a moment ago."""
    listener = bench.listener()
    number = listener.fileno()
    bench.watcher.accept(listener, timeout=0)
    bench.watcher.accept(listener)
    bench.keep(socket.create_connection(listener.getsockname()))
    answers = bench.collect(2)
    channel = answers[1].conn
    assert isinstance(channel, Channel)
    listener.close()
    new, peer = successor_of(bench, number)
    bench.watcher.read(new, ctx="new")
    bench.none()
    peer.sendall(b"new bytes")
    assert bench.one()[1:4] == ("new", new, b"new bytes")
    bench.watcher.free(channel)


@pytest.mark.filterwarnings("ignore:a connection:ResourceWarning")
@pytest.mark.parametrize("free", [True, False], ids=["freed", "dropped"])
def test_new_object_at_the_address_of_an_old_one_is_not_taken_for_it(bench: Bench, free: bool) -> None:
    """Not only numbers are used again: so is memory, and with it an object's identity."""
    identities: set[int] = set()
    for count in range(300):
        if count > 50 and len(identities) < count:
            break  # One came twice.
        ours, theirs = tcp_pair()
        bench.keep(theirs)
        identities.add(id(ours))
        bench.watcher.write(ours, b"x")
        answer = bench.one()
        assert answer.error is None
        assert answer.conn is ours
        if free:
            bench.watcher.free(ours)
        assert theirs.recv(1) == b"x"
        theirs.close()
        del ours, answer
    gc.collect()
    assert bench.watcher.statistics().connections == 0
    if len(identities) > count:
        pytest.skip("this interpreter used no address twice")
