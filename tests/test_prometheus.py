"""A real Prometheus reads what the exporter writes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.board import Board, Role
from shardnet.catalogue.cells import declare_supervisor_metrics, declare_worker_metrics
from shardnet.exporter import Exporter
from shardnet.exporter.http_pages import HttpPages, Request, Response
from shardnet.watcher.counters import LOOP_TURNS
from tests.page_server import serving
from tests.prometheus_tool import find_tools, prometheus_scraping

SHARDS = 2


@pytest.fixture
def board() -> Iterator[Board]:
    """A board where every cell holds its shard times 1000 and its own number."""
    board = Board.create(SHARDS)
    supervisor = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    supervisor.counts[declare_supervisor_metrics(supervisor).shards_configured] = SHARDS
    for shard in range(SHARDS):
        row = board.row(board.claim(Role.WORKER, shard, 1, shard + 1, started_ns=0))
        for cell in range(declare_worker_metrics(row, ["127.0.0.1:9000"]).count):
            row.counts[cell] = 1000 * shard + cell
    yield board
    board.close()


def test_prometheus_scrapes_what_the_board_says(board: Board, tmp_path: Path) -> None:
    find_tools()
    exporter = Exporter(board, version="1.2.3", engine="python")
    scrapes: asyncio.Queue[Request] = asyncio.Queue()

    def respond(request: Request) -> Response:
        scrapes.put_nowait(request)
        return exporter.respond(request)

    async def scraped() -> None:
        """Waits until a scrape that begins from now on has been stored: until the one after it begins."""
        while not scrapes.empty():
            scrapes.get_nowait()
        for _ in range(2):
            await asyncio.wait_for(scrapes.get(), 20)

    async def main() -> None:
        async with serving(HttpPages(respond)) as server, prometheus_scraping(server.port, tmp_path) as prometheus:
            await scraped()
            assert await prometheus.query("up") == {"{}": 1}
            assert [target["lastError"] for target in await prometheus.targets()] == [""]
            assert await prometheus.query("shardnet_shards_configured") == {"{}": SHARDS}
            assert await prometheus.query("shardnet_loop_turns_total") == {
                '{"shard": "0"}': LOOP_TURNS,
                '{"shard": "1"}': 1000 + LOOP_TURNS,
            }
            assert len(await prometheus.query("shardnet_completions_total")) == SHARDS * LOOP_TURNS
            assert await prometheus.query("shardnet_build_info{version='1.2.3',engine='python'} * 0") != {}
            types = {name.removesuffix("_total"): of[0]["type"] for name, of in (await prometheus.metadata()).items()}
            assert types["shardnet_connections_accepted"] == "counter"
            assert types["shardnet_connections_active"] == "gauge"

            worker = board.snapshot().workers[0]
            board.row(worker.row).counts[LOOP_TURNS] += 100
            board.fold(worker.row)
            await scraped()
            assert await prometheus.query("shardnet_loop_turns_total{shard='0'}") == {
                '{"shard": "0"}': LOOP_TURNS + 100
            }
            assert list(await prometheus.query("shardnet_connections_limit")) == ['{"shard": "1"}']
            assert server.connections == 1  # Prometheus keeps its connection.

    asyncio.run(main())


def test_promtool_finds_nothing_to_say(board: Board) -> None:
    promtool = find_tools().promtool
    response = Exporter(board, version="1.2.3", engine="python").respond(Request("/metrics", {}))
    check = subprocess.run([promtool, "check", "metrics"], input=response.body, capture_output=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")
