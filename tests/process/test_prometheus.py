"""A real Prometheus scrapes a real server, across the death of a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shardnet.compiled import ENGINE
from tests.harness.client import Client
from tests.harness.server import ShardedServer
from tests.prometheus_tool import Prometheus, find_tools, prometheus_scraping

pytestmark = pytest.mark.process

CLIENTS = 40
MESSAGE = b"0123456789abcde\n"


async def _until(prometheus: Prometheus, promql: str, wanted: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Query again and again until the answer is as wanted. Each query is a round trip, so this is no busy loop."""
    deadline_s = time.monotonic() + 30
    while True:
        answer = await prometheus.query(promql)
        if wanted(answer):
            return answer
        assert time.monotonic() < deadline_s, f"{promql} stays {answer}"


@pytest.mark.fault("F63")
def test_prometheus_sees_every_shard_and_counters_survive_a_kill(tmp_path: Path) -> None:
    find_tools()

    def talk(server: ShardedServer) -> None:
        for _ in range(CLIENTS):
            with Client(server.address) as client:
                assert client.ask(MESSAGE[:-1]) == MESSAGE[:-1]

    async def scenario(server: ShardedServer) -> None:
        async with prometheus_scraping(server.metrics_address[1], tmp_path) as prometheus:
            total = "sum(shardnet_received_bytes_total)"
            first = CLIENTS * len(MESSAGE)
            await _until(prometheus, total, lambda answer: answer == {"{}": first})
            accepted = await prometheus.query("sum by (shard) (shardnet_connections_accepted_total)")
            assert len(accepted) == server.shard_count
            assert sum(accepted.values()) == CLIENTS
            assert await prometheus.query("up") == {"{}": 1}
            assert await prometheus.query(f"count(shardnet_build_info{{engine='{ENGINE}'}})") == {"{}": 1}

            os.kill(server.wait_serving()[0], signal.SIGKILL)
            await _until(
                prometheus, "sum(shardnet_shard_restarts_total{reason='signal'})", lambda answer: answer == {"{}": 1}
            )
            server.wait_serving()
            await asyncio.to_thread(talk, server)
            await _until(prometheus, total, lambda answer: answer == {"{}": 2 * first})
            resets = await prometheus.query("sum(resets(shardnet_received_bytes_total[5m]))")
            assert resets == {"{}": 0}, "a counter went backwards"

    with ShardedServer("examples.echo:handler", workers=3) as server:
        server.wait_serving()
        talk(server)
        asyncio.run(scenario(server))
