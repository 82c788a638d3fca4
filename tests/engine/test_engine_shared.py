"""One listener that several processes accept on: each connection goes to one of them, and none is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shardnet.watcher import listener as listener_module
from shardnet.watcher._sys import Poller
from shardnet.watcher.engine import Engine
from tests.engine.kit import PATIENCE_S, Bench

BACKLOG = 1024


class Crew:
    """Processes that accept on one unix listener, and answer each connection with their number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        self.sock.bind(str(path))
        self.sock.listen(BACKLOG)
        self.pids: list[int] = []

    def hire(self, *, exclusive: bool = True) -> int:
        """One process more, which accepts when this returns; its number."""
        number = len(self.pids)
        ready, say_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            _work(self.sock, number, say_ready, exclusive)
        os.close(say_ready)
        assert os.read(ready, 1)
        os.close(ready)
        self.pids.append(pid)
        return number

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_S)
        client.connect(str(self.path))
        return client

    def serve(self, count: int) -> Counter[int]:
        """Who answers so many connections that come one after the other."""
        answers: Counter[int] = Counter()
        for _ in range(count):
            with self.connect() as client:
                answers[client.recv(1)[0]] += 1
        return answers

    def stop(self, number: int) -> None:
        """Let a process run no more, for now."""
        os.kill(self.pids[number], signal.SIGSTOP)
        os.waitpid(self.pids[number], os.WUNTRACED)

    def dismiss(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.sock.close()


def _work(sock: socket.socket, number: int, say_ready: int, exclusive: bool) -> NoReturn:
    try:
        engine = Engine()

        def on_accept(fd: int, _: Any) -> None:
            with contextlib.suppress(OSError):
                os.write(fd, bytes([number]))
            os.close(fd)

        engine.listen(sock, on_accept, lambda _: None, exclusive=exclusive)
        os.write(say_ready, b"!")
        while True:
            engine.turn(None)
    finally:
        os._exit(1)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path / "door")
    yield crew
    crew.dismiss()


def test_two_processes_share_the_connections_of_a_quiet_server(crew: Crew, poller: str) -> None:
    """The kernel wakes the first in line, and that was the same process each time: it got them all."""
    if poller == "poll":
        pytest.skip("poll knows no exclusive wake-ups: both wake, and the faster one takes the connection")
    crew.hire()
    crew.hire()
    answers = crew.serve(200)
    assert min(answers[0], answers[1]) >= 40, answers


def test_burst_is_served_to_the_last(crew: Crew) -> None:
    crew.hire()
    crew.hire()
    clients = [crew.connect() for _ in range(BACKLOG)]
    answers = Counter(client.recv(1)[0] for client in clients)
    for client in clients:
        client.close()
    assert sum(answers.values()) == BACKLOG
    assert len(answers) == 2


def test_what_is_queued_when_one_dies_is_served_by_the_other(crew: Crew) -> None:
    first = crew.hire()
    crew.stop(first)
    with crew.connect() as waiting:
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        assert not poll.poll(0)
        second = crew.hire()
        assert waiting.recv(1) == bytes([second])
        os.kill(crew.pids[first], signal.SIGKILL)
        assert crew.serve(20) == {second: 20}


def test_process_that_cannot_run_holds_up_nobody(crew: Crew) -> None:
    first, second = crew.hire(), crew.hire()
    crew.serve(20)
    crew.stop(first)
    assert crew.serve(20) == {second: 20}
    os.kill(crew.pids[first], signal.SIGCONT)
    assert sum(crew.serve(50).values()) == 50


# In one process.


class Door:
    """A shared listening socket in a bench, and what came in by it."""

    def __init__(self, bench: Bench, path: Path) -> None:
        self.bench = bench
        self.sock = bench.keep(socket.socket(socket.AF_UNIX))
        self.sock.setblocking(False)
        self.sock.bind(str(path))
        self.sock.listen(BACKLOG)
        self.path = path
        self.accepted = 0
        self.exhausted: list[int | None] = []
        self.listener = bench.engine.listen(
            self.sock, self._on_accept, lambda error: self.exhausted.append(error.errno), exclusive=True
        )

    def _on_accept(self, fd: int, _: Any) -> None:
        self.bench.keep(socket.socket(fileno=fd))
        self.accepted += 1

    def knock(self, count: int) -> None:
        for _ in range(count):
            self.bench.keep(socket.socket(socket.AF_UNIX)).connect(str(self.path))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.fixture
def door(bench: Bench, tmp_path: Path) -> Door:
    return Door(bench, tmp_path / "door")


def test_wake_accepts_one(bench: Bench, door: Door) -> None:
    door.knock(3)
    for accepted in (1, 2, 3, 3):
        bench.engine.turn(0)
        assert door.accepted == accepted


def test_pauses_nest_and_the_backlog_waits(bench: Bench, door: Door) -> None:
    door.listener.pause()
    door.listener.pause()
    door.knock(2)
    bench.settle()
    door.listener.resume()
    bench.settle()
    assert door.accepted == 0
    door.listener.resume()
    bench.until(lambda: door.accepted == 2)


def test_pause_in_the_hook_lasts(bench: Bench, door: Door) -> None:
    door.knock(2)
    on_accept = door.listener.on_accept

    def accept_and_pause(fd: int, address: Any) -> None:
        on_accept(fd, address)
        door.listener.pause()

    door.listener.on_accept = accept_and_pause
    bench.settle(5)
    assert door.accepted == 1
    door.listener.on_accept = on_accept
    door.listener.resume()
    bench.until(lambda: door.accepted == 2)


def test_unlisten_in_the_hook_is_for_good(bench: Bench, door: Door) -> None:
    door.knock(2)
    on_accept = door.listener.on_accept

    def accept_and_stop(fd: int, address: Any) -> None:
        on_accept(fd, address)
        bench.engine.unlisten(door.listener)

    door.listener.on_accept = accept_and_stop
    bench.settle(5)
    assert door.accepted == 1
    assert door.listener.fd == -1


@pytest.mark.interpreted
def test_refusal_of_the_new_place_in_line_is_a_pause(bench: Bench, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "EXHAUSTED_PAUSE_S", 0.002)
    poller = type(bench.engine.poller)
    add = poller.add
    refusals = [errno.ENOMEM]

    def refuse(self: Poller, fd: int, events: int) -> None:
        if refusals:
            raise OSError(refusals.pop(), "no room")
        add(self, fd, events)

    door.knock(2)
    monkeypatch.setattr(poller, "add", refuse)
    bench.until(lambda: door.accepted == 2)
    assert door.exhausted == [errno.ENOMEM]


def test_everything_queued_can_be_accepted_at_once(bench: Bench, door: Door) -> None:
    door.knock(30)
    assert door.listener.accept_queued(100)
    assert door.accepted == 30
