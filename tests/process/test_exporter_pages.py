"""The pages of a real server, whatever its workers are doing: hung, dead, busy, or going."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any, Final

import pytest

from shardnet.catalogue.families import SHARD_STATES
from shardnet.testing.samples import get, get_json
from tests.harness.client import Client
from tests.harness.server import ShardedServer, shardnet, wait_until

pytestmark = pytest.mark.process

ECHO: Final = "examples.echo:handler"
SPINNING: Final = """\
async def handler(conn):
    await conn.send(b"%d\\n" % conn.shard.id)
    while True:
        pass
"""
KILLS: Final = 12  # More, and the supervisor waits longer and longer before the next attempt.


def ready(server: ShardedServer) -> tuple[bool, dict[str, Any]]:
    status, details = get_json(server.metrics_address, "/readyz")
    assert status == (200 if details["ready"] else 503)
    return details["ready"], details


def check_pages(server: ShardedServer, *, statuses: tuple[int, ...] = (200,)) -> dict[str, Any]:
    """Every page answers, and `/metrics` with every shard; what `/healthz` says."""
    samples = server.metrics()
    assert len(samples.by("shard", "shard_restarts_total")) == server.shard_count
    assert get(server.metrics_address, "/livez")[0] == 200
    assert get(server.metrics_address, "/readyz")[0] in statuses
    status, health = get_json(server.metrics_address, "/healthz")
    assert status in statuses
    assert [shard["shard"] for shard in health["shards"]] == list(range(server.shard_count))
    found: dict[str, Any] = health
    return found


def test_healthz_tells_everything_of_each_shard() -> None:
    with ShardedServer(ECHO, workers=3) as server:
        pids = server.wait_serving()
        health = check_pages(server)
        assert health["status"] == "ok"
        assert health["pid"] == server.pid
        assert health["generation"] == 1
        assert health["uptime_s"] >= 0
        for number, shard in enumerate(health["shards"]):
            assert 0 <= shard.pop("heartbeat_age_s") < 60
            assert 0 <= shard.pop("uptime_s") <= health["uptime_s"]
            assert shard == {
                "shard": number,
                "state": "serving",
                "pid": pids[number],
                "generation": 1,
                "restarts": 0,
            }


def test_healthz_counts_the_restarts_that_nobody_asked_for() -> None:
    with ShardedServer(ECHO, workers=2) as server:
        server.wait_serving()
        server.kill(1)
        server.wait_shards(lambda shards: [shard.restarts for shard in shards] == [0, 1])
        server.wait_serving()
        server.reload()
        server.wait_metrics(lambda now: now.total("shard_restarts_total", reason="reload") == 2)
        assert [shard.restarts for shard in server.shards()] == [0, 1]


def test_pages_answer_while_all_workers_are_stopped() -> None:
    with ShardedServer(ECHO, workers=3) as server:
        server.wait_serving()
        for shard in range(3):
            server.hang(shard)
        before = check_pages(server)["shards"]
        wait_until(
            lambda: all(
                now["heartbeat_age_s"] > then["heartbeat_age_s"]
                for now, then in zip(check_pages(server)["shards"], before, strict=True)
            )
        )


def test_pages_answer_while_all_workers_are_killed_again_and_again() -> None:
    with ShardedServer(ECHO, workers=2) as server:
        killed = 0
        while killed < KILLS:
            for shard in check_pages(server, statuses=(200, 503))["shards"]:
                assert shard["state"] in SHARD_STATES
                if shard["state"] == "serving" and shard["pid"]:
                    os.kill(shard["pid"], signal.SIGKILL)
                    killed += 1
        server.wait_serving(30.0)
        assert sum(shard.restarts for shard in server.shards()) > 0


def test_pages_answer_while_all_workers_are_in_a_loop_without_end(tmp_path: Path) -> None:
    (tmp_path / "spinning.py").write_text(SPINNING)
    options = ("--drain-timeout", "0.2")
    with ShardedServer("spinning:handler", workers=2, app_dir=tmp_path, options=options) as server:
        server.wait_serving()
        clients: list[socket.socket] = []
        busy: set[int] = set()
        while busy != {0, 1}:
            client = server.connect()
            clients.append(client)
            busy.add(int(client.recv(2)))
        for _ in range(20):
            check_pages(server)
        for client in clients:
            client.close()


def test_server_is_ready_when_as_many_shards_serve_as_it_needs() -> None:
    with ShardedServer(ECHO, workers=3, options=("--ready-min-shards", "2", "--name", "ready-min")) as server:
        server.wait_serving()
        assert ready(server)[0]
        for shard, expected in ((1, True), (2, False)):
            assert shardnet("drain", str(shard), "--name", "ready-min").status == 0
            is_ready, details = ready(server)
            assert is_ready is expected
            assert (details["shards_serving"], details["shards_needed"]) == (3 - shard, 2)
        assert shardnet("undrain", "1", "--name", "ready-min").status == 0
        assert ready(server)[0]
        assert shardnet("scale", "1", "--name", "ready-min").status == 0
        is_ready, details = ready(server)
        assert is_ready, "a smaller fleet needs all that are left, and no more"
        assert details["shards_needed"] == 1


def test_server_that_needs_all_shards_is_not_ready_without_one() -> None:
    with ShardedServer(ECHO, workers=2, options=("--ready-min-shards", "all", "--name", "ready-all")) as server:
        server.wait_serving()
        assert ready(server)[0]
        assert shardnet("drain", "0", "--name", "ready-all").status == 0
        assert not ready(server)[0]
        assert shardnet("undrain", "0", "--name", "ready-all").status == 0
        wait_until(lambda: ready(server)[0])


def test_server_that_stops_is_not_ready_and_tells_until_the_end() -> None:
    with ShardedServer("tests.process.apps:busy", workers=2, options=("--drain-timeout", "3")) as server:
        server.wait_serving()
        with Client(server.address) as client:
            assert client.ask(b"work") == b"working"
            assert ready(server)[0]
            server.signal(signal.SIGTERM)
            wait_until(lambda: not ready(server)[0])
            health = check_pages(server, statuses=(503,))
            assert health["status"] == "failing"
            assert "draining" in [shard["state"] for shard in health["shards"]]
            assert server.wait(20.0) == 0
