"""Every query of every dashboard, asked of a real Prometheus that scrapes a real server under load."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Final

import pytest

from tests.harness.loading import RunningLoad
from tests.harness.server import ShardedServer
from tests.prometheus_tool import Prometheus, find_tools, prometheus_scraping

pytestmark = pytest.mark.process

DASHBOARDS: Final = Path(__file__).resolve().parents[2] / "grafana" / "dashboards"
PATIENCE_S: Final = 40.0
# Scraped each second; Grafana takes four times the interval.
VALUES: Final = {"$job": ".+", "$instance": ".+", "$shard": ".+", "$__rate_interval": "4s"}


def queries() -> list[tuple[str, str]]:
    """Dashboard and panel, and the query, with the variables replaced."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        page = json.loads(path.read_text())
        panels = [panel for panel in page["panels"] if panel["type"] != "row"]
        panels += [panel for row in page["panels"] for panel in row.get("panels", ())]
        asked = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
        asked += [(mark["name"], mark["expr"]) for mark in page["annotations"]["list"]]
        for title, expr in asked:
            for variable, value in VALUES.items():
                expr = expr.replace(variable, value)
            found.append((f"{path.stem}: {title}", expr))
    return found


# On a server that is well these have nothing to tell.
MAY_BE_EMPTY: Final = ("Reloads", "Restarts")


async def unanswered(prometheus: Prometheus) -> list[str]:
    """The panels whose queries return nothing, or nothing that is a number."""
    missing = []
    for name, expr in queries():
        answer = await prometheus.query(expr)
        if not any(math.isfinite(value) for value in answer.values()) and not name.endswith(MAY_BE_EMPTY):
            missing.append(f"{name}: {expr}")
    return missing


def test_every_query_of_the_dashboards_returns_data(tmp_path: Path) -> None:
    find_tools()

    async def scenario(server: ShardedServer) -> None:
        async with prometheus_scraping(server.metrics_address[1], tmp_path) as prometheus:
            deadline_s = time.monotonic() + PATIENCE_S
            while missing := await unanswered(prometheus):
                assert time.monotonic() < deadline_s, "\n".join(missing)
                await asyncio.sleep(0)

    with ShardedServer("examples.echo:handler", workers=2) as server:
        server.wait_serving()
        load = RunningLoad(
            server.load_addresses(), connections=8, messages=20, max_size_bytes=2000, repeat=True, deadline_s=50.0
        )
        with load as running:
            running.wait_running()
            asyncio.run(scenario(server))
            running.finish()
