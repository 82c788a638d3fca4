"""How a server ends: asked politely, asked twice, told to at once, or with its supervisor killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.procs import can_bind, listening_ports, session_pids, stop_and_wait, wait_gone
from tests.harness.scrape import get
from tests.harness.server import ShardedServer, wait_until
from tests.process.apps import REPLY_BYTES, reply

pytestmark = pytest.mark.process

DRAIN_TIMEOUT_S: Final = 30.0
AT_ONCE_S: Final = 2.0
ORPHAN_GRACE_S: Final = 2.0  # How long workers go on accepting when their supervisor has died.
SLOW_CHUNK_BYTES: Final = 16 * 1024
SMALL_REPLY_BYTES: Final = 100
SIGNALS_ITSELF: Final = """
import asyncio, concurrent.futures, signal

class Executor(concurrent.futures.ThreadPoolExecutor):
    def shutdown(self, *args, **kwargs):
        signal.raise_signal(signal.SIGHUP)
        super().shutdown(*args, **kwargs)
        print("has been signalled", flush=True)

async def handler(conn):
    asyncio.get_running_loop().set_default_executor(Executor())
    async for line in conn:
        await conn.send(line)
"""


class Gate:
    """What `apps.gate` waits at: a listener of the test, whose connections stay open until `open()`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def open(self) -> None:
        """Let through everybody who waits, and whoever comes."""
        # Closing resets the connections in the queue: to the one who waits, that is as good as an end of stream.
        self._listener.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    closing = Gate()
    yield closing
    closing.open()


def test_term_lets_a_thousand_busy_connections_finish(gate: Gate) -> None:
    """The law: TERM cuts no reply that was asked for. Exit 0 within the drain timeout.

    A thousand connections: half have replies of a megabyte of which the client has taken only the first bytes, most
    of the others handlers that still work on theirs, and the rest nothing under way, so that they see a clean end of
    stream at once. The clients then read slowly: a little of each in turn, on small receive buffers.
    """
    with ExitStack() as stack, ShardedServer(
        "tests.process.apps:replies", workers=8, options=["--drain-timeout", str(DRAIN_TIMEOUT_S)]
    ) as server:  # fmt: skip
        server.wait_serving()

        def connect(number: int) -> list[Client]:
            clients = [Client(server.address, receive_buffer_bytes=SLOW_CHUNK_BYTES) for _ in range(number)]
            for client in clients:
                stack.callback(client.close)
            return clients

        large, working, idle = connect(500), connect(450), connect(50)
        asked = [
            *((client, REPLY_BYTES, 0) for client in large),
            *((client, SMALL_REPLY_BYTES, gate.port) for client in working),
            *((client, SMALL_REPLY_BYTES, 0) for client in idle),
        ]
        for tag, (client, size, port) in enumerate(asked):
            client.send(b"%d %d %d\n" % (tag, size, port))
        for client, _, _ in asked:
            assert client.line() == b"working"
        for client in large:
            client.exactly(1)
        for tag, client in enumerate(idle, len(large) + len(working)):
            assert client.exactly(SMALL_REPLY_BYTES) == reply(tag, SMALL_REPLY_BYTES)

        began_s = time.monotonic()
        server.signal(signal.SIGTERM)
        for client in idle:
            assert client.rest() == b""
        assert get(server.metrics_address, "/readyz")[0] == 503
        gate.open()
        unread = {
            **{client: reply(tag, REPLY_BYTES)[1:] for tag, client in enumerate(large)},
            **{client: reply(tag, SMALL_REPLY_BYTES) for tag, client in enumerate(working, len(large))},
        }
        read_in_turns(unread)
        assert server.wait(DRAIN_TIMEOUT_S) == 0
        assert time.monotonic() - began_s < DRAIN_TIMEOUT_S


def read_in_turns(unread: dict[Client, bytes]) -> None:
    """Read what each client is still to get, a chunk of each at a time, and its end of stream."""
    positions = dict.fromkeys(unread, 0)
    while positions:
        for client, position in list(positions.items()):
            expected = unread[client]
            if position == len(expected):
                assert client.rest() == b""
                del positions[client]
            else:
                chunk = client.exactly(min(SLOW_CHUNK_BYTES, len(expected) - position))
                assert expected.startswith(chunk, position)
                positions[client] += len(chunk)


def test_term_serves_what_waited_in_the_queue() -> None:
    """The law: a connection that was established before TERM gets its answer, accepted already or not."""
    with ShardedServer("tests.process.apps:which", workers=2) as server, ExitStack() as stack:
        worker = server.wait_serving()[1]
        stop_and_wait(worker)
        clients = [stack.enter_context(Client(server.address)) for _ in range(200)]
        for client in clients:
            client.send(b"still there?\n")
        server.signal(signal.SIGTERM)
        # When the other worker's connections end, the supervisor has told both workers to drain.
        ready = select.select([client.sock for client in clients], [], [], 10.0)[0]
        first = next(client for client in clients if client.sock in ready)
        assert first.rest().endswith(b"still there?\n")
        os.kill(worker, signal.SIGCONT)
        shards = set()
        for client in clients:
            if client is not first:
                said, shard_line = client.rest().partition(b"\n")[::2]
                assert shard_line == b"still there?\n"
                shards.add(said)
        assert shards == {b"0", b"1"}
        assert server.wait(10.0) == 0


def test_term_refuses_newcomers_while_it_drains(gate: Gate) -> None:
    with ShardedServer("tests.process.apps:replies", workers=2) as server, Client(server.address) as client:
        assert client.ask(b"1 10 %d" % gate.port) == b"working"
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.address[1] not in listening_ports())
        with pytest.raises(ConnectionRefusedError):
            Client(server.address)
        gate.open()
        assert client.rest() == reply(1, 10)
        assert server.wait(10.0) == 0


@pytest.mark.fault("F65")
def test_term_cuts_what_is_not_done_when_the_drain_timeout_has_passed() -> None:
    with ShardedServer(
        "tests.process.apps:busy", workers=2, options=["--drain-timeout", "1"]
    ) as server, Client(server.address) as client:  # fmt: skip
        assert client.ask(b"take your time") == b"working"
        began_s = time.monotonic()
        server.signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            assert client.rest() == b""
        assert time.monotonic() - began_s >= 1.0
        assert server.wait(1.0 + 5.0) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_asking_twice_ends_it_at_once(number: signal.Signals) -> None:
    with ShardedServer("tests.process.apps:busy", workers=4) as server, ExitStack() as stack:
        busy = [stack.enter_context(Client(server.address)) for _ in range(16)]
        idle = stack.enter_context(Client(server.address))
        for client in busy:
            assert client.ask(b"take your time") == b"working"
        server.signal(number)
        assert idle.rest() == b""  # The drain has begun: the next one is a second, not one signal sent twice.
        began_s = time.monotonic()
        server.signal(number)
        assert server.wait(10.0) == 0
        assert time.monotonic() - began_s < AT_ONCE_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_asking_again_when_all_is_over_is_no_death_by_signal(number: signal.Signals) -> None:
    """An impatient second Ctrl-C found the fleet gone and the supervisor's handlers restored, while the interpreter
    was still coming to its end: the server had stopped well, and the shell was told that a signal had killed it."""
    with ShardedServer("tests.process.apps:which", workers=2) as server:
        server.signal(number)
        server.output.wait('event="stopped"', 10.0)
        os.kill(server.pid, number)  # Nobody has waited for it: the pid is its own, even if it has ended.
        assert server.wait(10.0) == 0


def test_processes_of_an_executor_end_with_their_worker() -> None:
    """A worker left by `os._exit`, so that executors never heard of the end: after a clean stop with exit status 0 the
    processes of a ProcessPoolExecutor stayed for ever, and, forked, kept the worker's listener open."""
    with ShardedServer("tests.process.apps:pooled", workers=1) as server, Client(server.address) as client:
        client.send(b"12")
        assert client.line() == b"144"
        assert server.stop() == 0
        assert session_pids(server.pid) == []
        assert can_bind(*server.address)


def test_thread_that_never_ends_does_not_keep_its_worker() -> None:
    with ShardedServer("tests.process.apps:immortal", workers=1) as server:
        with Client(server.address) as client:
            assert client.ask(b"there?") == b"there?"
        began_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began_s < AT_ONCE_S


def test_quit_ends_it_at_once() -> None:
    with ShardedServer("tests.process.apps:busy", workers=4) as server, Client(server.address) as client:
        assert client.ask(b"take your time") == b"working"
        began_s = time.monotonic()
        server.signal(signal.SIGQUIT)
        assert server.wait(10.0) == 0
        assert time.monotonic() - began_s < AT_ONCE_S


def test_int_to_the_whole_terminal_lets_replies_finish(gate: Gate) -> None:
    """Control-C signals every process of the foreground group: workers leave it to the supervisor."""
    with ShardedServer("tests.process.apps:replies", workers=2) as server, Client(server.address) as client:
        assert client.ask(b"1 10 %d" % gate.port) == b"working"
        os.killpg(server.pid, signal.SIGINT)
        wait_until(lambda: server.address[1] not in listening_ports())
        gate.open()
        assert client.rest() == reply(1, 10)
        assert server.wait(10.0) == 0


@pytest.mark.fault("F18")
def test_workers_end_by_themselves_when_the_supervisor_is_killed(gate: Gate) -> None:
    """The law: without a supervisor the workers serve on for the grace, finish what they have, and leave nothing."""
    with ShardedServer(
        "tests.process.apps:replies", workers=4, options=["--drain-timeout", "5"], expect_status=-signal.SIGKILL
    ) as server, ExitStack() as stack:  # fmt: skip
        processes = [*server.wait_serving().values(), server.exporter_pid()]
        idle = stack.enter_context(Client(server.address))
        assert idle.ask(b"1 0 0") == b"working"
        busy = stack.enter_context(Client(server.address))
        assert busy.ask(b"2 10 %d" % gate.port) == b"working"
        began_s = time.monotonic()
        server.signal(signal.SIGKILL)
        assert server.wait(10.0) == -signal.SIGKILL
        with Client(server.address) as newcomer:
            assert newcomer.ask(b"3 0 0") == b"working"
        assert idle.rest() == b""
        assert time.monotonic() - began_s >= ORPHAN_GRACE_S / 2
        gate.open()
        assert busy.rest() == reply(2, 10)
        assert wait_gone(processes, ORPHAN_GRACE_S + 5.0 + 2.0) == []
        assert can_bind(*server.address)
        assert can_bind(*server.metrics_address)


@pytest.mark.fault("F18")
def test_orphans_cut_what_is_not_done_when_the_drain_timeout_has_passed() -> None:
    with ShardedServer(
        "tests.process.apps:busy", workers=2, options=["--drain-timeout", "1"], expect_status=-signal.SIGKILL
    ) as server, Client(server.address) as client:  # fmt: skip
        processes = [*server.wait_serving().values(), server.exporter_pid()]
        assert client.ask(b"take your time") == b"working"
        server.signal(signal.SIGKILL)
        assert wait_gone(processes, ORPHAN_GRACE_S + 1.0 + 3.0) == []
        assert can_bind(*server.address)


def test_signal_in_the_last_moment_of_a_worker_goes_by_in_silence(tmp_path: Path) -> None:
    """asyncio closes the socket that signals write to, and only then says so: a signal in between, as that of the timer
    for slow turns, had Python print a traceback. Here it comes while the loop closes its executor, which is in between.
    """
    (tmp_path / "signalled.py").write_text(SIGNALS_ITSELF)
    with ShardedServer("signalled:handler", workers=1, options=["--app-dir", str(tmp_path)]) as server:
        server.wait_serving()
        with Client(server.address) as client:
            assert client.ask(b"hello") == b"hello"
        server.stop()
        assert "has been signalled" in server.output.lines()
        assert not [line for line in server.output.lines() if "Exception ignored" in line]
