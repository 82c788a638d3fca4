"""The examples of the watcher alone, each as its user starts it."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from examples.watcher_push import Push
from shardnet.watcher import Channel, Op, Watcher
from tests.engine.kit import open_fds, reset
from tests.harness.client import Client
from tests.harness.server import PROJECT, Output

pytestmark = pytest.mark.process

PATIENCE_S: Final = 20.0
ECHO: Final = ("examples/watcher_echo.py",)
PUSH: Final = ("examples/watcher_push.py",)


class Running:
    """An example that has said where it listens, and nothing else."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.output = Output(stdout=process.stdout, stderr=process.stderr)
        said = self.output.wait(r"serving on ([\d.]+):(\d+)", PATIENCE_S)
        self.address = (said[1], int(said[2]))

    def interrupt(self) -> None:
        """Ctrl-C. It ends well, having said no more than where it listened."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0
        assert self.output.wait_closed(PATIENCE_S)
        assert len(self.output.lines()) == 1, self.output.lines()


@contextlib.contextmanager
def running(*command: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


def finished(*command: str) -> subprocess.CompletedProcess[str]:
    """What a command that should end by itself left behind."""
    return subprocess.run(
        [sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def send_and_end(client: Client, data: bytes) -> None:
    client.send(data)
    client.sock.shutdown(socket.SHUT_WR)


def narrow_listener() -> socket.socket:
    """Its connections take little at a time."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    return listener


@pytest.mark.parametrize("command", [ECHO, ("-m", "examples.watcher_echo")], ids=["file", "module"])
def test_watcher_echo_echoes_many_bytes_to_several_clients_at_once(command: tuple[str, ...]) -> None:
    with running(*command, "--bind", "127.0.0.1:0") as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address, timeout_s=PATIENCE_S)) for _ in range(6)]
        payloads = [bytes([number]) * 1_000_000 + b"end of %d" % number for number in range(len(clients))]
        with ThreadPoolExecutor(len(clients)) as pool:
            sending = [pool.submit(send_and_end, client, data) for client, data in zip(clients, payloads, strict=True)]
            with ThreadPoolExecutor(len(clients)) as receivers:
                assert list(receivers.map(Client.rest, clients)) == payloads
            for future in sending:
                future.result()
        idle = stack.enter_context(Client(server.address))
        assert idle.ask(b"still there?") == b"still there?"
        server.interrupt()
        assert idle.rest() == b""


def test_watcher_echo_holds_back_a_client_that_does_not_read() -> None:
    """What it has sent comes back in the end, and others are served meanwhile."""
    with (
        running(*ECHO, "--bind", "127.0.0.1:0") as server,
        Client(server.address, receive_buffer_bytes=16 * 1024) as client,
        Client(server.address) as other,
    ):
        client.sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 100_000_000:
                sent += client.sock.send(b"x" * 65536)
        assert sent < 100_000_000, "the server took everything without being read"
        assert other.ask(b"hello") == b"hello"
        client.sock.settimeout(PATIENCE_S)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"x" * sent
        server.interrupt()


def test_watcher_echo_outlives_clients_that_reset() -> None:
    with running(*ECHO, "--bind", "127.0.0.1:0") as server, Client(server.address) as client:
        for _ in range(20):
            with Client(server.address) as rude:
                rude.send(b"x" * 10_000)
                reset(rude.sock)
        assert client.ask(b"hello") == b"hello"
        server.interrupt()


def test_watcher_echo_accepts_again_once_it_has_descriptors() -> None:
    with running(*ECHO, "--bind", "127.0.0.1:0") as server, Client(server.address) as client:
        assert client.ask(b"hello") == b"hello"
        pid = server.process.pid
        _, hard = limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(1000)) - used), hard))
        with Client(server.address, timeout_s=PATIENCE_S) as late:
            server.output.wait(r"^watcher_echo: accept: .*Too many open files", PATIENCE_S)
            assert client.ask(b"and I?") == b"and I?"
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            assert late.ask(b"at last") == b"at last"


@pytest.mark.parametrize("command", [PUSH, ("-m", "examples.watcher_push")], ids=["file", "module"])
def test_watcher_push_sends_the_same_numbered_lines_to_all(command: tuple[str, ...]) -> None:
    with running(*command, "--bind", "127.0.0.1:0", "--interval", "0.02") as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(6)]
        told = [dict([client.line().split() for _ in range(8)]) for client in clients]
        for lines in told:
            numbers = [int(number) for number in lines]
            assert numbers == list(range(numbers[0], numbers[0] + 8))
            assert all(told[0].get(number, line) == line for number, line in lines.items())
        server.interrupt()
        for client in clients:
            client.rest()


def test_watcher_push_goes_on_when_clients_talk_and_leave() -> None:
    with running(*PUSH, "--bind", "127.0.0.1:0", "--interval", "0.02") as server, Client(server.address) as client:
        number = int(client.line().split()[0])
        leaving, resetting, talking = (Client(server.address) for _ in range(3))
        with leaving, resetting, talking:
            talking.send(b"what nobody wants to know" * 10_000)
            for other in (leaving, resetting, talking):
                assert other.line()
            leaving.close()
            reset(resetting.sock)
            for follower in range(number + 1, number + 20):
                assert int(client.line().split()[0]) == follower
            assert talking.line()
            server.interrupt()


def test_watcher_push_skips_a_client_that_has_not_taken_its_last_line() -> None:
    """Slow misses a line, quick does not; and slow goes on with the next once it has read."""
    before = open_fds()
    with narrow_listener() as listener, Watcher() as watcher, ExitStack() as stack:
        push = Push(watcher, listener, 1.0)
        watcher.accept(listener)

        def until(wanted: int) -> None:
            """Until so many clients have taken everything."""
            while sum(push.clients.values()) != wanted:
                for done in watcher.wait_io(PATIENCE_S):
                    push.answer(done)

        slow = stack.enter_context(Client(listener.getsockname(), receive_buffer_bytes=16 * 1024))
        until(1)
        quick = stack.enter_context(Client(listener.getsockname()))
        until(2)
        with ThreadPoolExecutor(1) as pool:
            large = b"x" * 1_000_000 + b"\n"
            reading = pool.submit(quick.line)
            push.tell(large)
            until(1)
            assert reading.result() == large[:-1]
            push.tell(b"missed\n")
            until(1)
            assert quick.line() == b"missed"
            reading = pool.submit(slow.line)
            until(2)
            assert reading.result() == large[:-1]
            push.tell(b"last\n")
            until(2)
        assert slow.line() == quick.line() == b"last"
    assert open_fds() <= before


def test_watcher_push_lets_a_client_go_whose_write_has_failed() -> None:
    with narrow_listener() as listener, Watcher() as watcher:
        push = Push(watcher, listener, 1.0)
        watcher.accept(listener)
        with Client(listener.getsockname(), receive_buffer_bytes=16 * 1024) as client:
            while not push.clients:
                for done in watcher.wait_io(PATIENCE_S):
                    push.answer(done)
            push.tell(b"x" * 1_000_000)
            reset(client.sock)
            answered: set[Op] = set()
            while {Op.READ, Op.WRITE} - answered:  # The read fails as well: it is freed once.
                for done in watcher.wait_io(PATIENCE_S):
                    answered.add(done.op)
                    push.answer(done)
                    assert not isinstance(done.conn, Channel) or done.conn.fileno() < 0
        assert not push.clients
        assert watcher.statistics().connections == 0


@pytest.mark.parametrize("example", [ECHO, PUSH], ids=["echo", "push"])
def test_watcher_example_says_in_one_line_that_the_address_is_in_use(example: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = finished(*example, "--bind", bind)
    assert ended.returncode == 1
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert bind in line
    assert "Address already in use" in line


@pytest.mark.parametrize("example", [ECHO, PUSH], ids=["echo", "push"])
@pytest.mark.parametrize("bind", ["", "nonsense", "127.0.0.1:http", "127.0.0.1:70000", "300.1.1.1:0"])
def test_watcher_example_says_in_one_line_what_is_no_address(example: tuple[str, ...], bind: str) -> None:
    ended = finished(*example, "--bind", bind)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert f"cannot listen on {bind}" in line
