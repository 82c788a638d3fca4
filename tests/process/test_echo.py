"""Echo through real workers: every byte back, equal, and nothing kept once the connections are gone."""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import load
from tests.harness.procs import Descriptor, descriptors, private_bytes
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

SHARDS: Final = 8
KINDS: Final = ["examples.echo:handler", "examples.echo:on_data"]
ROUNDS: Final = 5
WARM_ROUNDS: Final = 2  # Imports on first use, buffers that stay, tables that have grown to their size.
# glibc's allocator told to give back what is freed. Left alone it keeps many megabytes of past peaks (64 KiB may be
# under way on each connection), no two rounds alike, and a leak would hide in that for dozens of rounds.
GIVE_BACK: Final = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
# What a worker may still settle by. Half of that is seen; 64 bytes kept per message would be 4.8 MB at full size.
SETTLING_BYTES: Final = 256 * 1024
# Small objects come from arenas: a worker whose peak is a little higher than the last takes one more.
ARENA_BYTES: Final = 1024 * 1024


@pytest.mark.parametrize("app", KINDS)
def test_echo_returns_every_byte(app: str) -> None:
    assert_echoes(app, connections=300, messages=20)


@pytest.mark.load
@pytest.mark.timeout(600)
@pytest.mark.parametrize("app", KINDS)
def test_echo_returns_every_byte_at_full_size(app: str) -> None:
    assert_echoes(app, connections=2000, messages=100)


def assert_echoes(app: str, connections: int, messages: int) -> None:
    """The law: what a worker holds depends on the connections it has, not on those it has had.

    After each of the rounds of messages of 1 byte to 64 KiB: every byte came back equal, both ends counted the same
    bytes, and every worker's descriptors are the very ones it started with. The memory that is the workers' own does
    not grow after the warm rounds.
    """
    with ShardedServer(app, workers=SHARDS, env=GIVE_BACK) as server:
        workers = server.wait_serving()
        held = fds_of(workers)
        memory = []
        sent = received = 0
        for number in range(1, ROUNDS + 1):
            report = load(server.load_addresses(), connections=connections, messages=messages, seed=number, processes=2)
            assert report.failures == {}
            assert report.messages == connections * messages
            sent += report.sent_bytes
            received += report.received_bytes
            samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
            accepted = samples.by("shard", "connections_accepted_total")
            assert sum(accepted.values()) == connections * number
            assert sorted(accepted) == [str(shard) for shard in range(SHARDS)]
            assert all(accepted.values())
            assert samples.total("connections_closed_total", reason="eof") == connections * number
            assert samples.total("received_bytes_total") == sent
            assert samples.total("sent_bytes_total") == received
            assert samples.total("handler_exceptions_total") == 0
            assert fds_of(workers) == held
            memory.append(memory_of(workers))
        assert server.worker_pids() == workers
        assert memory[-1] - memory[WARM_ROUNDS - 1] <= SHARDS * SETTLING_BYTES, memory


@pytest.mark.parametrize("app", KINDS)
def test_connections_that_are_over_leave_no_memory_behind(app: str) -> None:
    """The same law where it can be measured finely: with this many connections that say little, 350 bytes kept of each
    would show."""
    connections = 2000
    with ShardedServer(app, workers=2, env=GIVE_BACK) as server:
        workers = server.wait_serving()
        memory = []
        for number in range(1, ROUNDS + 1):
            report = load(server.load_addresses(), connections=connections, messages=5, max_size_bytes=200, seed=number)
            assert report.failures == {}
            server.wait_metrics(lambda now: now.total("connections_active") == 0)
            memory.append(memory_of(workers))
        assert memory[-1] - memory[WARM_ROUNDS - 1] <= len(workers) * ARENA_BYTES, memory


@pytest.mark.parametrize("app", ["tests.process.apps:counting", "tests.process.apps:counting_on_data"])
def test_connections_that_are_over_need_no_garbage_collector(app: str) -> None:
    """The law: a connection that is over is in no reference cycle. Collecting one costs a pause that grows with
    everything the app keeps, and who switches the collector off for that reason would leak every connection."""
    with ShardedServer(app, workers=1) as server:
        assert load(server.load_addresses(), connections=100, messages=3).failures == {}
        server.wait_metrics(lambda now: now.total("connections_active") == 0)
        with Client(server.address) as client:
            assert client.ask(b"count") == b"1"


def fds_of(workers: dict[int, int]) -> dict[int, list[Descriptor]]:
    return {shard: descriptors(pid) for shard, pid in workers.items()}


def memory_of(workers: dict[int, int]) -> int:
    return sum(private_bytes(pid) for pid in workers.values())
