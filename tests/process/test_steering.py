"""Steering and pinning, of a whole server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.passing import let_pass
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

SHARDS: Final = 4


def test_few_long_connections_are_spread_evenly_by_least() -> None:
    """By the hash, one of four workers is idle half of the time with eight connections."""
    with ShardedServer("tests.process.apps:which", workers=SHARDS, options=["--steering", "least"]) as server:
        server.wait_serving()
        with ExitStack() as stack:
            for _ in range(10):
                for client in [stack.enter_context(Client(server.address)) for _ in range(SHARDS)]:
                    client.line()
                let_pass(0.3)  # Until the supervisor has looked.
            counts = server.scrape().by("shard", "connections_active")
            assert sum(counts.values()) == 10 * SHARDS
            assert max(counts.values()) - min(counts.values()) <= 5


def test_workers_that_are_pinned_run_on_one_cpu_each() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with ShardedServer("tests.process.apps:which", workers=SHARDS, options=["--pin"]) as server:
        pinned = {shard: os.sched_getaffinity(pid) for shard, pid in server.wait_serving().items()}
        assert pinned == {shard: {cpus[shard % len(cpus)]} for shard in range(SHARDS)}
        assert os.sched_getaffinity(server.pid) == set(cpus)
