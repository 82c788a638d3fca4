"""Every kind of handler in real workers: each byte back, equal, and nothing kept."""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import load
from tests.harness.procs import Descriptor, descriptors
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

SHARDS: Final = 4
KINDS: Final = pytest.mark.parametrize("kind", ["conn", "streams", "callback", "Protocol", "Buffered"])


@KINDS
def test_every_kind_returns_every_byte(kind: str) -> None:
    assert_echoes(kind, connections=1000, messages=8)


@pytest.mark.load
@pytest.mark.timeout(300)
@KINDS
def test_every_kind_returns_every_byte_of_many(kind: str) -> None:
    assert_echoes(kind, connections=1000, messages=100)


def assert_echoes(kind: str, connections: int, messages: int) -> None:
    """The law: of messages of 1 byte to 64 KiB every byte comes back equal, both ends count the same bytes, every
    shard has its share, and in the end no connection, handler or descriptor is left."""
    with ShardedServer(f"tests.process.kind_apps:{kind}", workers=SHARDS) as server:
        workers = server.wait_serving()
        held = fds_of(workers)
        report = load(server.load_addresses(), connections=connections, messages=messages, seed=7, processes=2)
        assert report.failures == {}
        assert report.messages == connections * messages
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        accepted = samples.by("shard", "connections_accepted_total")
        assert sum(accepted.values()) == connections
        assert len(accepted) == SHARDS
        assert all(accepted.values())
        assert samples.total("connections_closed_total", reason="eof") == connections
        assert samples.total("received_bytes_total") == report.sent_bytes
        assert samples.total("sent_bytes_total") == report.received_bytes
        assert samples.total("handler_exceptions_total") == 0
        assert fds_of(workers) == held
        assert server.worker_pids() == workers


@KINDS
def test_connections_that_are_over_need_no_garbage_collector(kind: str) -> None:
    with ShardedServer(f"tests.process.kind_apps:{kind}", workers=1) as server:
        assert load(server.load_addresses(), connections=100, messages=3).failures == {}
        server.wait_metrics(lambda now: now.total("connections_active") == 0)
        with Client(server.address) as client:
            assert client.ask(b"count") == b"1"


@KINDS
def test_every_kind_serves_in_debug_mode(kind: str) -> None:
    """asyncio checks more then: which thread calls, which callback takes long, which coroutine nobody awaits."""
    options, env = ["--debug"], {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
    with ShardedServer(f"tests.process.kind_apps:{kind}", options=options, env=env) as server:
        assert load(server.load_addresses(), connections=20, messages=5).failures == {}


def fds_of(workers: dict[int, int]) -> dict[int, list[Descriptor]]:
    return {shard: descriptors(pid) for shard, pid in workers.items()}
