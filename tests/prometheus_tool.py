"""A real Prometheus for tests: found, or the test is skipped; started on a free port, and ended.

Lives here: the process, its configuration, its HTTP API. Must not live here: what is scraped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

__all__ = ["Prometheus", "Tools", "find_tools", "prometheus_scraping"]

PROJECT: Final = Path(__file__).parent.parent
UNPACKED: Final = PROJECT / ".tools/usr/bin"
READY: Final = "Server is ready to receive web requests"
READY_WITHIN_S: Final = 30.0
STOPPED_WITHIN_S: Final = 10.0

# Everything it writes is thrown away with the test's directory; everything it listens on is the loopback.
CONFIGURATION: Final = """\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: [{rules}]
scrape_configs:
  - job_name: shardnet
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of Debian's prometheus package."""

    prometheus: Path
    promtool: Path


def find_tools() -> Tools:
    """The programs, on PATH or as tools/fetch-prometheus.sh leaves them. Skips the test when there are none."""
    found = [shutil.which(name) or shutil.which(name, path=UNPACKED) for name in ("prometheus", "promtool")]
    if not all(found):
        pytest.skip("no prometheus on PATH or in .tools; tools/fetch-prometheus.sh fetches it on Debian and Ubuntu")
    prometheus, promtool = (Path(str(program)) for program in found)
    return Tools(prometheus, promtool)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus, asked through its HTTP API."""

    client: httpx.AsyncClient

    async def query(self, promql: str) -> dict[str, float]:
        """Value by labels (as JSON, without the name's, the job's and the instance's) of an instant query."""
        results = await self._get("query", query=promql)
        return {
            json.dumps(_without(result["metric"], "__name__", "job", "instance")): float(result["value"][1])
            for result in results["result"]
        }

    async def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, and how that went."""
        active: list[dict[str, Any]] = (await self._get("targets"))["activeTargets"]
        return active

    async def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or fire, with state, labels and annotations."""
        found: list[dict[str, Any]] = (await self._get("alerts"))["alerts"]
        return found

    async def metadata(self) -> dict[str, list[dict[str, str]]]:
        """Type and help by metric, as it understood them."""
        data: dict[str, list[dict[str, str]]] = await self._get("metadata")
        return data

    async def _get(self, what: str, **parameters: str) -> Any:
        response = await self.client.get(f"/api/v1/{what}", params=parameters)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]


def _without(labels: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in sorted(labels.items()) if name not in names}


@contextlib.asynccontextmanager
async def prometheus_scraping(
    port: int, directory: Path, *, rules: str = "", more: str = ""
) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes this port of the loopback, and evaluates these rules, each second; its data live in
    `directory`. `more` are lines for its scrape configuration, indented by four."""
    program = find_tools().prometheus
    configuration = CONFIGURATION.format(port=port, rules="rules.yml" if rules else "")
    (directory / "prometheus.yml").write_text(configuration + more)
    (directory / "rules.yml").write_text(rules)
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        program,
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={own}",
        cwd=directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        await asyncio.wait_for(_ready(process.stderr), READY_WITHIN_S)
        drain = asyncio.create_task(process.stderr.read())  # So that it never waits for a full pipe.
        async with httpx.AsyncClient(base_url=f"http://{own}", timeout=10.0) as client:
            yield Prometheus(client)
        process.terminate()
        await asyncio.wait_for(drain, STOPPED_WITHIN_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ready(stderr: asyncio.StreamReader) -> None:
    said = []
    while line := (await stderr.readline()).decode():
        if READY in line:
            return
        said.append(line)
    raise AssertionError(f"prometheus did not come up:\n{''.join(said)}")
