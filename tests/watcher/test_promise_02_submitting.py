"""Submitting never blocks, and raises for the caller's errors only."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardnet
import shardnet.errors
import shardnet.watcher
from shardnet.watcher import DeadlineExceeded, Op, Watcher, WatcherClosed
from tests.engine.kit import receive_exactly, reset, wait_for, wait_unread
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import (
    REFUSED,
    SUBMISSIONS,
    TIMEOUT_S,
    full_listener,
    hold,
    no_descriptor_left,
    submissions,
    unused_address,
)

POLL_IN, POLL_HUP = 1, 16
MEGABYTE = 1 << 20

Ask = Callable[[Bench, socket.socket], object]

ASKED: dict[str, Ask] = {
    "read": lambda b, c: b.watcher.read(c),
    "read_into": lambda b, c: b.watcher.read(c, bytearray(4)),
    "read_full": lambda b, c: b.watcher.read_full(c, bytearray(4)),
    "write": lambda b, c: b.watcher.write(c, b"x"),
}


# It never blocks.


@pytest.mark.parametrize("name", ["read", "read_into", "read_full"])
def test_read_of_a_silent_peer_returns_also_when_the_socket_was_blocking(bench: Bench, name: str) -> None:
    ours, _ = bench.tcp()
    assert ours.gettimeout() is None
    ASKED[name](bench, ours)
    assert bench.watcher.statistics().pending == 1


def test_write_of_more_than_the_kernel_takes_returns_also_when_the_socket_was_blocking(bench: Bench) -> None:
    ours, _ = bench.tcp(4096)
    bench.watcher.write(ours, bytes(8 * MEGABYTE))
    assert bench.watcher.statistics().pending == 1


def test_accept_returns_when_nobody_connects_also_when_the_listener_was_blocking(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    assert bench.watcher.statistics().pending == 1


def test_connect_returns_when_nobody_answers(bench: Bench) -> None:
    bench.watcher.connect(full_listener(bench).getsockname())
    assert bench.watcher.statistics().pending == 1


def test_sleep_returns_at_once(bench: Bench) -> None:
    bench.watcher.sleep(3600)
    assert bench.watcher.statistics().pending == 1


def test_connect_looks_no_name_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[object] = []
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, lambda *args, **_: looked_up.append(args))
    with pytest.raises(ValueError, match="look the name up before"):
        bench.watcher.connect(("localhost", 80))
    assert not looked_up


# It raises for the caller's errors.


@pytest.mark.parametrize("name", REFUSED)
def test_submission_raises_what_says_that_the_caller_erred(bench: Bench, name: str) -> None:
    ours, _ = bench.unix()
    with pytest.raises(REFUSED[name].error):
        REFUSED[name].call(bench, ours)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_that_is_no_stream_is_refused_and_untouched(bench: Bench, kind: socket.SocketKind) -> None:
    ours, theirs = map(bench.keep, socket.socketpair(type=kind))
    others: list[Ask] = [lambda b, c: b.watcher.accept(c), lambda b, c: b.watcher.detach(c)]
    for ask in (*ASKED.values(), *others):
        with pytest.raises(TypeError):
            ask(bench, ours)
    assert ours.gettimeout() is None
    ours.send(b"still mine")
    assert theirs.recv(100) == b"still mine"


def test_tls_socket_is_refused_also_before_its_handshake(bench: Bench) -> None:
    ours, _ = bench.unix()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(ours, do_handshake_on_connect=False) as tls:
        for ask in ASKED.values():
            with pytest.raises(TypeError, match="TLS"):
                ask(bench, tls)
        assert tls.fileno() >= 0


def test_channel_of_another_watcher_is_refused_and_untouched(bench: Bench, engine: str) -> None:
    channel, theirs = bench.accepted()
    with Bench(engine) as other:
        for call in (
            lambda: other.watcher.read(channel),
            lambda: other.watcher.read_full(channel, bytearray(1)),
            lambda: other.watcher.write(channel, b"x"),
            lambda: other.watcher.detach(channel),
        ):
            with pytest.raises(ValueError, match="another watcher"):
                call()
        assert other.watcher.statistics().submitted == 0
    bench.watcher.write(channel, b"still mine")
    assert bench.one().error is None
    assert theirs.recv(100) == b"still mine"
    bench.watcher.free(channel)


def test_channel_is_no_listener(bench: Bench) -> None:
    channel, _ = bench.accepted()
    with pytest.raises(TypeError):
        bench.watcher.accept(channel)  # type: ignore[arg-type]
    bench.watcher.free(channel)


@pytest.mark.parametrize("name", ASKED)
def test_listener_that_accepts_is_refused_as_a_connection(bench: Bench, name: str) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    with pytest.raises(ValueError, match="listener"):
        ASKED[name](bench, listener)
    bench.keep(socket.create_connection(listener.getsockname()))
    answer = bench.one()
    hold(bench, answer.conn)
    assert (answer.op, answer.error) == (Op.ACCEPT, None)


@pytest.mark.parametrize("kind", SUBMISSIONS)
def test_submission_raises_when_the_watcher_is_closed(bench: Bench, kind: str) -> None:
    ours, _ = bench.unix()
    bench.watcher.close()
    with pytest.raises(WatcherClosed):
        submissions(bench, ours)[kind]()


@pytest.mark.parametrize("size", [0, -1])
def test_watcher_refuses_a_swap_size_below_one(engine: str, size: int) -> None:
    with pytest.raises(ValueError, match="swap_size"):
        Watcher(size)


@pytest.mark.parametrize("timeout", [0, 0.0, True, 1e-9, 3600, 1e300, float("inf"), None])
def test_timeout_may_be_any_number_from_zero(bench: Bench, timeout: float | None) -> None:
    ours, _ = bench.unix()
    bench.watcher.write(ours, b"x", timeout=timeout)
    assert bench.one().error is None


def test_buffers_may_be_of_any_contiguous_kind(bench: Bench) -> None:
    ours, theirs = bench.unix()
    with mmap.mmap(-1, 4096) as pages:
        buffers: list[Any] = [
            bytearray(8),
            memoryview(bytearray(100))[10:18],
            memoryview(bytearray(8)).cast("B", (2, 4)),
            array.array("i", [0, 0]),
            (ctypes.c_int * 2)(),
            ctypes.create_string_buffer(8),
            ctypes.c_double(),
            memoryview(pages)[8:16],
        ]
        for buffer in buffers:
            bench.watcher.read_full(ours, buffer)
            theirs.sendall(b"8 bytes.")
            read = bench.one()
            assert (read.data, read.size, read.error) == (b"8 bytes.", 8, None)
            assert read.completion.buffer is buffer
            assert bytes(memoryview(buffer).cast("B")) == b"8 bytes."
            bench.watcher.write(ours, buffer)
            wrote = bench.one()
            assert (wrote.size, wrote.error) == (8, None)
            assert receive_exactly(theirs, 8) == b"8 bytes."
        del buffer, read, wrote
        buffers[-1].release()
        buffers.clear()


@pytest.mark.parametrize("data", [b"x", "é".encode(), memoryview(b"read-only")])
def test_write_takes_what_cannot_be_written_to(bench: Bench, data: bytes) -> None:
    ours, theirs = bench.unix()
    bench.watcher.write(ours, data)
    assert bench.one().error is None
    assert receive_exactly(theirs, len(data)) == data


# It does not raise for the network's reasons.


@pytest.mark.parametrize("name", ASKED)
def test_peer_that_has_reset_is_an_error_of_the_completion(bench: Bench, name: str) -> None:
    ours, theirs = bench.tcp()
    reset(theirs)
    wait_for(ours, POLL_HUP)
    ASKED[name](bench, ours)
    error = bench.one().error
    assert isinstance(error, ConnectionError)
    assert error.errno in (errno.ECONNRESET, errno.EPIPE)


@pytest.mark.parametrize("name", ASKED)
def test_peer_that_has_gone_is_an_error_of_the_completion(bench: Bench, name: str) -> None:
    ours, theirs = bench.unix()
    theirs.close()
    ASKED[name](bench, ours)
    answer = bench.one()
    assert isinstance(answer.error, BrokenPipeError if name == "write" else EOFError)
    assert answer.conn is ours


@pytest.mark.parametrize("name", ASKED)
def test_socket_that_is_closed_is_an_error_of_the_completion(bench: Bench, name: str) -> None:
    ours, _ = bench.tcp()
    ours.close()
    ASKED[name](bench, ours)
    answer = bench.one()
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EBADF
    assert (answer.conn, answer.size) == (ours, 0)


@pytest.mark.parametrize("name", ASKED)
def test_descriptor_that_was_closed_is_an_error_of_the_completion(bench: Bench, name: str) -> None:
    """Closed, too, is what somebody closed by its number."""
    ours, _ = bench.unix()
    os.close(ours.fileno())
    try:
        ASKED[name](bench, ours)
        answer = bench.one()
        assert isinstance(answer.error, OSError)
        assert answer.error.errno == errno.EBADF
    finally:
        ours.detach()  # The number is somebody else's by now, perhaps.


@pytest.mark.parametrize("name", ASKED)
def test_socket_that_was_never_connected_is_an_error_of_the_completion(bench: Bench, name: str) -> None:
    ASKED[name](bench, bench.keep(socket.socket()))
    error = bench.one().error
    assert isinstance(error, OSError)
    assert error.errno in (errno.ENOTCONN, errno.EPIPE)


@pytest.mark.parametrize("name", ASKED)
def test_connection_of_another_watcher_is_closed_to_this_one(bench: Bench, engine: str, name: str) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read(ours)
    with Bench(engine) as other:
        ASKED[name](other, ours)
        error = other.one().error
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_accept_on_a_listener_that_is_closed_is_an_error_of_the_completion(bench: Bench) -> None:
    listener = bench.listener()
    listener.close()
    bench.watcher.accept(listener)
    answer = bench.one()
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EBADF
    assert answer[:4] == (Op.ACCEPT, None, None, b"")


def test_accept_on_a_socket_that_does_not_listen_is_an_error_of_the_completion(bench: Bench) -> None:
    bench.watcher.accept(bench.keep(socket.socket()))
    answer = bench.one()
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EINVAL
    assert answer.conn is None


def test_connect_that_is_refused_is_an_error_of_the_completion(bench: Bench) -> None:
    bench.watcher.connect(unused_address(), ctx="it")
    answer = bench.one()
    assert isinstance(answer.error, ConnectionRefusedError)
    assert answer.error.errno == errno.ECONNREFUSED
    assert answer[:4] == (Op.CONNECT, "it", None, b"")


def test_connect_to_a_path_that_does_not_exist_is_an_error_of_the_completion(bench: Bench, tmp_path: Path) -> None:
    bench.watcher.connect(str(tmp_path / "nobody.sock"))
    answer = bench.one()
    assert isinstance(answer.error, FileNotFoundError)
    assert answer.conn is None


def test_connect_to_a_path_that_is_too_long_is_the_callers_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="too long: a unix socket's path has 107 bytes"):
        bench.watcher.connect("/tmp/" + "x" * 103)
    bench.watcher.connect("/tmp/" + "x" * 102)
    assert isinstance(bench.one().error, FileNotFoundError)


def test_connect_to_a_unix_socket_whose_backlog_is_full_is_an_error_of_the_completion(
    bench: Bench, tmp_path: Path
) -> None:
    path = str(tmp_path / "full.sock")
    listener = bench.keep(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    bench.watcher.connect(path, timeout=TIMEOUT_S)
    first = bench.one()
    hold(bench, first.conn)
    bench.watcher.connect(path, timeout=0)
    error = bench.one().error
    assert isinstance(error, (BlockingIOError, DeadlineExceeded))


def test_connect_without_a_descriptor_is_an_error_of_the_completion(bench: Bench) -> None:
    listener = bench.listener()
    with no_descriptor_left():
        bench.watcher.connect(listener.getsockname())
    answer = bench.one()
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EMFILE
    assert answer.conn is None


def test_accept_without_a_descriptor_is_an_error_of_the_completion(bench: Bench) -> None:
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    with no_descriptor_left():
        bench.watcher.accept(listener)
    answer = bench.one()
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.EMFILE
    # The connection is still there.
    bench.watcher.accept(listener)
    answer = bench.one()
    hold(bench, answer.conn)
    assert answer.error is None


def test_error_of_a_completion_is_news_of_the_operation_alone(bench: Bench) -> None:
    """A read of a half-closed peer fails, and the bytes of the write behind it still arrive."""
    ours, theirs = bench.unix()
    theirs.shutdown(socket.SHUT_WR)
    bench.watcher.read(ours)
    bench.watcher.write(ours, b"answer")
    ends = bench.collect(2)
    assert [type(answer.error) for answer in ends] == [EOFError, type(None)]
    wait_unread(theirs.fileno(), 6)


# The error classes.


@pytest.mark.parametrize("name", ["ConnectionBroken", "ConnectionFreed", "DeadlineExceeded", "WatcherClosed"])
def test_error_class_is_the_same_wherever_it_is_imported_from(name: str) -> None:
    public = getattr(shardnet.errors, name)
    assert name in shardnet.errors.__all__
    for package in (shardnet, shardnet.watcher):
        assert name in package.__all__
        assert getattr(package, name) is public
    assert issubclass(public, shardnet.ShardnetError)


def test_error_classes_say_who_erred() -> None:
    errors = shardnet.errors
    assert issubclass(errors.ConnectionFreed, errors.UsageError)
    assert issubclass(errors.ConnectionFreed, ConnectionError)
    assert issubclass(errors.WatcherClosed, errors.UsageError)
    assert issubclass(errors.DeadlineExceeded, errors.PeerError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.ConnectionBroken, errors.PeerError)
    assert issubclass(errors.ConnectionBroken, ConnectionError)
