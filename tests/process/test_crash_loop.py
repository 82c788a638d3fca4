"""Workers that will not come up: one shard's trouble is not the others', and everybody's is said and ended."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.client import Client
from tests.harness.procs import accept_queue_length, descriptors
from tests.harness.scrape import get
from tests.harness.server import Shard, ShardedServer, shardnet

pytestmark = pytest.mark.process

UNSERVED = 70


@pytest.mark.fault("F04")
def test_shard_that_crashes_at_every_boot_leaves_the_others_serving(tmp_path: Path) -> None:
    """The law: the others serve, also who connects to the crashing shard, at once; the server stays ready; attempts
    come ever more rarely; and the first worker that comes up has its shard for itself again."""
    crash = tmp_path / "crash"
    with ShardedServer(
        "tests.process.crashing:handler", workers=4, env={"CRASHING_SHARD_FILE": str(crash)}
    ) as server, ExitStack() as stack:  # fmt: skip
        workers = server.wait_serving()
        (inode,) = [fd.identity for fd in descriptors(workers[1]) if fd.kind == "tcp-listen"]
        crash.write_text(inode)
        os.kill(workers[1], signal.SIGKILL)
        # Delays of 0, 0.1, 0.2 and 0.4 s: the fifth crash is over a second of trouble.
        server.wait_metrics(lambda now: now.total("shard_restarts_total", shard=1) >= 5)
        clients = [stack.enter_context(Client(server.address)) for _ in range(64)]
        for client in clients:
            client.send(b"anybody?\n")
        for client in clients:
            assert client.line() == b"anybody?"
        assert accept_queue_length(inode) == 0
        assert server.scrape().total("connections_active", shard=1) == 0
        shards = {shard.shard: shard for shard in server.shards()}
        assert {number: shard.pid for number, shard in shards.items() if number != 1} == {
            number: pid for number, pid in workers.items() if number != 1
        }
        assert all(shard.state == "serving" for number, shard in shards.items() if number != 1)
        server.wait_shards(lambda now: now[1].state == "backoff")
        assert get(server.metrics_address, "/readyz")[0] == 200
        crash.unlink()
        server.wait_shards(lambda now: all(is_serving(shard) for shard in now), 20.0)
        clients += [stack.enter_context(Client(server.address)) for _ in range(64)]
        server.wait_metrics(lambda now: now.total("connections_active") == len(clients))
        samples = server.scrape()
        assert samples.total("connections_active", shard=1) > 0
        for pid in server.worker_pids().values():  # What was lent is given back.
            assert len([fd for fd in descriptors(pid) if fd.kind == "tcp-listen"]) == 1
        assert set(samples.by("shard", "shard_restarts_total").items()) >= {("0", 0.0), ("2", 0.0), ("3", 0.0)}
        assert samples.total("shard_restarts_total", shard=1, reason="signal") == 1
        assert samples.total("connections_active") == len(clients)


def is_serving(shard: Shard) -> bool:
    return shard.state == "serving"


@pytest.mark.fault("F05")
@pytest.mark.load
@pytest.mark.timeout(120)
def test_server_gives_up_when_nobody_can_serve_for_long(tmp_path: Path) -> None:
    """Half a minute of nothing but failed attempts is the end: status 70, and one last line says so."""
    (tmp_path / "dying.py").write_text("import os\nos._exit(7)\n")
    finished = shardnet(
        "run", "dying:handler", "--workers", "2", "--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0",
        cwd=tmp_path, timeout_s=100.0,
    )  # fmt: skip
    assert finished.status == UNSERVED, finished
    assert "30" in finished.stderr_lines[-1]
