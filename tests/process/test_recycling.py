"""Workers that are replaced for their age or size, under clients that connect all the while."""

from __future__ import annotations

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.report import Outcome
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process


def test_old_workers_are_replaced_and_nobody_is_lost() -> None:
    options = ["--worker-lifetime", "1"]
    with ShardedServer("tests.process.apps:greeting", workers=3, options=options) as server:
        first = set(server.wait_serving().values())
        with RunningLoad(
            server.load_addresses(), connections=32, messages=1, max_size_bytes=2000, greeting="hello\n", repeat=True
        ) as running:
            running.wait_running()
            server.wait_shards(lambda shards: not first & {shard.pid for shard in shards}, 30.0)
            report = running.finish()
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert set(report.failures) <= {Outcome.SERVED_EOF}
        assert samples.total("connections_accepted_total") == report.sessions
        assert samples.unasked_restarts == 0
        server.output.wait('event="?recycling"? .*why="it has reached its lifetime"', 1.0)


def test_worker_that_has_grown_is_replaced() -> None:
    options = ["--worker-max-memory", str(80 << 20)]
    with ShardedServer("tests.process.apps:hoarding", workers=2, options=options) as server:
        server.wait_serving()
        with Client(server.address) as client:
            shard = int(client.ask(b"200000000"))
            pid = server.worker_pids()[shard]
            server.wait_shards(lambda shards: shards[shard].pid not in (pid, None), 30.0)
        server.output.wait(f'event="?recycling"? shard={shard} .*why="it has [0-9]+ bytes of memory"', 1.0)
        assert server.scrape().unasked_restarts == 0
