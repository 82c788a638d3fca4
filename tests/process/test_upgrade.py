"""USR2: the supervisor becomes what is installed by now, in place, and nobody who connects notices."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.procs import descriptors, wait_gone
from tests.harness.report import Outcome
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

UPGRADES: Final = 5
# A stand-in for an installation that is broken, or another one: it is what any Python of this environment runs first.
BROKEN: Final = "import os\nos._exit(3)\n"
OTHER: Final = """\
import os, sys
if "--handover-form" in sys.orig_argv:
    print("shardnet 9", flush=True)
    os._exit(0)
"""


def upgrade(server: ShardedServer) -> None:
    """USR2, and wait until the new generation serves, and the old one is gone."""
    before = server.worker_pids()
    generation = server.scrape().total("generation")
    server.signal(signal.SIGUSR2)
    server.wait_metrics(lambda now: now.total("generation") == generation + 1)
    assert wait_gone(before.values(), 10.0) == []
    server.wait_serving()


def program_starts(server: ShardedServer) -> int:
    return sum('event="starting over"' in line for line in server.output.lines("stderr"))


@pytest.mark.fault("F15")
def test_upgrades_under_connecting_clients_lose_nobody() -> None:
    with ShardedServer("tests.process.apps:greeting", workers=2) as server:
        workers, exporter, pid = server.wait_serving(), server.exporter_pid(), server.pid
        fds = len(descriptors(pid))
        with RunningLoad(
            server.load_addresses(), connections=32, messages=1, max_size_bytes=2000, greeting="hello\n", repeat=True
        ) as running:
            running.wait_running()
            before = server.scrape()
            for _ in range(UPGRADES):
                upgrade(server)
            report = running.finish()
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert set(report.failures) <= {Outcome.SERVED_EOF}
        assert report.count(Outcome.SERVED_EOF) <= samples.total("connections_closed_total", reason="drain")
        assert samples.total("connections_accepted_total") == report.sessions
        assert samples.went_backwards(before) == []
        assert samples.unasked_restarts == 0
        assert samples.total("reloads_total", outcome="ok") == UPGRADES
        assert program_starts(server) == UPGRADES
        assert server.exporter_pid() != exporter
        assert not set(server.worker_pids().values()) & set(workers.values())
        assert len(descriptors(pid)) == fds


@pytest.mark.parametrize(
    ("code", "why"),
    [(BROKEN, "does not start any more"), (OTHER, "cannot take over from this one")],
    ids=["broken", "other"],
)
def test_installation_that_cannot_take_over_is_refused(tmp_path: Path, code: str, why: str) -> None:
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    with ShardedServer("tests.process.apps:greeting", workers=2, env=env) as server:
        workers = server.wait_serving()
        (tmp_path / "sitecustomize.py").write_text(code)
        server.signal(signal.SIGUSR2)
        server.output.wait(f"reload failed: .*{why}.*, generation 1 keeps serving", 30.0)
        assert server.worker_pids() == workers
        samples = server.wait_metrics(lambda now: now.total("reloads_total", outcome="failed") == 1)
        assert samples.total("generation") == 1
        with Client(server.address) as client:
            assert client.line() == b"hello"
        (tmp_path / "sitecustomize.py").unlink()
        upgrade(server)
