"""An app's lifespan and hooks in real workers: from before the first connection until after the last."""

from __future__ import annotations

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer, shardnet

pytestmark = pytest.mark.process

APP = 4


def said(server: ShardedServer, *events: str) -> list[str]:
    """Which of these events the server's log has, in its order."""
    lines = server.output.lines("stderr")
    return [event for line in lines for event in events if f'event="{event}"' in line]


def test_app_with_everything_is_served_from_its_beginning_to_its_end() -> None:
    with ShardedServer("tests.process.kind_apps:whole", workers=2) as server:
        clients = [Client(server.address) for _ in range(8)]
        for client in clients:
            assert client.line() in (b"hello from 0", b"hello from 1")
            assert client.ask(b"x") == b"x"
        assert said(server, "life begins", "life ends", "client gone") == ["life begins"] * 2
        server.signal(15)
        for client in clients:
            assert client.rest() == b"goodbye\n"
            client.close()
        assert server.wait(20.0) == 0
        for shard in range(2):
            lines = [line for line in server.output.lines("stderr") if f"shard={shard}" in line]
            events = [line.partition('event="')[2].partition('"')[0] for line in lines if 'event="' in line]
            own = [event for event in events if event in ("life begins", "life ends", "client gone")]
            assert own[0] == "life begins"
            assert own[-1] == "life ends"
            assert "connections=0" in next(line for line in lines if "life ends" in line)
        assert said(server, "client gone") == ["client gone"] * 8


@pytest.mark.parametrize(
    ("app", "error"),
    [
        ("fails_at_the_start", "ConnectionError: the database is not there"),
        ("cancelled_at_the_start", "CancelledError"),
    ],
)
def test_lifespan_that_fails_at_the_start_is_told_in_one_line(app: str, error: str) -> None:
    finished = shardnet(
        *("run", f"tests.process.kind_apps:{app}", "--workers", "2"),
        *("--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"),
    )
    assert finished.status == APP
    assert len(finished.stderr_lines) == 1, finished.stderr
    assert finished.stderr_lines[0].endswith(f"tests.process.kind_apps:{app}: the lifespan raised {error}")


@pytest.mark.parametrize(
    ("app", "error"),
    [
        ("fails_at_the_end", "ConnectionError: the database is gone"),
        ("exits_at_the_end", "SystemExit: that was all"),
    ],
)
def test_lifespan_that_fails_at_the_end_is_logged(app: str, error: str) -> None:
    tracebacks = 1 if app == "fails_at_the_end" else 2  # asyncio lets an exit out of the task, too.
    with ShardedServer(f"tests.process.kind_apps:{app}", workers=1, expect_tracebacks=tracebacks) as server:
        with Client(server.address) as client:
            assert client.ask(b"x") == b"x"
        assert server.stop() == 0
        server.output.wait(error, 10.0)
        assert said(server, "lifespan raised") == ["lifespan raised"]


def test_lifespan_that_hangs_at_the_end_is_given_up() -> None:
    options = ["--drain-timeout", "1"]
    with ShardedServer("tests.process.kind_apps:hangs_at_the_end", workers=2, options=options) as server:
        assert server.stop() == 0
        assert said(server, "lifespan took too long to end") == ["lifespan took too long to end"] * 2


def test_worker_whose_lifespan_fails_while_serving_makes_room_and_cuts_nobody() -> None:
    """A TaskGroup that fails cancels the task that entered it. That was the worker's own, which then ended on the spot,
    with all its connections."""
    with ShardedServer("tests.process.kind_apps:group", workers=1, expect_tracebacks=2) as server:
        before = server.wait_serving()
        with Client(server.address) as client, Client(server.address) as neighbour:
            assert neighbour.ask(b"x") == b"x"
            assert client.ask(b"fail") == b"fail"
            server.output.wait("lifespan has ended while serving", 10.0)
            assert neighbour.ask(b"y") == b"y"
            server.wait_shards(lambda shards: all(s.state == "serving" and s.pid != before[0] for s in shards))
            assert neighbour.rest() == b""  # An orderly end, as from any drain.
            assert client.rest() == b""
        with Client(server.address) as client:
            assert client.ask(b"z") == b"z"
        assert said(server, "lifespan raised") == ["lifespan raised"]
        assert any("LookupError: in the background" in line for line in server.output.lines("stderr"))


def test_lifespan_with_a_task_group_ends_well() -> None:
    with ShardedServer("tests.process.kind_apps:group", workers=2) as server:
        with Client(server.address) as client:
            assert client.ask(b"x") == b"x"
        assert server.stop() == 0
        assert said(server, "lifespan raised") == []
