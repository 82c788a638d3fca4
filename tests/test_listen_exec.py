"""Listeners across an exec: handed over by a process to the program that replaces it, or inherited from a parent."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import InternalError, UsageError
from shardnet.listen import AddressHeld, InheritedAddress, ListenerBank, SocketOptions, UnixAddress, parse_address
from tests.test_listen import needs_ipv6

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def banks() -> Iterator[list[ListenerBank]]:
    banks: list[ListenerBank] = []
    yield banks
    for bank in banks:
        bank.close()


@contextlib.contextmanager
def program(*arguments: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """`tests.handing_over`, with a line each way on its standard streams."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.handing_over", *arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the program has ended"
    facts: dict[str, Any] = json.loads(line)
    return facts


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def tcp_listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def adopt(banks: list[ListenerBank], sock: socket.socket, options: SocketOptions | None = None) -> ListenerBank:
    """A bank on a socket that is no longer the caller's."""
    banks.append(ListenerBank.open([InheritedAddress(sock.detach())], 2, options))
    return banks[-1]


def refused(fd: int) -> str:
    with pytest.raises(UsageError) as caught:
        ListenerBank.open([InheritedAddress(fd)], 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Handing over.


def test_every_sort_of_listener_outlives_an_exec_with_its_queue_and_its_lock(folder: Path) -> None:
    path = folder / "app.sock"
    with tcp_listener() as inherited, contextlib.ExitStack() as clients:
        fd = inherited.fileno()
        texts = ["127.0.0.1:0", f"unix:{path}", f"fd://{fd}", "127.0.0.1:0"]
        with program(*texts, pass_fds=(fd,)) as process:
            first = hear(process)
            queued = []
            for name in first["names"] * 10:
                client = clients.enter_context(
                    socket.socket(socket.AF_UNIX if isinstance(name, str) else socket.AF_INET)
                )
                client.settimeout(10)
                client.connect(name if isinstance(name, str) else tuple(name))
                queued.append(client)
            inode = path.lstat().st_ino
            tell(process)
            second = hear(process)
            assert second["pid"] == first["pid"]
            assert second["addresses"] == first["addresses"]
            assert second["shared"] == [False, True, True, False]
            assert second["fds"] == first["fds"]
            assert second["inheritable"] == second["blocking"] == []
            assert hear(process)["accepted"] == len(queued)
            assert all(client.recv(100) == b"served after the exec" for client in queued)
            for address in map(parse_address, (first["addresses"][0], f"unix:{path}")):
                with pytest.raises(AddressHeld, match=f"already running, pid {process.pid}"):
                    ListenerBank.open([address], 1)
            assert path.lstat().st_ino == inode
            tell(process)
            assert hear(process) == {"said": "closed", "fds": []}
            assert not path.exists()
        ListenerBank.open([parse_address(first["addresses"][0]), UnixAddress(path)], 1).close()


@needs_ipv6
def test_listener_of_ipv6_outlives_an_exec_as_what_it_was() -> None:
    with program("*:0", "[::1]:0") as process:
        first = hear(process)
        tell(process)
        second = hear(process)
        assert second["addresses"] == first["addresses"]
        assert first["addresses"][0].startswith("*:")


def test_what_cannot_be_taken_over_is_an_error_of_ours() -> None:
    with pytest.raises(InternalError, match="in a form"):
        ListenerBank.take_over({"version": 0})
    group = {"address": "127.0.0.1:9000", "sockets": [4000], "lock": 4001, "path": None}
    with pytest.raises(InternalError, match="is not there: Bad file descriptor"):
        ListenerBank.take_over({"version": 1, "shards": 1, "groups": [group]})


# Inheriting.


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("fd://", "has no descriptor's number: write fd://N"),
        ("fd:3", "has no descriptor's number"),
        ("fd:///3", "has no descriptor's number"),
        ("fd://-3", "has no descriptor's number"),
        ("fd://3x", "has no descriptor's number"),
        ("fd://٣", "has no descriptor's number"),
        ("fd://2147483648", "has no descriptor's number"),
        ("fd://" + "9" * 5000, "has no descriptor's number"),
        ("fd://0", "0 to 2 are the standard streams"),
        ("fd://2", "0 to 2 are the standard streams"),
    ],
)
def test_wrong_number_is_refused_with_a_lesson(text: str, lesson: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert lesson in str(caught.value)


def test_number_is_parsed() -> None:
    assert parse_address("fd://3") == InheritedAddress(3)
    assert str(InheritedAddress(3)) == "fd://3"


def test_inherited_listener_is_shared_by_all_shards_and_serves(banks: list[ListenerBank]) -> None:
    sock = tcp_listener()
    name, fd = sock.getsockname(), sock.fileno()
    os.set_inheritable(fd, True)
    bank = adopt(banks, sock)
    assert bank.shared == (True,)
    [listener] = bank.listeners(0)
    assert bank.listeners(1) == (listener,)
    assert listener.fileno() == fd
    assert not listener.getblocking()
    assert not listener.get_inheritable()
    assert bank.backlog_effective is None
    with socket.create_connection(name):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_inherited_unix_listener_keeps_its_path_and_rights(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "theirs.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    path.chmod(0o606)
    sock.listen()
    bank = adopt(banks, sock, SocketOptions(unix_mode=0o600))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        bank.listeners(0)[0].accept()[0].close()
    bank.close()
    assert path.stat().st_mode & 0o777 == 0o606


def test_descriptor_that_is_not_open_is_said_so() -> None:
    spare = os.dup(0)
    os.close(spare)
    assert f"address fd://{spare}: descriptor {spare} is not open; whoever starts shardnet" in refused(spare)


def test_wrong_number_never_finds_a_listener_of_our_own() -> None:
    """What is inherited is looked at first: when our own listeners were opened before, one of them had the number."""
    spares = [os.dup(0) for _ in range(6)]
    for spare in spares:
        os.close(spare)
    for spare in spares:
        with pytest.raises(UsageError, match="is not open"):
            ListenerBank.open([parse_address("127.0.0.1:0"), InheritedAddress(spare)], 2)


def test_descriptor_that_is_no_socket_is_said_so() -> None:
    with open(os.devnull) as file:  # noqa: PTH123 - by its number
        assert "is no socket; pass a listening one" in refused(file.fileno())


def test_socket_that_is_none_of_ours_is_said_so(folder: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert "is no stream socket; pass one of TCP or unix" in refused(datagrams.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets:
        packets.bind(str(folder / "packets"))
        packets.listen()
        assert "is no stream socket" in refused(packets.fileno())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        assert "is a socket of family" in refused(netlink.fileno())


def test_socket_that_does_not_listen_is_said_so_and_stays_the_openers() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert "is a socket that does not listen" in refused(sock.fileno())
        sock.listen()  # It was not closed.
    for end in socket.socketpair():
        with end:
            assert "is a socket that does not listen" in refused(end.fileno())


def test_inherited_listener_stays_open_when_another_address_cannot_be(folder: Path) -> None:
    (folder / "file").touch()
    with tcp_listener() as sock:
        with pytest.raises(UsageError, match="is no socket"):
            ListenerBank.open([InheritedAddress(sock.fileno()), UnixAddress(folder / "file")], 1)
        socket.create_connection(sock.getsockname()).close()


def test_same_socket_may_be_passed_to_two_instances(banks: list[ListenerBank]) -> None:
    """As a process manager does that starts the new server before it stops the old."""
    sock = tcp_listener()
    other = os.dup(sock.fileno())
    address = sock.getsockname()
    adopt(banks, sock).close()
    banks.append(ListenerBank.open([InheritedAddress(other)], 1))
    with socket.create_connection(address):
        banks[-1].listeners(0)[0].accept()[0].close()


def test_two_inherited_sockets_stand_side_by_side_with_every_other_sort(
    banks: list[ListenerBank], folder: Path
) -> None:
    fds = [tcp_listener().detach() for _ in range(2)]
    texts = [f"fd://{fds[0]}", "127.0.0.1:0", f"unix:{folder}/a", f"fd://{fds[1]}", f"unix:{folder}/b", "127.0.0.1:0"]
    banks.append(ListenerBank.open([parse_address(text) for text in texts], 3))
    bank = banks[-1]
    assert bank.shared == (True, False, True, True, True, False)
    shown = list(map(str, bank.addresses))
    assert [text for text in shown if not text.startswith("127")] == [text for text in texts if text[:3] != "127"]
    for shard in range(3):
        names = [listener.getsockname() for listener in bank.listeners(shard)]
        assert names[2] == f"{folder}/a"
        assert names[4] == f"{folder}/b"
    assert len({listener.fileno() for shard in range(3) for listener in bank.listeners(shard)}) == 4 + 2 * 3
    assert bank.backlog_effective is not None
