"""What the kernel refuses a server, put there by strace or by a limit: it goes on, and nothing queued is lost."""

from __future__ import annotations

import errno
import functools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.report import Outcome
from tests.harness.server import PROJECT, ShardedServer, wait_until

pytestmark = pytest.mark.process

SHARDS: Final = 3
ECHO: Final = "examples.echo:handler"
TRACED_S: Final = 10.0


@functools.cache
def strace() -> str:
    """The path of one that works here; skips the test where there is none."""
    found = shutil.which("strace", path=PROJECT / ".tools") or shutil.which("strace")
    if found is None:
        pytest.skip("no strace on PATH, nor in .tools")
    command = [found, "-f", "-qq", "-o", "/dev/null", "-e", "trace=getppid", "-e", "inject=getppid:error=EPERM", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here, or cannot inject: {tried.stderr.strip()[:200]}")
    return found


def injecting(calls: str, error: str, log: Path, *flags: str) -> list[str]:
    return [strace(), "-qq", "-o", str(log), "-e", f"trace={calls}", "-e", f"inject={calls}:{error}", *flags]


@contextmanager
def refusing(pid: int, calls: str, error: str, log: Path) -> Iterator[None]:
    """The kernel answers one running process so, and its children as ever, until the `with` ends."""
    tracer = subprocess.Popen(injecting(calls, error, log, "-p", str(pid)), stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: tracer.poll() is not None or "TracerPid:\t0" not in status.read_text(), TRACED_S)
        if tracer.poll() is not None:
            pytest.skip(f"strace may not attach here: {tracer.stderr.read().decode().strip()[:200]}")
        yield
    finally:
        tracer.terminate()  # It lets go of the process.
        tracer.wait(TRACED_S)
        tracer.stderr.close()


def injected(log: Path) -> int:
    return log.read_text().count("(INJECTED)")


@contextmanager
def clients_of(server: ShardedServer) -> Iterator[None]:
    """Clients that connect all the while, none of whom may be lost while it is in a queue."""
    with RunningLoad(
        server.load_addresses(), connections=32, messages=1, max_size_bytes=2000, greeting="hello\n", repeat=True
    ) as running:
        running.wait_running()
        yield
        report = running.finish()
    # Clients are silent until they are greeted: a worker that is killed ends what it had accepted without a reset.
    lost = report.count(Outcome.REFUSED, Outcome.UNSERVED_RESET, Outcome.UNSERVED_HUNG, Outcome.SERVED_HUNG)
    assert lost == 0, report.failures


@pytest.mark.fault("F31")
@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_fork_that_the_kernel_refuses_is_tried_again_while_others_serve(tmp_path: Path, error: str) -> None:
    log = tmp_path / "strace"
    with ShardedServer("tests.process.apps:greeting", workers=SHARDS) as server, clients_of(server):
        with refusing(server.pid, "clone,clone3", f"error={error}:when=1..3", log):
            server.kill(1)
            server.output.wait(r'event="fork failed" shard=1', 10.0)
            server.wait_serving()
        assert injected(log) == 3
        assert server.scrape().total("shard_restarts_total", shard=1) >= 1


@pytest.mark.fault("F32")
def test_listener_that_cannot_be_sent_is_lent_all_the_same(tmp_path: Path) -> None:
    """ETOOMANYREFS: too many descriptors are under way in packets that nobody has read."""
    log = tmp_path / "strace"
    options = ["--hang-timeout", "20"]
    with ShardedServer("tests.process.apps:greeting", workers=SHARDS, options=options) as server, clients_of(server):
        with refusing(server.pid, "sendmsg", "error=ETOOMANYREFS:when=1", log):
            stopped = server.hang(1)
            server.output.wait(r'event="loan refused" .*', 10.0)
            server.output.wait(r'event="listeners lent" shard=1', 10.0)
            server.resume(1)
        assert injected(log) == 1
        assert server.wait_serving()[1] == stopped


@pytest.mark.fault("F32")
def test_sibling_without_a_descriptor_to_spare_is_passed_over() -> None:
    """MSG_CTRUNC: the kernel drops what the receiver has no room for."""
    options = ["--hang-timeout", "20"]
    with ShardedServer("tests.process.apps:greeting", workers=SHARDS, options=options) as server:
        pids = server.wait_serving()
        limits = {shard: resource.prlimit(pids[shard], resource.RLIMIT_NOFILE) for shard in (0, 2)}
        for shard in (0, 2):  # Both, so that whoever is asked first must refuse; then one gets room.
            resource.prlimit(pids[shard], resource.RLIMIT_NOFILE, (3, limits[shard][1]))
        server.hang(1)
        with ExitStack() as stack:
            waiting = [stack.enter_context(Client(server.address, timeout_s=20.0)) for _ in range(64)]
            server.output.wait(r'event="loan refused" .*too many open files', 10.0)
            for shard in (0, 2):
                resource.prlimit(pids[shard], resource.RLIMIT_NOFILE, limits[shard])
            for client in waiting:  # Also those in the queue of the worker that does not run.
                assert client.line() == b"hello"
        server.resume(1)


@pytest.mark.fault("F72")
@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal", "waitid"])
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_kernel_that_cannot_hold_processes_is_told_in_one_line(tmp_path: Path, call: str, error: int) -> None:
    command = injecting(call, f"error={errno.errorcode[error]}", tmp_path / "strace", "-f")
    command += [sys.executable, "-m", "shardnet", "run", ECHO, "--bind", "127.0.0.1:0"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=PROJECT)
    assert finished.returncode == 1
    [line] = finished.stderr.splitlines()
    assert f"the kernel refuses {call} ({os.strerror(error)})" in line


@pytest.mark.fault("F70")
@pytest.mark.fault("F72")
@pytest.mark.parametrize("error", ["ENOPROTOOPT", "EPERM", "EINVAL"])
def test_kernel_that_takes_no_program_for_steering_spreads_by_its_hash(tmp_path: Path, error: str) -> None:
    log = tmp_path / "strace"
    steered = ["--steering", "random"]
    # -D: the tracer is no parent of the server, which gets its signals as ever.
    with ShardedServer(ECHO, prefix=[strace(), "-D", "-qq", "-o", str(log), "-e", "trace=setsockopt"], options=steered):
        pass
    calls = log.read_text().splitlines()
    [number] = [number for number, line in enumerate(calls, 1) if "SO_ATTACH_REUSEPORT_CBPF" in line]
    prefix = injecting("setsockopt", f"error={error}:when={number}", log, "-D")
    with ShardedServer(ECHO, prefix=prefix, options=steered) as server:
        with Client(server.address) as client:
            client.send(b"x")
            assert client.exactly(1) == b"x"
        server.reload()  # Nor is it tried and warned of time and again.
    warned = [line for line in server.output.lines() if "steering" in line]
    assert len(warned) == 1, server.output.lines()
    assert injected(log) == 1
