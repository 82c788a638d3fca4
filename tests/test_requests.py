"""What operators ask of a supervisor, and what they are told, on a kernel that only the test moves."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.board import Board
from shardnet.control import ControlEndpoint
from shardnet.errors import AddressInUse, NotRunning, SystemFault
from shardnet.listen import ListenerBank, parse_address
from shardnet.operatorsocket import BACKLOG, OperatorSocket, connect, default_name, running, speaks_for_us
from shardnet.seats import WorkerSeat
from shardnet.supervisor.clients import CLIENTS_MAX, CORRUPT_MAX, Clients
from shardnet.supervisor.happenings import ClientAsked, Happening
from shardnet.supervisor.supervisor import Supervisor, SupervisorOptions
from shardnet.supervisor.system import System
from shardnet.testing import FakeSystem

SHARDS_MAX = 3
Answer = dict[str, object]
Ask = Callable[..., Answer]


@pytest.fixture
def asked() -> Iterator[Callable[[Callable[[FakeSystem], Iterator[None]]], None]]:
    """Runs a supervisor of two shards, of three that there could be, through a story."""
    bank = ListenerBank.open([parse_address("127.0.0.1:0")], SHARDS_MAX)
    board = Board.create(SHARDS_MAX)

    def never(_seat: WorkerSeat) -> int:
        raise AssertionError("a worker of a FakeSystem has run")

    def run(story: Callable[[FakeSystem], Iterator[None]]) -> None:
        def whole(system: FakeSystem) -> Iterator[None]:
            yield
            for child in list(system.living):
                system.says(child, "ready")
            yield
            yield from story(system)
            system.signal(signal.SIGQUIT)
            yield
            yield

        system: System = FakeSystem(whole)
        options = SupervisorOptions(2, about={"name": "ours"})
        Supervisor(system, bank, board, options, never, None, lambda: None).run()

    yield run
    bank.close()
    board.close()


def last(system: FakeSystem) -> Answer:
    client, re, fields = system.answers[-1]
    assert (client, re) == (7, 1)
    return fields


Run = Callable[[Callable[[FakeSystem], Iterator[None]]], None]


@pytest.mark.parametrize(
    ("command", "fields", "why"),
    [
        ("dance", {}, "no such command: 'dance'"),
        ("status", {"from": "0"}, "from is no whole number: '0'"),
        ("scale", {}, "the number of shards is no whole number: 'None'"),
        ("scale", {"shards": True}, "the number of shards is no whole number: 'True'"),
        ("scale", {"shards": 0}, "0 shards: it can be 1 to 3, which is --max-workers"),
        ("scale", {"shards": 4}, "4 shards: it can be 1 to 3, which is --max-workers"),
        ("restart", {"shard": 2}, "no shard 2: there are 0 to 1"),
        ("restart", {"shard": -1}, "no shard -1: there are 0 to 1"),
        ("restart", {"shard": 0.0}, "the shard is no whole number: '0.0'"),
        ("stacks", {"shard": 9}, "no shard 9: there are 0 to 1"),
        ("log_level", {"level": "loud"}, "log level 'loud' is none of debug, info, warning, error"),
        ("log_level", {}, "log level 'None' is none of debug, info, warning, error"),
    ],
)
def test_what_cannot_be_is_answered_with_why_and_changes_nothing(
    asked: Run, command: str, fields: dict[str, object], why: str
) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        before = system.living
        system.asks(7, command, **fields)
        yield
        assert last(system) == {"error": why}
        assert system.living == before

    asked(story)


def test_status_says_what_there_is(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "status")
        yield
        status = last(system)
        assert (status["name"], status["shards_wanted"], status["shards_max"], status["next"]) == ("ours", 2, 3, None)
        shards = status["shards"]
        assert isinstance(shards, list)
        assert [(one["shard"], one["state"]) for one in shards] == [(0, "serving"), (1, "serving")]
        system.asks(7, "status", **{"from": 1})
        yield
        assert [one["shard"] for one in last(system)["shards"]] == [1]  # type: ignore[attr-defined]
        system.asks(7, "status", **{"from": 10**9})
        yield
        assert last(system)["shards"] == []

    asked(story)


def test_restart_of_a_shard_forks_a_successor_and_then_drains(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "restart", shard=1)
        yield
        assert last(system) == {"pid": system.children[2].pid}
        assert system.living == [1, 2, 3]
        assert not system.children[2].was_told("drain")
        system.says(3, "ready")
        yield
        assert system.children[2].was_told("drain")

    asked(story)


def test_reload_that_is_under_way_is_counted_before_the_one_asked_for(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "reload")
        yield
        assert last(system)["outcomes_before"] == 0
        system.asks(7, "reload")
        yield
        assert last(system)["outcomes_before"] == 1
        system.asks(7, "status")
        yield
        assert last(system)["reload"] == "generation 2: 0 of 2 workers ready"

    asked(story)


def test_shard_is_kept_empty_unless_it_is_the_last_that_serves(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "drain", shard=0)
        yield
        assert last(system) == {"shard": 0}
        assert system.children[1].was_told("drain")
        system.exits(1)
        yield
        system.pass_time()
        assert system.living == [2]
        system.asks(7, "drain", shard=1)
        yield
        assert "is the only one that serves" in str(last(system)["error"])
        system.asks(7, "undrain", shard=0)
        yield
        assert system.living == [2, 3]

    asked(story)


def test_nothing_but_a_stop_is_accepted_while_the_server_stops(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "stop")
        yield
        assert last(system) == {}
        system.asks(7, "scale", shards=3)
        yield
        assert last(system) == {"error": "the server is stopping"}

    asked(story)


def test_stacks_are_put_together_of_what_the_worker_and_its_fault_handler_say(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "stacks", shard=0)
        yield
        assert system.children[1].signals == [signal.SIGUSR2]
        assert system.children[1].was_told("tasks")
        system.asks(7, "stacks_said", shard=0)
        yield
        assert last(system) == {"threads": "", "tasks": ""}
        system.says(1, "tasks", text="2 tasks")
        system.asks(7, "stacks_said", shard=0)
        yield
        assert last(system) == {"threads": "", "tasks": "2 tasks"}

    asked(story)


def test_stacks_that_were_told_are_not_told_again(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "stacks", shard=0)
        system.dumps(1, "Current thread")
        system.says(1, "tasks", text="2 tasks")
        yield
        system.asks(7, "stacks_said", shard=0)
        yield
        assert last(system) == {"threads": "Current thread", "tasks": "2 tasks"}
        system.asks(7, "stacks_said", shard=0)
        yield
        assert last(system) == {"threads": "", "tasks": ""}

    asked(story)


def test_log_level_reaches_every_child(asked: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.asks(7, "log_level", level="error")
        yield
        assert last(system) == {"level": "error"}
        assert all(system.children[child].was_told("log_level") for child in (1, 2))

    level = logging.getLogger("shardnet").level
    try:
        asked(story)
    finally:
        logging.getLogger("shardnet").setLevel(level)


# The socket.


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("run")
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # Other servers of this machine are not ours to find.
    return folder / "shardnet"


def test_name_belongs_to_one_server_and_others_get_their_pid_behind_it(folder: Path) -> None:
    first = OperatorSocket.open("chat", exact=True)
    with pytest.raises(AddressInUse, match="a server named chat is running already"):
        OperatorSocket.open("chat", exact=True)
    second = OperatorSocket.open("chat", exact=False)
    assert (first.name, second.name) == ("chat", f"chat-{os.getpid()}")
    assert set(running()) == {"chat", second.name}
    second.close()
    assert set(running()) == {"chat"}
    first.close()
    assert list(folder.iterdir()) == []


def test_server_is_found_without_a_name_when_it_is_the_only_one(folder: Path) -> None:
    with pytest.raises(NotRunning, match="no server of this user runs"):
        connect(None)
    one = OperatorSocket.open("one", exact=True)
    connect(None).close()
    two = OperatorSocket.open("two", exact=True)
    with pytest.raises(NotRunning, match="say which with --name, one of one, two"):
        connect(None)
    with pytest.raises(NotRunning, match="no server named three runs; running: one, two"):
        connect("three")
    one.close()
    two.close()


def test_server_that_lets_nobody_in_is_there_and_nobody_waits_for_it(folder: Path) -> None:
    """A supervisor that was stopped accepts no connection: the kernel keeps some, and whoever came after those waited
    for ever, as a command did that was tried often enough."""
    one = OperatorSocket.open("one", exact=True)
    waiting = []
    refused = ""
    for _ in range(BACKLOG + 2):
        try:
            waiting.append(connect("one"))
        except SystemFault as error:
            refused = str(error)
            break
    assert refused.startswith("nobody is let in at ")
    assert refused.endswith("one.sock: the server's supervisor may be stopped")
    assert list(running()) == ["one"]
    for sock in waiting:
        sock.close()
    one.close()


def test_folder_that_others_could_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SystemFault, match="is not a folder of this user's alone"):
        OperatorSocket.open("chat", exact=True)


def test_path_that_is_too_long_for_a_socket_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent / ("x" * 120)))
    with pytest.raises(SystemFault, match=r"cannot listen for commands at .*xxx"):
        OperatorSocket.open("chat", exact=True)


@pytest.mark.parametrize(
    ("app", "name"),
    [("chat:handler", "chat"), ("a.b:Server().run", "a.b"), ("größe:h", "gr--e"), ("x" * 99 + ":h", "x" * 60)],
)
def test_name_comes_from_the_module(app: str, name: str) -> None:
    assert default_name(app) == name


# The clients.


class Desk:
    """A control socket and the clients at it."""

    def __init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("")  # An abstract name of the kernel's choice.
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.clients = Clients(self.epoll, self.listener, lambda sock: self.lets_in and speaks_for_us(sock))
        self.lets_in = True

    def connect(self) -> ControlEndpoint:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.listener.getsockname())
        return ControlEndpoint(sock)

    def turn(self) -> list[Happening]:
        found: list[Happening] = []
        while ready := self.epoll.poll(0):
            for fd, _ in ready:
                found += self.clients.hear(fd)
        return found

    def close(self) -> None:
        self.clients.close()
        self.listener.close()
        self.epoll.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


def test_client_is_heard_answered_and_forgotten(desk: Desk) -> None:
    client = desk.connect()
    asked = client.send("status")
    [happening] = desk.turn()
    assert isinstance(happening, ClientAsked)
    desk.clients.answer(happening.client, happening.message.id, {"ok": True})
    [answer] = client.receive()
    assert (answer.re, answer.fields) == (asked, {"ok": True})
    client.close()
    assert desk.turn() == []
    desk.clients.answer(happening.client, 1, {})  # Nobody is there any more.


def test_more_clients_than_may_be_are_turned_away(desk: Desk) -> None:
    clients = [desk.connect() for _ in range(CLIENTS_MAX + 1)]
    desk.turn()
    for client in clients:
        client.receive()
    assert [client.eof for client in clients] == [*[False] * CLIENTS_MAX, True]
    clients[0].close()
    desk.turn()
    late = desk.connect()
    desk.turn()
    late.receive()
    assert not late.eof
    for client in (*clients[1:], late):
        client.close()


def test_stranger_is_turned_away(desk: Desk) -> None:
    desk.lets_in = False
    client = desk.connect()
    client.send("stop")
    assert desk.turn() == []
    client.receive()
    assert client.eof
    client.close()


def test_client_that_sends_rubbish_is_dropped(desk: Desk) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(desk.listener.getsockname())
    for _ in range(CORRUPT_MAX):
        sock.send(b"rubbish")
    assert desk.turn() == []
    assert sock.recv(100) == b""
    sock.close()


def test_answer_that_no_packet_can_hold_is_said_to_be_too_long(desk: Desk) -> None:
    client = desk.connect()
    client.send("status")
    [happening] = desk.turn()
    assert isinstance(happening, ClientAsked)
    desk.clients.answer(happening.client, 1, {"shards": list(range(100_000))})
    assert client.receive()[0].fields == {"error": "the answer is longer than a packet can be"}
    client.close()


def test_client_that_does_not_read_is_dropped(desk: Desk) -> None:
    client = desk.connect()
    client.send("status")
    [happening] = desk.turn()
    assert isinstance(happening, ClientAsked)
    for _ in range(1000):
        desk.clients.answer(happening.client, 1, {"text": "x" * 10_000})
    while not client.eof:
        client.receive()
    client.close()
