"""A server that grows and shrinks while clients connect: nobody is refused, reset or forgotten, no listener closed."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.procs import descriptors
from tests.harness.report import Outcome
from tests.harness.server import ShardedServer, shardnet

pytestmark = pytest.mark.process

SHARDS_MAX: Final = 4
ROUNDS: Final = 5


def listeners(server: ShardedServer) -> set[str]:
    return {fd.identity for fd in descriptors(server.pid) if fd.kind == "tcp-listen"}


def scale(server: ShardedServer, signum: int, shards: int) -> None:
    """Send the signal as often as it takes, one by one: the kernel makes one of several that wait. Then wait until so
    many shards serve, and nobody else is left."""
    while (now := server.scrape().total("shards_configured")) != shards:
        server.signal(signum)
        server.wait_metrics(lambda samples, now=now: samples.total("shards_configured") != now)  # type: ignore[misc]
    server.wait_metrics(lambda samples: samples.total("shard_state") == samples.total("shard_state", state="serving"))


@pytest.mark.fault("F14")
def test_growing_and_shrinking_under_connecting_clients_loses_nobody() -> None:
    options = ["--max-workers", str(SHARDS_MAX)]
    with ShardedServer("tests.process.apps:greeting", workers=1, options=options) as server:
        before = listeners(server)
        with RunningLoad(
            server.load_addresses(), connections=32, messages=1, max_size_bytes=2000, greeting="hello\n", repeat=True
        ) as running:
            running.wait_running()
            for _ in range(ROUNDS):
                scale(server, signal.SIGTTIN, SHARDS_MAX)
                scale(server, signal.SIGTTOU, 1)
            report = running.finish()
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        # A worker that drains may end a connection whose client is just about to speak; it cannot know.
        assert set(report.failures) <= {Outcome.SERVED_EOF}
        assert report.count(Outcome.SERVED_EOF) <= samples.total("connections_closed_total", reason="drain")
        assert samples.total("connections_accepted_total") == report.sessions
        assert samples.unasked_restarts == 0
        assert listeners(server) == before
        assert len(before) == SHARDS_MAX + 1  # And the exporter's.


def test_vacant_shards_serve_through_others_and_show_no_state() -> None:
    with ShardedServer("tests.process.apps:which", workers=2, options=["--max-workers", "6"]) as server:
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(server.address)) for _ in range(64)]
            assert {client.line() for client in clients} == {b"0", b"1"}
        samples = server.scrape()
        assert set(samples.by("shard", "shard_state")) == {"0", "1"}
        assert [shard.shard for shard in server.shards()] == [0, 1]
        scale(server, signal.SIGTTIN, 3)
        assert set(server.scrape().by("shard", "shard_state")) == {"0", "1", "2"}
        server.wait_metrics(lambda now: set(now.by("shard", "shard_heartbeat_timestamp_seconds")) == {"0", "1", "2"})
        scale(server, signal.SIGTTOU, 2)
        server.wait_metrics(lambda now: set(now.by("shard", "shard_heartbeat_timestamp_seconds")) == {"0", "1"})


def test_size_survives_a_reload_also_one_that_starts_over() -> None:
    for options in ([], ["--preload"]):
        with ShardedServer(
            "examples.echo:handler", workers=1, options=["--max-workers", "3", *options]
        ) as server:  # fmt: skip
            scale(server, signal.SIGTTIN, 3)
            before = server.worker_pids()
            server.reload()
            server.wait_metrics(lambda now: now.total("shard_state", state="serving") == 3)
            assert len(set(server.worker_pids().values()) - set(before.values())) == 3
            scale(server, signal.SIGTTOU, 1)


def test_more_workers_than_there_may_be_is_refused() -> None:
    finished = shardnet("run", "examples.echo:handler", "--workers", "4", "--max-workers", "3")
    assert finished.status == 2
    assert finished.stderr_lines[-1].endswith("--workers 4 is more than --max-workers 3: raise the latter")
