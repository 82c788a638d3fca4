"""As PID 1 of a pid namespace, which is what a container is: signals are heard, orphans reaped, the stop is bounded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer, wait_until

pytestmark = pytest.mark.process

UNSHARE: Final = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
STOPPED_S: Final = 20.0  # 8 s of draining, and what a busy machine adds.


def pid_namespaces_are_allowed() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def server() -> Iterator[ShardedServer]:
    if not pid_namespaces_are_allowed():
        pytest.skip("this user may make no pid namespace (unshare --pid)")
    with ShardedServer("tests.process.apps:stubborn", workers=2, prefix=UNSHARE) as one:
        yield one


def init_of(server: ShardedServer) -> int:
    """The supervisor, as this namespace numbers it: the one child of unshare."""
    [child] = children(server.pid)
    assert child_in_namespace(child) == 1
    return child


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child_in_namespace(pid: int) -> int:
    """Its number in the innermost namespace."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


@pytest.mark.fault("F67")
def test_term_is_heard_and_the_drain_is_shorter_than_docker_waits(server: ShardedServer) -> None:
    supervisor = init_of(server)
    with Client(server.address, timeout_s=STOPPED_S) as client:
        client.send(b"x")
        assert client.exactly(1) == b"x"  # Its handler goes on, whatever it is told.
        os.kill(supervisor, signal.SIGTERM)
        server.output.wait(r'event="?draining"? shard=0 .*timeout_s=8\.000', 10.0)
        assert server.wait(STOPPED_S) == 0


@pytest.mark.fault("F67")
def test_orphans_are_reaped(server: ShardedServer) -> None:
    supervisor = init_of(server)
    before = set(children(supervisor))
    with Client(server.address) as client:
        client.send(b"orphan")
        orphan = int(client.line())  # In the namespace's numbers.
    adopted = {pid for pid in children(supervisor) if pid not in before and child_in_namespace(pid) == orphan}
    for pid in adopted:
        os.kill(pid, signal.SIGKILL)
    assert adopted
    wait_until(lambda: adopted.isdisjoint(children(supervisor)))  # A zombie is a child still.
    os.kill(supervisor, signal.SIGQUIT)
    assert server.wait(STOPPED_S) == 0
