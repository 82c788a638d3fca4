"""Delegation: the first operation on a socket takes it over; `free` and `detach` alone end that."""

from __future__ import annotations

import errno
import gc
import os
import socket
import ssl
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardnet.watcher import Channel, ConnectionFreed, Op
from tests.engine.kit import open_fds, receive_all, receive_exactly
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import FREEABLE, WAITING, full, hold

CERTIFICATE = Path(__file__).resolve().parents[1] / "ecosystem" / "localhost.pem"

TAKE_OVER: dict[str, Callable[[Bench, socket.socket], object]] = {
    "read": lambda b, c: b.watcher.read(c),
    "read_full": lambda b, c: b.watcher.read_full(c, bytearray(1)),
    "write": lambda b, c: b.watcher.write(c, b"."),
    "write_that_waits": lambda b, c: b.watcher.write(c, bytes(1 << 22)),
}


# Taking over.


@pytest.mark.parametrize("first", TAKE_OVER)
def test_socket_is_dead_to_its_user_after_the_first_operation(bench: Bench, first: str) -> None:
    ours, _ = bench.tcp()
    TAKE_OVER[first](bench, ours)
    assert ours.fileno() == -1
    calls: list[Callable[[], object]] = [
        lambda: ours.recv(1),
        lambda: ours.recv_into(bytearray(1)),
        lambda: ours.send(b"x"),
        lambda: ours.sendall(b"x"),
        lambda: ours.shutdown(socket.SHUT_RDWR),
        lambda: ours.getpeername(),
        lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_watcher_takes_the_descriptor_itself_and_no_copy(bench: Bench) -> None:
    ours, _ = bench.tcp()
    before = open_fds()
    bench.watcher.read(ours)
    assert open_fds() == before


def test_same_object_stays_the_key(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    theirs.sendall(b"one")
    first = bench.one()
    assert first.conn is ours
    bench.watcher.write(first.conn, b"two")
    assert bench.one().conn is ours
    assert receive_exactly(theirs, 3) == b"two"
    bench.watcher.read_full(ours, bytearray(5))
    theirs.sendall(b"three")
    assert bench.one().conn is ours
    assert bench.watcher.statistics().connections == 1


def test_failed_operation_carries_the_same_object(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.close()
    bench.watcher.read(ours)
    bench.watcher.write(ours, b"x")
    bench.watcher.free(ours)
    bench.watcher.read(ours)
    answers = bench.collect(3)
    assert all(answer.error is not None for answer in answers)
    assert all(answer.conn is ours for answer in answers)


def test_channel_is_the_key_of_what_the_watcher_has_accepted(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    assert channel.fileno() >= 0
    assert channel.peer == theirs.getsockname()
    bench.watcher.write(channel, b"hello")
    assert bench.one().conn is channel
    assert receive_exactly(theirs, 5) == b"hello"
    bench.watcher.free(channel)
    assert channel.fileno() == -1


def test_channel_is_the_key_of_what_the_watcher_has_connected(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.connect(listener.getsockname())
    answer = bench.one()
    channel = hold(bench, answer.conn)
    assert answer.op is Op.CONNECT
    assert channel.peer == listener.getsockname()
    theirs = bench.keep(listener.accept()[0])
    bench.watcher.read(channel)
    theirs.sendall(b"hello")
    assert bench.one()[2:4] == (channel, b"hello")


@pytest.mark.parametrize("timeout", [None, 0.0, 7.5])
def test_socket_may_have_any_timeout_when_it_is_taken_over(bench: Bench, timeout: float | None) -> None:
    ours, theirs = bench.tcp()
    ours.settimeout(timeout)
    bench.watcher.read(ours)
    bench.none()
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_socket_options_survive(bench: Bench) -> None:
    ours, _ = bench.tcp()
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_RCVBUF),
        (socket.SOL_SOCKET, socket.SO_LINGER),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    ]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    ours.set_inheritable(True)
    before = [ours.getsockopt(level, option, 16) for level, option in options]
    bench.watcher.write(ours, b"x")
    bench.one()
    back = bench.keep(bench.watcher.detach(ours))
    assert [back.getsockopt(level, option, 16) for level, option in options] == before
    assert back.get_inheritable()


# What is not taken over.


def test_tls_socket_is_refused_and_still_works(bench: Bench) -> None:
    ours, theirs = bench.unix()
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server.load_cert_chain(CERTIFICATE)
    theirs.settimeout(20)
    with ThreadPoolExecutor(1) as pool:
        shaking = pool.submit(server.wrap_socket, theirs, server_side=True)
        with client.wrap_socket(ours) as tls, shaking.result() as peer:
            for take_over in TAKE_OVER.values():
                with pytest.raises(TypeError, match="TLS"):
                    take_over(bench, tls)
            for call in (bench.watcher.detach, bench.watcher.accept):
                with pytest.raises(TypeError, match="TLS"):
                    call(tls)
            assert tls.gettimeout() is None
            tls.sendall(b"still secret")
            assert peer.recv(100) == b"still secret"
            peer.sendall(b"answer")
            assert tls.recv(100) == b"answer"


def test_closed_socket_gives_ebadf_again_and_again(bench: Bench) -> None:
    ours, _ = bench.tcp()
    ours.close()
    for _ in range(2):
        bench.watcher.read(ours)
        bench.watcher.write(ours, b"x")
    for answer in bench.collect(4):
        assert isinstance(answer.error, OSError)
        assert answer.error.errno == errno.EBADF
        assert answer.conn is ours
    assert bench.watcher.statistics().connections == 0


def test_listener_is_borrowed_and_never_closed(bench: Bench) -> None:
    listener = bench.listener()
    fd = listener.fileno()
    bench.watcher.accept(listener)
    assert listener.fileno() == fd
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    answer = bench.one()
    channel = hold(bench, answer.conn)
    assert channel.peer == theirs.getsockname()
    assert channel.local == listener.getsockname()
    assert listener.fileno() == fd
    ends: list[Callable[[], object]] = [lambda: bench.watcher.free(listener), bench.watcher.close]
    for end in ends:
        bench.watcher.accept(listener)
        end()
        answer = bench.one()
        assert (answer.op, answer.conn) == (Op.ACCEPT, None)
        # It still listens, and its user may accept on it.
        late = bench.keep(socket.create_connection(listener.getsockname()))
        mine = bench.keep(listener.accept()[0])
        assert mine.getpeername() == late.getsockname()


def test_listener_is_freed_again_and_again_and_never_closed(bench: Bench) -> None:
    listener = bench.listener()
    for _ in range(3):
        bench.watcher.free(listener)
    bench.watcher.accept(listener)
    bench.keep(socket.create_connection(listener.getsockname()))
    hold(bench, bench.one().conn)
    bench.watcher.free(listener)
    assert listener.fileno() >= 0
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_listener_that_accepts_is_not_given_back_as_if_it_were_the_watchers(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    with pytest.raises(ValueError, match=r"pending|listener"):
        bench.watcher.detach(listener)
    assert listener.fileno() >= 0
    bench.keep(socket.create_connection(listener.getsockname()))
    answer = bench.one()
    assert answer.error is None
    hold(bench, answer.conn)


def test_listener_serves_two_watchers(bench: Bench, engine: str) -> None:
    listener = bench.listener()
    peers = [bench.keep(socket.create_connection(listener.getsockname())) for _ in range(2)]
    bench.watcher.accept(listener)
    channels = [hold(bench, bench.one().conn)]
    with Bench(engine) as other:
        other.watcher.accept(listener)
        channels.append(hold(other, other.one().conn))
        assert [channel.peer for channel in channels] == [peer.getsockname() for peer in peers]


# Closing.


def test_close_of_the_socket_object_does_nothing(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, ctx="before")
    ours.close()
    ours.close()
    bench.none()
    theirs.sendall(b"x")
    assert bench.one()[1:4] == ("before", ours, b"x")
    bench.watcher.write(ours, b"after")
    assert bench.one().error is None
    assert receive_exactly(theirs, 5) == b"after"


def test_socket_object_may_leave_its_with_block(bench: Bench) -> None:
    ours, theirs = bench.unix()
    with ours:
        bench.watcher.read(ours)
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_free_closes_the_connection(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.write(ours, b"goodbye")
    before = open_fds()
    bench.watcher.free(ours)
    assert len(before - open_fds()) == 1
    assert receive_all(theirs) == b"goodbye"
    bench.one()


# Giving back.


@pytest.mark.parametrize("timeout", [None, 0.0, 7.5])
def test_detach_returns_a_new_socket_with_the_timeout_of_the_old(bench: Bench, timeout: float | None) -> None:
    ours, theirs = bench.tcp()
    ours.settimeout(timeout)
    fd, peer = ours.fileno(), ours.getpeername()
    bench.watcher.write(ours, b"x")
    bench.one()
    back = bench.keep(bench.watcher.detach(ours))
    assert back is not ours
    assert type(back) is socket.socket
    assert (back.fileno(), ours.fileno()) == (fd, -1)
    assert (back.family, back.type, back.getpeername()) == (socket.AF_INET, socket.SOCK_STREAM, peer)
    assert back.gettimeout() == timeout
    assert os.get_blocking(fd) == (timeout is None)
    assert receive_exactly(theirs, 1) == b"x"
    back.sendall(b"mine again")
    assert receive_exactly(theirs, 10) == b"mine again"


def test_detach_leaves_what_was_not_read_in_the_stream(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"for the watcher, for me")
    bench.watcher.read_full(ours, bytearray(17))
    bench.one()
    back = bench.keep(bench.watcher.detach(ours))
    assert receive_exactly(back, 6) == b"for me"


def test_detach_of_a_socket_that_was_never_used_here_takes_it_over_and_gives_it_back(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    back = bench.keep(bench.watcher.detach(ours))
    assert ours.fileno() == -1
    back.sendall(b"x")
    assert receive_exactly(theirs, 1) == b"x"


def test_detach_of_a_channel_returns_a_socket(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    fd = channel.fileno()
    back = bench.keep(bench.watcher.detach(channel))
    assert (back.fileno(), channel.fileno()) == (fd, -1)
    assert back.gettimeout() == socket.getdefaulttimeout()
    theirs.sendall(b"x")
    assert receive_exactly(back, 1) == b"x"


def test_detached_descriptor_is_unregistered(bench: Bench) -> None:
    """What happens to it is no news of the watcher's, and another may take it over under the same number."""
    ours, theirs = bench.unix()
    bench.watcher.read(ours)
    theirs.sendall(b"x")
    bench.one()
    back = bench.keep(bench.watcher.detach(ours))
    assert bench.watcher.statistics().connections == 0
    theirs.sendall(b"y")
    bench.none()
    bench.watcher.read(back)
    bench.watcher.read(back)
    assert bench.one()[2:4] == (back, b"y")
    theirs.sendall(b"z")
    assert bench.one()[2:4] == (back, b"z")


def test_detached_object_stands_for_nothing(bench: Bench) -> None:
    ours, theirs = bench.unix()
    back = bench.keep(bench.watcher.detach(ours))
    bench.watcher.read(ours)
    bench.watcher.write(ours, b"x")
    for answer in bench.collect(2):
        assert isinstance(answer.error, OSError)
        assert answer.error.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        bench.watcher.detach(ours)
    assert caught.value.errno == errno.EBADF
    bench.watcher.free(ours)
    back.sendall(b"y")
    assert receive_exactly(theirs, 1) == b"y"


@pytest.mark.parametrize("kind", [name for name in FREEABLE if name != "accept"])
def test_detach_raises_while_an_operation_is_pending(bench: Bench, kind: str) -> None:
    waiting = WAITING[kind](bench, None)
    assert waiting.conn is not None
    with pytest.raises(ValueError, match="pending"):
        bench.watcher.detach(waiting.conn)
    # And has disturbed nothing.
    waiting.answer()
    assert bench.one().error is None
    bench.keep(bench.watcher.detach(waiting.conn))


def test_detach_raises_while_one_direction_is_pending_and_the_other_idle(bench: Bench) -> None:
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"x")
    theirs.sendall(b"y")
    bench.watcher.read(ours)
    assert bench.one().op is Op.READ
    with pytest.raises(ValueError, match="pending"):
        bench.watcher.detach(ours)
    receive_exactly(theirs, size)
    bench.one()
    bench.keep(bench.watcher.detach(ours))


def test_detach_works_while_completions_wait_to_be_handed_out(bench: Bench) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"x")
    bench.watcher.read(ours)
    back = bench.keep(bench.watcher.detach(ours))
    assert bench.one()[2:4] == (ours, b"x")
    back.sendall(b"y")
    assert receive_exactly(theirs, 1) == b"y"


def test_detach_of_a_freed_connection_raises(bench: Bench) -> None:
    ours, _ = bench.unix()
    bench.watcher.free(ours)
    with pytest.raises(OSError):
        bench.watcher.detach(ours)
    other, _ = bench.unix()
    bench.watcher.write(other, b"x")
    bench.one()
    bench.watcher.free(other)
    with pytest.raises(ConnectionFreed):
        bench.watcher.detach(other)


def test_detach_of_a_closed_socket_raises_ebadf(bench: Bench) -> None:
    ours, _ = bench.unix()
    ours.close()
    with pytest.raises(OSError) as caught:
        bench.watcher.detach(ours)
    assert caught.value.errno == errno.EBADF


def test_detached_socket_may_go_to_another_watcher(bench: Bench, engine: str) -> None:
    ours, theirs = bench.unix()
    bench.watcher.write(ours, b"1")
    bench.one()
    with Bench(engine) as other:
        back = bench.watcher.detach(ours)
        other.watcher.read(back)
        theirs.sendall(b"2")
        assert other.one()[2:4] == (back, b"2")
        other.watcher.free(back)


def test_old_object_may_be_dropped_after_detach(bench: Bench) -> None:
    """The descriptor lives with the new one alone: the end of the old closes nothing, and warns of nothing."""
    channel, theirs = bench.accepted()
    back = bench.keep(bench.watcher.detach(channel))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del channel
        gc.collect()
        bench.none()
    assert bench.watcher.statistics().connections_dropped == 0
    back.sendall(b"x")
    assert receive_exactly(theirs, 1) == b"x"


def test_channel_is_what_accept_and_connect_make(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener, ctx="accept")
    bench.watcher.connect(listener.getsockname(), ctx="connect")
    ends = {answer.ctx: hold(bench, answer.conn) for answer in bench.collect(2)}
    assert all(isinstance(end, Channel) for end in ends.values())
    bench.watcher.write(ends["connect"], b"from one")
    bench.watcher.read(ends["accept"])
    assert {answer.data for answer in bench.collect(2)} == {b"from one"}
