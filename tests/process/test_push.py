"""The push example: every connection of every shard gets the time each second."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process


def test_push_sends_the_time_to_clients_of_different_shards() -> None:
    with ShardedServer("examples.push:handler", workers=2) as server, ExitStack() as stack:
        server.wait_serving()
        clients = [stack.enter_context(Client(server.address)) for _ in range(16)]
        samples = server.wait_metrics(lambda now: now.total("connections_active") == len(clients))
        assert all(samples.by("shard", "connections_active").values()), "by chance all clients are on one shard"
        for client in clients:
            first, second = client.line(), client.line()
            assert first
            assert first != second
