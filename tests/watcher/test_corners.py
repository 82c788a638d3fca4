"""What hardly ever happens: systems that lack something, interrupts at the wrong moment, and the partial calls of
endpoints with hooks."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from shardnet.watcher import Channel, ConnectionFreed, _sockets, pollers
from shardnet.watcher.connections import check_address
from shardnet.watcher.hooks import HookEndpoint
from tests.engine.kit import Bench as EngineBench
from tests.engine.kit import open_fds, receive_exactly, reset, wait_for, wait_unread
from tests.watcher.kit import ENGINES, Bench
from tests.watcher.scripted import NOT_NOW, Fail, Move, ScriptedSystem, Step

PIECES = [b"one", b"two", b"three", b"four"]


@pytest.fixture
def hooks(engine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineBench]:
    """An engine of endpoints with hooks."""
    monkeypatch.setattr(pollers, "DEFAULT", ENGINES[engine]["poller"])
    with EngineBench() as bench:
        yield bench


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> ScriptedSystem:
    return ScriptedSystem(monkeypatch)


# Systems that lack something.


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("eventfd", [True, False])
def test_wakeup_is_readable_from_set_to_clear(monkeypatch: pytest.MonkeyPatch, eventfd: bool) -> None:
    if not eventfd:
        monkeypatch.delattr(os, "eventfd")
    before = open_fds()
    wakeup = _sockets.Wakeup()
    assert not readable(wakeup.fd)
    for sets in (1, 2, 512, 513, 100_000):  # So many as fill one read, one more, and more than a pipe holds.
        for _ in range(sets):
            wakeup.set()
        assert readable(wakeup.fd)
        wakeup.clear()
        assert not readable(wakeup.fd)
        wakeup.clear()
    wakeup.close()
    assert open_fds() == before


def test_poller_that_the_system_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    with pytest.raises(ValueError, match="take 'poll'"):
        pollers.new_poller("epoll")


# Interrupts.


class Interrupted:
    """An interrupt that comes while the engine clears its wake-up: the first event of a poll, with others behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.due = True
        self._read = os.read
        monkeypatch.setattr(os, "read", self.read)

    def read(self, fd: int, size: int) -> bytes:
        if self.due:
            self.due = False
            raise KeyboardInterrupt
        return self._read(fd, size)


@pytest.mark.parametrize("freed", [False, True])
def test_interrupt_among_the_events_of_a_poll_loses_none(
    hooks: EngineBench, monkeypatch: pytest.MonkeyPatch, freed: bool
) -> None:
    """epoll tells of an edge once. What was told and not heard yet stands there for the next turn, also when the
    endpoint is gone by then."""
    ends = [hooks.unix(name) for name in "abc"]
    for endpoint, _ in ends:
        endpoint.post_read()
    hooks.settle()
    hooks.engine.wake()
    for number, (endpoint, peer) in enumerate(ends):
        peer.send(b"%d" % number)
        wait_unread(endpoint.fd, 1)
    interrupted = Interrupted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hooks.engine.turn(0)
    assert not interrupted.due
    assert hooks.journal == []
    if freed:
        hooks.engine.free(ends[1][0])
    expected = [("a", "received", b"0"), ("b", "received", b"1"), ("c", "received", b"2")]
    hooks.until(lambda: len(hooks.journal) == len(expected) - freed)
    hooks.settle()
    assert sorted(hooks.journal) == [entry for entry in expected if not (freed and entry[0] == "b")]


def test_interrupted_wait_of_a_watcher_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read(ours, ctx="read")
    bench.none()
    bench.watcher.wake()
    theirs.send(b"x")
    interrupted = Interrupted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        bench.watcher.wait_io()
    assert not interrupted.due
    answers: list[object] = []
    while not answers:  # `wake()` may be answered first.
        answers += [(completion.ctx, bytes(completion.data)) for completion in bench.watcher.wait_io(10)]
    assert answers == [("read", b"x")]


# Sockets.


def test_error_that_waits_on_a_socket_is_told_once(hooks: EngineBench) -> None:
    endpoint, peer = hooks.tcp()
    assert endpoint.pending_error() == 0
    reset(peer)
    wait_for(endpoint.fd, select.POLLERR)
    assert [endpoint.pending_error() for _ in range(2)] == [errno.ECONNRESET, 0]


def test_channel_tells_what_it_is_until_it_is_freed(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    assert channel.local == theirs.getpeername()
    assert channel.peer == theirs.getsockname()
    assert os.fstat(channel.fileno())
    assert repr(channel) == f"<Channel {channel.fileno()} of {channel.peer!r}>"
    channel.end_output()
    assert theirs.recv(1) == b""
    bench.watcher.free(channel)
    assert (channel.fileno(), channel.peer) == (-1, theirs.getsockname())
    assert repr(channel) == f"<Channel -1 of {channel.peer!r}>"
    with pytest.raises(ConnectionFreed):
        _ = channel.local
    with pytest.raises(ConnectionFreed):
        channel.end_output()


def test_channel_says_why_its_output_cannot_be_ended(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    reset(theirs)
    wait_for(channel.fileno(), select.POLLERR)
    bench.watcher.read(channel)
    assert isinstance(bench.one().error, ConnectionResetError)
    with pytest.raises(OSError) as caught:
        channel.end_output()
    assert caught.value.errno == errno.ENOTCONN
    bench.watcher.free(channel)


def test_connect_over_ipv6_makes_a_channel(bench: Bench) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = bench.keep(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    for address in (listener.getsockname(), listener.getsockname()[:2]):
        bench.watcher.connect(address)
        channel = bench.one().conn
        assert isinstance(channel, Channel)
        theirs = bench.keep(listener.accept()[0])
        assert channel.local == theirs.getpeername()
        bench.watcher.free(channel)


def test_listener_that_was_closed_before_it_was_freed_says_so_to_all_who_wait(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener, ctx=1)
    listener.close()
    for ctx in (2, 3):
        bench.watcher.accept(listener, ctx=ctx)
    answers = bench.collect(3)
    assert [(answer.ctx, getattr(answer.error, "errno", None)) for answer in answers] == [
        (1, errno.EBADF),
        (2, errno.EBADF),
        (3, errno.EBADF),
    ]


# Addresses.

LOOPBACK = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("address", "family", "resolved"),
    [
        (("127.0.0.1", 80), socket.AF_INET, ("127.0.0.1", 80)),
        (("::1", 80), socket.AF_INET6, ("::1", 80, 0, 0)),
        (("::1", 80, 5), socket.AF_INET6, ("::1", 80, 5, 0)),
        (("fe80::1", 80, 0, 7), socket.AF_INET6, ("fe80::1", 80, 0, 7)),
        (("fe80::1%9", 80), socket.AF_INET6, ("fe80::1", 80, 0, 9)),
        (("fe80::1%lo", 80), socket.AF_INET6, ("fe80::1", 80, 0, LOOPBACK)),
        (("fe80::1%lo", 80, 3, 7), socket.AF_INET6, ("fe80::1", 80, 3, LOOPBACK)),
        ("/a/path", socket.AF_UNIX, b"/a/path"),
        (b"path", socket.AF_UNIX, b"path"),
        ("\0abstract\0name", socket.AF_UNIX, b"\0abstract\0name"),
    ],
)
def test_address_is_made_one_that_nothing_has_to_be_looked_up_for(
    address: object, family: int, resolved: object
) -> None:
    assert check_address(address) == (family, resolved)


@pytest.mark.parametrize(
    "address",
    [
        "/a/path\0with more",
        ("fe80::1%no-such-interface", 80),
        ("fe80::1%4294967296", 80),
        ("fe80::1%-1", 80),
        ("fe80::1", 80, 0, 1 << 32),
        ("fe80::1", 80, 1 << 20, 0),
        ("127.0.0.1%lo", 80),
        ("localhost", 80),
        ("127.0.0.1\0", 80),
        ("", 80),
        ("::1", 0),
        ("::1", 65536),
        ("::1", "80"),
    ],
)
def test_address_that_cannot_be_is_the_callers_error(address: object) -> None:
    with pytest.raises(ValueError, match=r"connect: "):
        check_address(address)


@pytest.mark.parametrize(
    "address",
    [None, 80, ("::1",), (80, "::1"), ("127.0.0.1", 80, 0), ("::1", 80, 0, 0, 0), ("::1", 80, "0"), ["::1", 80]],
)
def test_address_of_no_known_form_is_a_type_error(address: object) -> None:
    with pytest.raises(TypeError, match=r"connect: "):
        check_address(address)


# The partial calls of endpoints with hooks.


@pytest.mark.parametrize("refusals", [0, 1, 5])
def test_gathered_write_that_stops_at_any_byte_goes_on_there(
    hooks: EngineBench, system: ScriptedSystem, refusals: int
) -> None:
    endpoint, peer = hooks.unix()
    data = b"".join(PIECES)
    for position in range(len(data) + 1):
        system.send.then(NOT_NOW)
        for piece in PIECES:
            assert not endpoint.submit_write(piece)
        system.send_many.then(*([Move(position)] if position else []), *[NOT_NOW] * refusals)
        sent = hooks.of("a").count("sent")
        hooks.until(lambda sent=sent: hooks.of("a").count("sent") > sent)  # type: ignore[misc]
        assert receive_exactly(peer, len(data)) == data
        assert endpoint.unsent_bytes == 0
    hooks.settle()
    assert hooks.sent_bytes == len(data) * (len(data) + 1)


@pytest.mark.parametrize("steps", [[Move(1)], [Move(1), NOT_NOW], [NOT_NOW, Move(2), Move(7)]])
def test_queue_that_goes_byte_by_byte_is_exact(hooks: EngineBench, system: ScriptedSystem, steps: list[Step]) -> None:
    endpoint, peer = hooks.unix()
    data = b"".join(PIECES) * 3
    system.send.always(*steps)
    system.send_many.always(*steps)
    for piece in PIECES * 3:
        endpoint.submit_write(piece)
    hooks.until(lambda: "sent" in hooks.of("a"))
    assert receive_exactly(peer, len(data)) == data


@pytest.mark.parametrize("position", range(1, 15))
def test_gathered_write_that_fails_in_its_middle_sends_nothing_behind_it(
    hooks: EngineBench, system: ScriptedSystem, position: int
) -> None:
    endpoint, peer = hooks.unix()
    system.send.then(NOT_NOW)
    for piece in PIECES:
        endpoint.submit_write(piece)
    system.send_many.then(Move(position), Fail(errno.ENOBUFS))
    system.send.then(Fail(errno.ENOBUFS))  # Of a queue that is down to its last piece.
    hooks.until(lambda: "failed" in hooks.of("a"))
    assert [entry for entry in hooks.journal if entry[1] != "progress"] == [("a", "failed", errno.ENOBUFS)]
    assert endpoint.unsent_bytes == 0
    hooks.settle()
    hooks.engine.free(endpoint)
    assert peer.recv(100) == b"".join(PIECES)[:position]


@pytest.mark.parametrize("steps", [[Move(1)], [Move(1), NOT_NOW], [NOT_NOW, NOT_NOW, Move(3)]])
def test_hook_reads_byte_by_byte_are_exact(hooks: EngineBench, system: ScriptedSystem, steps: list[Step]) -> None:
    endpoint, peer = hooks.unix()
    data = bytes(number % 251 for number in range(500))
    system.swap_receive.always(*steps)
    endpoint.read_on()
    peer.sendall(data)
    hooks.until_received(endpoint, data)
    peer.shutdown(socket.SHUT_WR)
    hooks.until(lambda: "end" in hooks.of("a"))


def test_hook_read_that_fails_keeps_what_waits_behind(hooks: EngineBench, system: ScriptedSystem) -> None:
    endpoint, peer = hooks.unix()
    peer.sendall(b"behind")
    system.swap_receive.then(Fail(errno.ENOMEM))
    endpoint.post_read()
    hooks.until(lambda: hooks.journal)
    assert hooks.journal == [("a", "failed", errno.ENOMEM)]
    endpoint.post_read()
    hooks.until_received(endpoint, b"behind")
    peer.sendall(b"and now")
    hooks.settle()
    system.receive.then(Fail(errno.ENOMEM), NOT_NOW)
    with pytest.raises(OSError) as caught:
        endpoint.receive_now(100)
    assert caught.value.errno == errno.ENOMEM
    assert endpoint.receive_now(100) is None  # The kernel said "not now", and tells when there is something.
    hooks.until(lambda: endpoint.readable)
    assert endpoint.receive_now(100) == b"and now"


def test_write_at_once_that_fails_is_raised_and_queues_nothing(hooks: EngineBench, system: ScriptedSystem) -> None:
    endpoint, peer = hooks.unix()
    system.send.then(Fail(errno.ENOBUFS))
    with pytest.raises(OSError) as caught:
        endpoint.submit_write(b"lost")
    assert (caught.value.errno, endpoint.unsent_bytes) == (errno.ENOBUFS, 0)
    assert endpoint.submit_write(b"sent")
    assert receive_exactly(peer, 4) == b"sent"


def test_endpoint_that_cannot_be_registered_is_freed_all_the_same(hooks: EngineBench, system: ScriptedSystem) -> None:
    ours, theirs = socket.socketpair()
    hooks.keep(theirs)
    endpoint = HookEndpoint(hooks.engine.agenda, ours.detach())
    system.add.then(Fail(errno.ENOSPC))
    with pytest.raises(OSError) as caught:
        hooks.engine.add(endpoint)
    assert caught.value.errno == errno.ENOSPC
    assert hooks.engine.endpoints() == []
    hooks.engine.free(endpoint)
    assert theirs.recv(1) == b""
