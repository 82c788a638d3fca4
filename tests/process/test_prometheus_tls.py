"""A real Prometheus scrapes a real server over TLS, with token and certificate, which are replaced while it does."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from shardnet.exporter.reception import CLIENTS_MAX
from tests.exporter_kit import Authority, authority, tell
from tests.harness.server import PROJECT, ShardedServer
from tests.prometheus_tool import Prometheus, find_tools, prometheus_scraping

__all__ = ["authority"]  # A fixture.

pytestmark = [pytest.mark.process, pytest.mark.slow]

PAGE: Final = PROJECT / "docs" / "exporter.md"
SCRAPE: Final = """\
    scheme: https
    authorization: {{credentials_file: {token}}}
    tls_config: {{ca_file: {ca}, cert_file: {certificate}, key_file: {key}, server_name: localhost}}
"""


async def _until(prometheus: Prometheus, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Look at its one target until that is as wanted. Each look is a round trip, so this is no busy loop."""
    deadline_s = time.monotonic() + 30
    while True:
        targets = await prometheus.targets()  # None before it has read its configuration.
        if targets and wanted(targets[0]):
            return targets[0]
        assert time.monotonic() < deadline_s, f"it stays {targets}"


def test_prometheus_scrapes_over_tls_with_a_token_and_a_certificate(authority: Authority, tmp_path: Path) -> None:
    find_tools()
    certificate, key = authority.issue("scraped")
    own_certificate, own_key = authority.issue("prometheus")
    token, presented = tmp_path / "token", tmp_path / "presented"
    for file in (token, presented):
        file.write_text("first\n")
    options = (
        *("--metrics-tls-cert", str(certificate), "--metrics-tls-key", str(key)),
        *("--metrics-client-ca", str(authority.certificate), "--metrics-token-file", str(token)),
    )
    more = SCRAPE.format(token=presented, ca=authority.certificate, certificate=own_certificate, key=own_key)

    async def scenario(server: ShardedServer) -> None:
        async with prometheus_scraping(server.metrics_address[1], tmp_path, more=more) as prometheus:
            target = await _until(prometheus, lambda now: now["health"] == "up")
            assert target["scrapeUrl"].startswith("https://")
            while (found := await prometheus.query("shardnet_shards_configured")) != {"{}": 3}:
                assert found == {}

            tell(token, "second\n")
            refused = await _until(prometheus, lambda now: now["health"] == "down")
            assert "401" in refused["lastError"]
            tell(presented, "second\n")
            await _until(prometheus, lambda now: now["health"] == "up")

            new_certificate, new_key = authority.issue("scraped", serial=2)
            new_certificate.replace(certificate)
            new_key.replace(key)
            others = [socket.create_connection(server.metrics_address, 10) for _ in range(CLIENTS_MAX)]
            # Its idle connection has had to make room. The next one begins with the new certificate.
            await asyncio.to_thread(server.output.wait, f"read anew.*{certificate.name}", 20)
            scraped = (await _until(prometheus, lambda now: now["health"] == "up"))["lastScrape"]
            await _until(prometheus, lambda now: now["health"] == "up" and now["lastScrape"] > scraped)
            for other in others:
                other.close()

    with ShardedServer("examples.echo:handler", workers=3, options=options) as server:
        server.output.wait("serving", 20)
        asyncio.run(scenario(server))


def test_configurations_in_the_documentation_are_good(authority: Authority, tmp_path: Path) -> None:
    """What docs/exporter.md says to write into prometheus.yml, promtool takes."""
    promtool = find_tools().promtool
    blocks = re.findall(r"```yaml\n(# prometheus\.yml.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    certificate, key = authority.issue("documented")
    (tmp_path / "token").write_text("token")
    there = {
        "/etc/prometheus/shardnet-ca.crt": authority.certificate,
        "/etc/prometheus/shardnet.token": tmp_path / "token",
        "/etc/prometheus/prometheus.crt": certificate,
        "/etc/prometheus/prometheus.key": key,
    }
    for number, block in enumerate(blocks):
        for name, path in there.items():
            block = block.replace(name, str(path))
        file = tmp_path / f"{number}.yml"
        file.write_text(block)
        check = subprocess.run([promtool, "check", "config", file], capture_output=True, text=True, check=False)
        assert check.returncode == 0, f"{block}\n{check.stdout}\n{check.stderr}"
        assert "/etc/" not in block
