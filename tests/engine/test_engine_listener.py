"""Accepting: bounded bursts, connections that died, a full machine, pauses. No queued connection is ever lost."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.watcher import _sys
from shardnet.watcher import listener as listener_module
from shardnet.watcher._sys import Poller
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.listener import ACCEPTS_PER_TURN_MAX, Listener
from tests.engine.kit import Bench, open_fds, raiser, reset, wait_for

RETRIED = [
    errno.ECONNABORTED,
    errno.EINTR,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
]
EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


class Door:
    """A listening socket in a bench, and what came in by it."""

    def __init__(self, bench: Bench, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.bench = bench
        self.sock = bench.keep(sock)
        self.accepted: list[int] = []
        self.addresses: list[Any] = []
        self.exhausted: list[int | None] = []
        self.then: Callable[[], object] | None = None
        self.then_exhausted: Callable[[], object] | None = None
        self.listener: Listener = bench.engine.listen(sock, self._on_accept, self._on_exhausted)

    def _on_accept(self, fd: int, address: Any) -> None:
        self.bench.keep(socket.socket(fileno=fd))
        self.accepted.append(fd)
        self.addresses.append(address)
        if self.then is not None:
            self.then()

    def _on_exhausted(self, error: OSError) -> None:
        self.exhausted.append(error.errno)
        if self.then_exhausted is not None:
            self.then_exhausted()

    def knock(self, count: int = 1) -> list[socket.socket]:
        """New connections, in the backlog."""
        peers = [self.bench.keep(socket.create_connection(self.sock.getsockname())) for _ in range(count)]
        wait_for(self.sock, select.POLLIN)
        return peers

    def until_accepted(self, count: int) -> None:
        self.bench.until(lambda: len(self.accepted) >= count)
        self.bench.settle()
        assert len(self.accepted) == count


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.fixture
def door(bench: Bench) -> Door:
    return Door(bench, socket.create_server(("127.0.0.1", 0), backlog=128))


def script(monkeypatch: pytest.MonkeyPatch, errnos: list[int]) -> None:
    """Make accepts fail with these, one after the other, then succeed as ever."""
    accept = _sys.accept

    def scripted(sock: socket.socket) -> tuple[int, Any] | None:
        if errnos:
            code = errnos.pop(0)
            raise OSError(code, os.strerror(code))
        return accept(sock)

    monkeypatch.setattr(_sys, "accept", scripted)


# Accepting.


def test_accepted_descriptor_is_the_owners_nonblocking_and_not_inherited(door: Door) -> None:
    [peer] = door.knock()
    door.until_accepted(1)
    [fd] = door.accepted
    assert [_sys.address_of(one) for one in door.addresses] == [peer.getsockname()]
    assert not os.get_blocking(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert door.bench.counts(Op.ACCEPT) == {Outcome.OK: 1}


def test_accepted_descriptor_is_nonblocking_whatever_timeout_the_app_made_the_default(door: Door) -> None:
    socket.setdefaulttimeout(30.0)
    try:
        door.knock()
        door.until_accepted(1)
    finally:
        socket.setdefaulttimeout(None)
    assert not os.get_blocking(door.accepted[0])


def test_burst_is_bounded_in_a_turn_and_goes_on_in_the_next(door: Door) -> None:
    door.knock(2 * ACCEPTS_PER_TURN_MAX + 3)
    for accepted in (ACCEPTS_PER_TURN_MAX, 2 * ACCEPTS_PER_TURN_MAX, 2 * ACCEPTS_PER_TURN_MAX + 3):
        door.bench.engine.turn(None)
        assert len(door.accepted) == accepted
    door.until_accepted(2 * ACCEPTS_PER_TURN_MAX + 3)


def test_listener_with_a_burst_does_not_keep_another_waiting(bench: Bench, door: Door) -> None:
    other = Door(bench, socket.create_server(("127.0.0.1", 0)))
    door.knock(3 * ACCEPTS_PER_TURN_MAX)
    other.knock()
    bench.engine.turn(None)
    assert (len(door.accepted), len(other.accepted)) == (ACCEPTS_PER_TURN_MAX, 1)


def test_accepted_connection_can_be_added_in_the_hook_and_read(bench: Bench, door: Door) -> None:
    [peer] = door.knock()
    peer.sendall(b"hello")
    door.then = lambda: bench.adopt(socket.socket(fileno=os.dup(door.accepted[0])), "in").read_on()
    bench.until(lambda: bench.journal)
    assert bench.journal == [("in", "received", b"hello")]


def test_connection_that_was_reset_in_the_backlog_harms_nobody(door: Door) -> None:
    first, _ = door.knock(2)
    reset(first)
    door.until_accepted(2)


def test_unix_listener_accepts(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(Path(folder, "door")))
        sock.listen()
        door = Door(bench, sock)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(sock.getsockname())
            door.until_accepted(1)


def test_hook_that_raises_leaves_the_rest_of_the_backlog_and_the_other_listeners(bench: Bench, door: Door) -> None:
    other = Door(bench, socket.create_server(("127.0.0.1", 0)))
    door.knock(3)
    other.knock(2)
    door.then = other.then = raiser(KeyboardInterrupt())
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            bench.settle()
    bench.settle()
    assert (len(door.accepted), len(other.accepted)) == (3, 2)
    assert bench.counts(Op.ACCEPT) == {Outcome.OK: 5}


def test_accept_queued_tells_whether_it_saw_the_queue_empty(door: Door) -> None:
    assert door.listener.accept_queued(1)
    door.knock(3)
    assert not door.listener.accept_queued(2)
    assert not door.listener.accept_queued(1)
    assert door.listener.accept_queued(1)
    assert len(door.accepted) == 3


def test_second_listener_on_a_socket_is_refused_and_the_first_goes_on(bench: Bench, door: Door) -> None:
    with pytest.raises(FileExistsError):
        bench.engine.listen(door.sock, raiser(AssertionError()), raiser(AssertionError()))  # type: ignore[arg-type]
    door.knock()
    door.until_accepted(1)


# Errors.


@pytest.mark.parametrize("code", RETRIED, ids=errno.errorcode.get)
def test_connection_that_died_in_the_queue_does_not_stop_the_next(
    door: Door, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    door.knock(2)
    script(monkeypatch, [code, code])
    door.bench.engine.turn(None)
    assert (len(door.accepted), door.exhausted) == (2, [])
    assert door.bench.counts(Op.ACCEPT) == {Outcome.OK: 2, Outcome.ERROR: 2}


def test_connections_that_all_died_do_not_hold_the_turn(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    errnos = [errno.ECONNABORTED] * 100
    door.knock()
    script(monkeypatch, errnos)
    door.bench.engine.turn(None)
    assert len(errnos) == 100 - ACCEPTS_PER_TURN_MAX
    door.until_accepted(1)


@pytest.mark.parametrize("code", EXHAUSTED, ids=errno.errorcode.get)
def test_full_machine_pauses_accepting_and_the_backlog_waits(
    door: Door, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    door.knock(3)
    script(monkeypatch, [code, code])
    door.bench.engine.turn(None)
    assert (door.accepted, door.exhausted) == ([], [code])
    door.until_accepted(3)
    assert door.exhausted == [code, code]
    assert door.bench.counts(Op.ACCEPT) == {Outcome.OK: 3, Outcome.ERROR: 2}
    assert door.bench.counts(Op.TIMER) == {Outcome.OK: 2}


def test_full_machine_does_not_spin(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.knock(1)
    script(monkeypatch, [errno.EMFILE] * 1000)
    fired: list[str] = []
    door.bench.engine.after(0.01, lambda: fired.append("timer"))
    turns = 0
    while not fired:
        door.bench.engine.turn(None)
        turns += 1
    assert turns <= 3
    assert door.exhausted == [errno.EMFILE]


def test_real_lack_of_descriptors_loses_no_connection(door: Door) -> None:
    peers = door.knock(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        door.bench.engine.turn(None)
        assert (door.accepted, door.exhausted) == ([], [errno.EMFILE])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    door.until_accepted(2)
    assert sorted(_sys.address_of(one) for one in door.addresses) == sorted(peer.getsockname() for peer in peers)


def test_pause_of_a_full_machine_ends_no_pause_of_the_owner(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    door.knock()
    script(monkeypatch, [errno.EMFILE])
    door.then_exhausted = door.listener.pause
    door.bench.until(lambda: door.bench.count(Op.TIMER, Outcome.OK))
    door.bench.settle()
    assert door.accepted == []
    door.listener.resume()
    door.until_accepted(1)


def test_hook_that_raises_when_the_machine_is_full_ends_no_pause(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    door.knock()
    script(monkeypatch, [errno.EMFILE])
    door.then_exhausted = raiser(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        door.bench.engine.turn(None)
    door.until_accepted(1)


@pytest.mark.interpreted
def test_resume_that_the_kernel_refuses_is_tried_again(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polling a descriptor anew takes memory. The refusal came out of the timer, and with that out of `select()`, or
    out of the close of a connection; and the listener was never polled again."""
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    poller = type(door.listener._poller)
    add = poller.add
    refusals = [errno.ENOMEM, errno.ENOSPC]

    def refuse(self: Poller, fd: int, events: int) -> None:
        if refusals:
            raise OSError(refusals.pop(0), "no room")
        add(self, fd, events)

    door.listener.pause()
    door.knock()
    monkeypatch.setattr(poller, "add", refuse)
    door.listener.resume()
    door.until_accepted(1)
    assert door.exhausted == [errno.ENOMEM, errno.ENOSPC]


# Pausing and stopping.


def test_pauses_nest_and_the_backlog_waits(door: Door) -> None:
    door.listener.pause()
    door.listener.pause()
    door.knock(2)
    door.bench.settle()
    door.listener.resume()
    door.bench.settle()
    assert door.accepted == []
    assert not door.listener.accept_queued(5)
    door.listener.resume()
    door.until_accepted(2)


def test_pause_in_the_hook_stops_the_burst_at_once(door: Door) -> None:
    door.knock(3)
    door.then = door.listener.pause
    door.bench.settle()
    assert len(door.accepted) == 1
    door.then = None
    door.listener.resume()
    door.until_accepted(3)


def test_pause_by_the_first_listener_is_seen_by_the_second_of_the_same_turn(bench: Bench, door: Door) -> None:
    other = Door(bench, socket.create_server(("127.0.0.1", 0)))
    door.then = other.listener.pause
    other.then = door.listener.pause
    door.knock()
    other.knock()
    bench.settle()
    assert len(door.accepted) + len(other.accepted) == 1


@pytest.mark.parametrize("paused", [False, True])
def test_unlisten_is_for_good_and_leaves_the_socket_to_its_owner(bench: Bench, door: Door, paused: bool) -> None:
    if paused:
        door.listener.pause()
    door.knock()
    bench.engine.unlisten(door.listener)
    bench.engine.unlisten(door.listener)
    assert door.listener.fd == -1
    if paused:
        door.listener.resume()
    bench.settle()
    assert door.accepted == []
    assert not door.listener.accept_queued(1)
    bench.keep(door.sock.accept()[0])


def test_unlisten_in_the_hook_stops_the_burst_at_once(bench: Bench, door: Door) -> None:
    door.knock(3)
    door.then = lambda: bench.engine.unlisten(door.listener)
    bench.settle()
    assert len(door.accepted) == 1


def test_unlisten_while_the_machine_is_full_stays_stopped(
    bench: Bench, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    door.knock()
    script(monkeypatch, [errno.EMFILE])
    door.then_exhausted = lambda: bench.engine.unlisten(door.listener)
    bench.until(lambda: bench.count(Op.TIMER, Outcome.OK))
    bench.settle()
    assert door.accepted == []


def test_socket_can_be_listened_on_again_after_unlisten(bench: Bench, door: Door) -> None:
    bench.engine.unlisten(door.listener)
    door.knock()
    again = Door(bench, door.sock)
    again.until_accepted(1)
    assert door.accepted == []


def test_closing_the_watcher_leaves_the_socket_listening() -> None:
    before = open_fds()
    with Bench() as bench:
        sock = socket.create_server(("127.0.0.1", 0))
        door = Door(bench, sock)
        bench.engine.close()
        door.knock()
        sock.setblocking(True)
        bench.keep(sock.accept()[0])
    assert open_fds() <= before
