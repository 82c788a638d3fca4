"""Smaller things that go wrong while a server runs, and hurt nobody beside."""

from __future__ import annotations

import os
import signal
import socket
import struct
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad, load
from tests.harness.procs import wait_gone
from tests.harness.report import Outcome
from tests.harness.scrape import get
from tests.harness.server import ShardedServer, wait_until

pytestmark = pytest.mark.process

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, at once.


@pytest.mark.fault("F63")
def test_exporter_that_is_killed_comes_back_with_all_that_was_counted() -> None:
    """Its listener belongs to the supervisor: a scrape that comes in between waits, and is answered."""
    with ShardedServer("examples.echo:handler") as server:
        workers = server.wait_serving()
        assert load(server.load_addresses(), connections=20, messages=2).failures == {}
        before = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        killed = server.exporter_pid()
        os.kill(killed, signal.SIGKILL)
        assert get(server.metrics_address, "/livez")[0] == 200
        after = server.scrape()
        assert after.went_backwards(before) == []
        assert after.total("connections_accepted_total") == 20
        assert after.unasked_restarts == 0
        assert server.exporter_pid() != killed
        assert server.worker_pids() == workers


def test_worker_that_is_asked_to_leave_is_replaced_without_a_loss() -> None:
    """TERM to a worker, by an operator or a service manager: its successor comes first, its connections end well.

    The law: every connection is accepted, by the old worker or the new one. The old one ends those on which nothing is
    under way, cleanly; that may be one whose client is just about to speak, which it cannot know.
    """
    with ShardedServer("tests.process.apps:greeting", workers=2) as server:
        with RunningLoad(
            server.load_addresses(), connections=32, messages=1, max_size_bytes=2000, greeting="hello\n", repeat=True
        ) as running:
            running.wait_running()
            left = []
            for _ in range(4):
                for shard, pid in sorted(server.wait_serving().items()):
                    os.kill(pid, signal.SIGTERM)
                    server.wait_shards(lambda now, shard=shard, pid=pid: now[shard].pid not in (pid, None))  # type: ignore[misc]
                    assert wait_gone([pid], 10.0) == []
                    left.append(pid)
            report = running.finish()
        assert len(set(left)) == 8
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert set(report.failures) <= {Outcome.SERVED_EOF}
        assert report.count(Outcome.SERVED_EOF) <= samples.total("connections_closed_total", reason="drain")
        assert samples.unasked_restarts == 0
        assert samples.total("connections_accepted_total") == report.sessions
        assert samples.total("connections_closed_total") == report.sessions


@pytest.mark.fault("F03")
def test_worker_that_exits_unasked_is_a_crash_also_with_status_zero() -> None:
    with ShardedServer("tests.process.apps:exiting", workers=2) as server, Client(server.address) as client:
        shard = int(client.ask(b"which"))
        client.send(b"exit\n")
        assert client.rest() == b""
        samples = server.wait_metrics(lambda now: now.total("shard_restarts_total") > 0)
        assert samples.total("shard_restarts_total", shard=shard, reason="crash") == 1
        server.wait_serving()

        def both_answer() -> bool:
            with ExitStack() as stack:
                clients = [stack.enter_context(Client(server.address)) for _ in range(16)]
                return {client.ask(b"which") for client in clients} == {b"0", b"1"}

        wait_until(both_answer)  # The sibling accepts for the shard until it is told that the successor does.


@pytest.mark.parametrize("app", ["examples.echo:handler", "examples.echo:on_data"])
def test_clients_that_reset_are_counted_and_forgotten(app: str) -> None:
    """Before they are accepted, before they are read, while they are written to: every connection that was accepted
    is closed and counted once, nothing is logged as an error, and the others are served."""
    with ShardedServer(app, workers=2) as server:
        workers = server.wait_serving()
        for number in range(300):
            with Client(server.address) as client:
                match number % 3:
                    case 1:
                        client.send(b"x" * 10_000)
                    case 2:
                        client.send(b"x" * 1_000_000)
                        client.exactly(1)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with Client(server.address) as client:
            assert client.ask(b"and me?") == b"and me?"
        samples = server.wait_metrics(lambda now: now.total("connections_closed_total") >= 301)
        assert samples.total("connections_accepted_total") == samples.total("connections_closed_total") == 301
        assert samples.total("connections_closed_total", reason="reset") > 0
        assert samples.total("connections_active") == 0
        assert samples.total("handler_exceptions_total") == 0
        assert server.worker_pids() == workers
        assert not [line for line in server.output.lines("stderr") if " error " in line]


@pytest.mark.fault("F27")
def test_connections_beyond_the_file_limit_wait_until_there_is_room() -> None:
    """The law: who does not fit waits in the queue, whole, and is served when somebody leaves."""
    limit = 200
    with (
        ShardedServer("tests.process.apps:which", workers=1, prefix=limited_to(limit)) as server,
        ExitStack() as stack,
    ):
        room = int(server.scrape().total("connections_limit"))
        assert limit / 2 < room < limit
        clients = [stack.enter_context(Client(server.address)) for _ in range(limit + 50)]
        server.wait_metrics(lambda now: now.total("connections_active") == room)
        for client in clients[:room]:
            assert client.line() == b"0"
            client.close()
        for client in clients[room:]:
            assert client.line() == b"0"
        assert server.scrape().unasked_restarts == 0


def test_file_limit_is_raised_and_said_when_it_is_low() -> None:
    with ShardedServer(
        "examples.echo:handler", prefix=limited_to(300, soft=100), options=["--max-connections", "5000"]
    ) as server:
        warning = server.output.wait("--max-connections 5000", 5.0).string
        assert "300" in warning
        room = int(server.scrape().total("connections_limit", shard=0))
        assert 100 < room < 300
        assert str(room) in warning


def limited_to(hard: int, soft: int | None = None) -> list[str]:
    """Start with these limits of open files."""
    return ["sh", "-c", f'ulimit -Sn {soft or hard} && ulimit -Hn {hard} && exec "$@"', "sh"]
