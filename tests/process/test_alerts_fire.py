"""Alerts, end to end: a real server misbehaves, and the right alert fires in a real Prometheus.

The rules are those that are shipped. Only time passes more quickly: five minutes become five seconds, fifteen half a
minute, and what has to be so for minutes, for a second. Thresholds stay.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.server import PROJECT, ShardedServer
from tests.prometheus_tool import Prometheus, find_tools, prometheus_scraping

pytestmark = [pytest.mark.process, pytest.mark.slow]

RANGE_S: Final = 5  # Five scrapes.
PATIENCE_S: Final = 40.0
QUIET_S: Final = 8.0
APP: Final = "async def handler(conn):\n    async for line in conn:\n        await conn.send(line)\n"
ENVIRONMENT: Final = {"PYTHONDONTWRITEBYTECODE": "1"}  # See test_reload.

Scenario = Callable[[Prometheus], Awaitable[None]]


def quick_rules() -> str:
    """The shipped rules, with less patience."""
    rules = (PROJECT / "deploy" / "prometheus" / "shardnet.rules.yml").read_text()
    rules = rules.replace("[15m]", "[30s]")
    rules, ranges = re.subn(r"\[\d+m\]", f"[{RANGE_S}s]", rules)
    rules, waits = re.subn(r"for: \d+[ms]", "for: 1s", rules)
    assert ranges >= 10
    assert waits >= 10
    return rules


def watched(server: ShardedServer, folder: Path, scenario: Scenario) -> None:
    """Run a scenario while Prometheus scrapes the server, and evaluates the rules."""
    find_tools()

    async def main() -> None:
        async with prometheus_scraping(server.metrics_address[1], folder, rules=quick_rules()) as prometheus:
            await scenario(prometheus)

    asyncio.run(main())


async def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Name and shard of each alert that fires; "" for those of a whole server."""
    return {
        (alert["labels"]["alertname"].removeprefix("Shardnet"), alert["labels"].get("shard", ""))
        for alert in await prometheus.alerts()
        if alert["state"] == "firing"
    }


async def until(
    prometheus: Prometheus, wanted: Callable[[set[tuple[str, str]]], bool], meanwhile: Callable[[], Any] = lambda: None
) -> set[tuple[str, str]]:
    """What fires, as soon as it is as wanted; `meanwhile` is called again and again."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not wanted(found := await firing(prometheus)):
        assert time.monotonic() < deadline_s, f"what fires stays {found}"
        await asyncio.to_thread(meanwhile)
    return found


@contextmanager
def load(server: ShardedServer, **more: Any) -> Iterator[None]:
    running = RunningLoad(server.load_addresses(), **{"connections": 8, "messages": 50, "repeat": True, **more})
    with running as begun:
        begun.wait_running()
        yield
        begun.finish()


def test_nothing_fires_on_a_server_that_is_well(tmp_path: Path) -> None:
    async def scenario(prometheus: Prometheus) -> None:
        begun_s = time.monotonic()
        while time.monotonic() < begun_s + QUIET_S:
            # The drops of the whole host may be those of others.
            assert await firing(prometheus) <= {("ListenDrops", "")}
        assert await prometheus.query("shard:shardnet_loop_utilization:ratio1m")
        assert await prometheus.query("instance:shardnet_connections_imbalance:ratio")

    with ShardedServer("examples.echo:handler", workers=2) as server:
        server.wait_serving()
        with load(server, max_size_bytes=1000):
            watched(server, tmp_path, scenario)


def test_kill_loop_of_one_shard_fires_for_that_shard(tmp_path: Path) -> None:
    with ShardedServer("examples.echo:handler", workers=2) as server:
        server.wait_serving()

        def kill() -> None:
            shard = next((one for one in server.shards() if one.shard == 1), None)
            if shard is not None and shard.pid is not None and shard.state == "serving":
                with suppress(ProcessLookupError):  # What was read may be of the last one, and it is gone by now.
                    os.kill(shard.pid, signal.SIGKILL)

        async def scenario(prometheus: Prometheus) -> None:
            found = await until(prometheus, lambda now: ("ShardRestarting", "1") in now, kill)
            assert ("ShardRestarting", "0") not in found

        watched(server, tmp_path, scenario)


def test_stalled_shard_fires_until_it_turns_again(tmp_path: Path) -> None:
    with ShardedServer("examples.echo:handler", workers=2, options=["--hang-timeout", "off"]) as server:
        server.wait_serving()

        async def scenario(prometheus: Prometheus) -> None:
            server.hang(1)
            found = await until(prometheus, lambda now: ("ShardStalled", "1") in now)
            assert ("ShardStalled", "0") not in found
            server.resume(1)
            await until(prometheus, lambda now: ("ShardStalled", "1") not in now)

        watched(server, tmp_path, scenario)


def test_exhausted_swap_buffer_fires(tmp_path: Path) -> None:
    """Many clients send at once, and the buffer of the worker holds what one of them sends."""
    with (
        ShardedServer("examples.echo:handler", workers=1, options=["--swap-size", "4096"]) as server,
        ExitStack() as stack,
    ):
        server.wait_serving()
        clients = [stack.enter_context(Client(server.address)) for _ in range(32)]

        def talk() -> None:
            for client in clients:
                client.send(bytes(1000))
            for client in clients:
                client.exactly(1000)

        async def scenario(prometheus: Prometheus) -> None:
            await until(prometheus, lambda now: ("SwapBufferExhausted", "0") in now, talk)

        watched(server, tmp_path, scenario)


def test_failed_reload_fires_until_one_succeeds(tmp_path: Path) -> None:
    app = tmp_path / "mended.py"
    app.write_text(APP)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with ShardedServer("mended:handler", options=["--app-dir", str(tmp_path)], env=ENVIRONMENT) as server:
        server.wait_serving()

        async def scenario(prometheus: Prometheus) -> None:
            app.write_text("import no_such_module\n" + APP)
            server.signal(signal.SIGHUP)
            await until(prometheus, lambda now: ("ReloadFailed", "") in now)
            app.write_text(APP)
            server.signal(signal.SIGHUP)
            await until(prometheus, lambda now: ("ReloadFailed", "") not in now)

        watched(server, folder, scenario)
