"""The app's own metrics on their way to `/metrics`: right over processes, restarts and reloads."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

ENVIRONMENT: Final = {"PYTHONDONTWRITEBYTECODE": "1"}  # See test_reload.

APP: Final = '''
import os, signal
from shardnet.metrics import Counter, Gauge, Histogram

IMPORTS = Counter("app_imports_total", "Imports.")
IMPORTS.inc()
LINES = Counter("app_lines_total", "Lines, by their first letter.", ["letter"], series_max=3)
SIZES = Histogram("app_line_bytes", "Sizes of lines.", buckets=BUCKETS)
OPEN = Gauge("app_open", "Connections, as the app counts them.")
MORE

async def handler(conn):
    """Answers each line, having counted it; `die` kills the worker."""
    OPEN.inc()
    try:
        async for line in conn:
            if line == b"die\\n":
                os.kill(os.getpid(), signal.SIGKILL)
            LINES.labels(line[:1].decode()).inc()
            SIZES.observe(len(line))
            await conn.send(line)
    finally:
        OPEN.dec()
'''


def write_app(folder: Path, more: str = "", buckets: str = "(2, 4)") -> None:
    (folder / "counting.py").write_text(APP.replace("MORE", more).replace("BUCKETS", buckets))


def serve(folder: Path, *options: str, workers: int = 2, expect_tracebacks: int = 0) -> ShardedServer:
    return ShardedServer(
        "counting:handler",
        workers=workers,
        options=["--app-dir", str(folder), *options],
        env=ENVIRONMENT,
        expect_tracebacks=expect_tracebacks,
    )


def own(server: ShardedServer, name: str, **labels: str) -> float | None:
    """The sum of a metric of the app's over all shards; None when there is none."""
    found = [
        value for (full, has), value in server.scrape().values.items() if full == name and labels.items() <= set(has)
    ]
    return sum(found) if found else None


def say(server: ShardedServer, *lines: bytes) -> None:
    with Client(server.address) as client:
        for line in lines:
            assert client.ask(line) == line


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_counts_add_up_over_workers_restarts_and_reloads(tmp_path: Path, options: tuple[str, ...]) -> None:
    write_app(tmp_path)
    with serve(tmp_path, *options) as server:
        workers = server.wait_serving()
        limit = server.scrape().total("connections_limit")
        for _ in range(10):
            say(server, b"a", b"bbb")
        assert own(server, "app_lines_total", letter="a") == 10
        assert own(server, "app_line_bytes_sum") == 10 * (2 + 4)
        assert own(server, "app_line_bytes_bucket", le="2.0") == 10
        assert own(server, "app_imports_total") == 2
        with Client(server.address) as client:
            client.send(b"die\n")
            assert client.rest() == b""
        server.wait_shards(lambda shards: {shard.pid for shard in shards} - set(workers) != set())
        server.wait_serving()
        say(server, b"a")
        assert own(server, "app_lines_total", letter="a") == 11

        write_app(tmp_path, 'LATER = Counter("app_later_total", "Later.")', buckets="(2, 8)")
        server.signal(signal.SIGHUP)
        server.output.wait('event="?reloaded"?', 20.0)
        # Until the old workers are gone: a gauge of theirs counts twice as long as they live.
        server.wait_metrics(lambda now: now.total("connections_limit") == limit)
        say(server, b"a")
        assert own(server, "app_lines_total", letter="a") == 12
        assert own(server, "app_later_total", shard="0") == own(server, "app_later_total", shard="1") == 0
        # Other buckets: what was counted in the old ones cannot be told in these.
        assert own(server, "app_line_bytes_count") == 1


def test_label_that_takes_ever_new_values_costs_its_connection_and_says_why(tmp_path: Path) -> None:
    write_app(tmp_path)
    with serve(tmp_path, workers=1, expect_tracebacks=1) as server:
        server.wait_serving()
        say(server, b"a", b"b", b"c")
        with Client(server.address) as client:
            client.send(b"d\n")
            assert client.rest() == b""
        server.output.wait("app_lines_total has 3 series, and no room for", 5.0)
        say(server, b"a")
        assert own(server, "app_lines_total") == 4
        assert own(server, "app_open") == 0
