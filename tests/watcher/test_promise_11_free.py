"""Promise 11: `free` ends a connection here and now, whatever it is and whatever waits on it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest

from shardnet.watcher import Channel, ConnectionFreed, Op, Watcher
from tests.engine.kit import wait_unread
from tests.watcher.elsewhere import at_end, copy_at, is_open, no_descriptors_left, successor
from tests.watcher.kit import ENGINES, Bench


def test_free_completes_what_waits_reads_first_and_in_order(bench: Bench) -> None:
    ours, _theirs = bench.tcp(4096)
    big = bytes(1 << 20)
    bench.watcher.write(ours, big, ctx="w0")
    bench.watcher.read(ours, ctx="r0")
    bench.watcher.write(ours, b"x", ctx="w1", timeout=60)
    bench.watcher.read_full(ours, bytearray(4), ctx="r1")
    bench.watcher.read(ours, bytearray(4), ctx="r2", timeout=60)
    bench.watcher.write(ours, b"y", ctx="w2")
    bench.none()
    bench.watcher.free(ours)
    answers = bench.collect(6)
    assert [answer.ctx for answer in answers] == ["r0", "r1", "r2", "w0", "w1", "w2"]
    assert {type(answer.error) for answer in answers} == {ConnectionFreed}
    assert all(answer.conn is ours for answer in answers)
    assert 0 < answers[3].size < len(big)
    assert [answer.size for answer in answers if answer.ctx != "w0"] == [0] * 5
    bench.none()
    said = bench.watcher.statistics()
    assert (said.completed_cancelled, said.deadlines, said.connections) == (6, 0, 0)


def test_free_completes_more_than_a_turn_does_for_one_connection(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    for index in range(300):
        bench.watcher.read(ours, ctx=index)
    bench.watcher.free(ours)
    answers = bench.collect(300)
    assert [answer.ctx for answer in answers] == list(range(300))
    assert {type(answer.error) for answer in answers} == {ConnectionFreed}


def test_connection_freed_is_a_connection_error() -> None:
    assert issubclass(ConnectionFreed, ConnectionError)


def test_free_says_how_much_a_read_full_had(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"abc")
    wait_unread(ours.fileno(), 3)
    bench.watcher.read_full(ours, bytearray(10))
    bench.watcher.free(ours)
    answer = bench.one()
    assert (type(answer.error), answer.size, answer.data) == (ConnectionFreed, 3, b"abc")


def test_free_comes_behind_what_has_completed_before(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.write(ours, b"hello", ctx="done")
    bench.watcher.read(ours, ctx="waits")
    bench.watcher.free(ours)
    done, waits = bench.collect(2)
    assert (done.ctx, done.error, done.size) == ("done", None, 5)
    assert (waits.ctx, type(waits.error)) == ("waits", ConnectionFreed)
    assert theirs.recv(10, socket.MSG_WAITALL) == b"hello"


def test_free_closes_at_once(bench: Bench) -> None:
    """Before any `wait_io`: the peer sees the end, and the number is the kernel's."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours)
    bench.none()
    bench.watcher.free(ours)
    assert not is_open(number)
    assert at_end(theirs)
    bench.keep(copy_at(theirs, number))
    assert type(bench.one().error) is ConnectionFreed


def test_free_resets_a_peer_whose_bytes_nobody_read(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.write(ours, b"x")
    assert bench.one().error is None
    assert theirs.recv(1) == b"x"
    theirs.sendall(b"unread")
    wait_unread(number, 6)
    bench.watcher.free(ours)
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)


def test_free_closes_an_accepted_channel(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    number = channel.fileno()
    bench.watcher.read(channel)
    bench.watcher.free(channel)
    assert not is_open(number)
    assert at_end(theirs)
    assert channel.fileno() == -1
    answer = bench.one()
    assert answer.conn is channel
    assert type(answer.error) is ConnectionFreed


def test_operations_after_free_complete_with_connection_freed(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    channel, _peer = bench.accepted()
    bench.watcher.read(ours, timeout=0)
    bench.one()
    for conn in (ours, channel):
        bench.watcher.free(conn)
        buffer = bytearray(4)
        bench.watcher.write(conn, b"x", ctx=0)
        bench.watcher.read(conn, ctx=1)
        bench.watcher.read(conn, buffer, ctx=2, timeout=0)
        bench.watcher.read_full(conn, buffer, ctx=3, timeout=60)
        answers = bench.collect(4)
        assert [answer.ctx for answer in answers] == [0, 1, 2, 3]
        assert [answer.op for answer in answers] == [Op.WRITE, Op.READ, Op.READ, Op.READ]
        assert {(type(answer.error), answer.size, answer.conn) for answer in answers} == {(ConnectionFreed, 0, conn)}
        buffer.append(1)  # Nobody holds it any more.
        assert bench.watcher.statistics().deadlines == 0


def test_free_gives_buffers_back(bench: Bench) -> None:
    ours, _theirs = bench.tcp(4096)
    taken, given = bytearray(10), bytearray(1 << 20)
    bench.watcher.read(ours, taken)
    bench.watcher.write(ours, given)
    bench.watcher.free(ours)
    taken.append(1)
    given.append(1)
    bench.collect(2)


def test_free_twice_is_silent(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    channel, _peer = bench.accepted()
    bench.watcher.read(ours)
    for conn in (ours, channel):
        bench.watcher.free(conn)
        bench.watcher.free(conn)
    assert type(bench.one().error) is ConnectionFreed
    bench.watcher.free(ours)
    bench.none()
    assert bench.watcher.statistics().submitted == 2  # The accept, and the read.


def test_free_twice_spares_who_has_the_number_now(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours, timeout=0)
    bench.one()
    bench.watcher.free(ours)
    _, peer = map(bench.keep, successor(number))
    bench.watcher.free(ours)
    assert is_open(number)
    assert at_end(theirs)
    peer.sendall(b"to nobody")


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "unix datagram"])
def test_free_closes_a_connection_that_was_never_used(bench: Bench, kind: str) -> None:
    match kind:
        case "tcp":
            ours, theirs = bench.tcp()
        case "unix":
            ours, theirs = bench.unix()
        case "udp":
            ours = theirs = bench.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        case _:
            ours, theirs = map(bench.keep, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    number = ours.fileno()
    bench.watcher.free(ours)
    assert not is_open(number)
    assert ours.fileno() == -1
    if kind in ("tcp", "unix"):
        assert at_end(theirs)
    bench.watcher.free(ours)
    bench.none()


def test_free_closes_a_tls_socket(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrapped = context.wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False)
    bench.keep(wrapped)
    number = wrapped.fileno()
    bench.watcher.free(wrapped)
    assert not is_open(number)
    assert at_end(theirs)
    bench.watcher.free(wrapped)
    bench.none()


def test_operation_on_a_connection_that_was_freed_before_its_first_completes_with_connection_freed(
    bench: Bench,
) -> None:
    ours, _theirs = bench.tcp()
    bench.watcher.free(ours)
    bench.watcher.read(ours)
    assert type(bench.one().error) is ConnectionFreed


def test_free_is_silent_for_a_connection_that_its_user_closed(bench: Bench) -> None:
    ours, _theirs = bench.tcp()
    ours.close()
    bench.watcher.free(ours)
    bench.watcher.free(ours)
    bench.none()


def test_free_spares_what_was_detached(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, timeout=0)
    bench.one()
    again = bench.keep(bench.watcher.detach(ours))
    bench.watcher.free(ours)
    again.sendall(b"alive")
    assert theirs.recv(5, socket.MSG_WAITALL) == b"alive"


def test_free_of_a_listener_completes_its_accepts_and_leaves_it_open(bench: Bench) -> None:
    listener = bench.listener()
    for index in range(3):
        bench.watcher.accept(listener, ctx=index, timeout=60 if index else None)
    bench.none()
    bench.watcher.free(listener)
    answers = bench.collect(3)
    assert [answer.ctx for answer in answers] == [0, 1, 2]
    assert {(answer.op, type(answer.error), answer.conn) for answer in answers} == {(Op.ACCEPT, ConnectionFreed, None)}
    for _ in range(3):
        bench.watcher.free(listener)
        assert listener.fileno() >= 0
    bench.none()

    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    listener.settimeout(20)
    accepted, address = listener.accept()
    bench.keep(accepted)
    assert address == theirs.getsockname()


def test_listener_accepts_again_after_it_was_freed(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    bench.none()
    bench.watcher.free(listener)
    assert type(bench.one().error) is ConnectionFreed
    bench.watcher.accept(listener)
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    conn = bench.one().conn
    assert isinstance(conn, Channel)
    assert conn.peer == theirs.getsockname()
    bench.watcher.free(conn)


def test_free_leaves_a_listener_open_that_was_never_used(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.free(listener)
    bench.watcher.free(listener)
    bench.keep(socket.create_connection(listener.getsockname()))
    bench.keep(listener.accept()[0])


def test_free_of_a_listener_that_rests_lets_its_number_go(bench: Bench) -> None:
    """The law: after `free` its owner may close it, and whoever gets the number has nothing to do with it."""
    listener = bench.listener()
    number = listener.fileno()
    bench.keep(socket.create_connection(listener.getsockname()))
    with no_descriptors_left():
        bench.watcher.accept(listener)
        assert isinstance(bench.one().error, OSError)
    bench.watcher.accept(listener)
    bench.watcher.free(listener)
    assert type(bench.one().error) is ConnectionFreed
    listener.close()

    ours, theirs = map(bench.keep, successor(number))
    bench.watcher.read(ours)
    bench.watcher.sleep(0.3)  # Longer than it would have rested.
    assert bench.one().op is Op.TIMER
    theirs.sendall(b"x")
    assert bench.one()[2:4] == (ours, b"x")


def test_free_refuses_a_channel_of_another_watcher(bench: Bench, engine: str) -> None:
    """To close it would be to close what another watcher has in its hands."""
    ours, theirs = bench.accepted()
    with Watcher(**ENGINES[engine]) as other, pytest.raises(ValueError, match="another watcher"):
        other.free(ours)
    bench.watcher.write(ours, b"alive")
    assert bench.one().error is None
    assert theirs.recv(5, socket.MSG_WAITALL) == b"alive"
    bench.watcher.free(ours)


def test_free_spares_a_socket_that_another_watcher_has_taken_over(bench: Bench, engine: str) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    bench.none()
    with Watcher(**ENGINES[engine]) as other:
        other.free(ours)
    theirs.sendall(b"alive")
    assert bench.one().data == b"alive"


@pytest.mark.parametrize("what", [None, 3, "conn", object(), b""], ids=repr)
def test_free_raises_type_error_for_what_is_no_socket(bench: Bench, what: Any) -> None:
    with pytest.raises(TypeError):
        bench.watcher.free(what)
    bench.none()


def test_free_is_silent_after_the_watcher_was_closed(bench: Bench) -> None:
    used, _peer = bench.tcp()
    unused, theirs = bench.tcp()
    channel, _other = bench.accepted()
    bench.watcher.read(used)
    bench.watcher.close()
    for conn in (used, channel, unused):
        bench.watcher.free(conn)
        bench.watcher.free(conn)
    assert at_end(theirs)
    assert len(bench.watcher.wait_io()) == 1


def test_free_of_many_leaves_no_descriptor(bench: Bench) -> None:
    pairs = [bench.unix() for _ in range(50)]
    for ours, _ in pairs:
        bench.watcher.read(ours)
    assert bench.watcher.statistics().connections == 50
    for ours, _ in pairs:
        bench.watcher.free(ours)
    assert bench.watcher.statistics().connections == 0
    assert all(at_end(theirs) for _, theirs in pairs)
    answers = bench.collect(50)
    assert [answer.conn for answer in answers] == [ours for ours, _ in pairs]
