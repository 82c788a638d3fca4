"""`kill -9` of workers: nothing that waited in a queue is lost, and the counters of the dead stay counted."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.procs import stop_and_wait
from tests.harness.report import Outcome, Report
from tests.harness.scrape import Samples
from tests.harness.server import ShardedServer, wait_until

pytestmark = pytest.mark.process

CGROUPS: Final = Path("/sys/fs/cgroup")
SHARDS: Final = 8
KILLS: Final = 20
CLIENTS: Final = 48
RECOVERY_S: Final = 20.0  # A shard killed again and again waits up to 10 s for its next worker.
UNSERVED: Final = (Outcome.UNSERVED_RESET, Outcome.UNSERVED_EOF)
SERVED: Final = (Outcome.SERVED_RESET, Outcome.SERVED_EOF)


@pytest.mark.fault("F01")
def test_kill_loses_none_of_the_connections_in_the_queue() -> None:
    """The law in its exact form: no connection that a dead worker had not accepted is refused, reset or forgotten.

    A stopped worker accepts nothing, so what its listener gets is certain to wait in the queue when SIGKILL comes.
    """
    with ShardedServer("tests.process.apps:greeting", workers=2) as server, ExitStack() as clients:
        worker = server.wait_serving()[0]
        stop_and_wait(worker)
        waiting = [clients.enter_context(Client(server.address)) for _ in range(64)]
        for client in waiting:
            client.send(b"are you there?\n")
        os.kill(worker, signal.SIGKILL)
        for client in waiting:
            assert client.line() == b"hello"
            assert client.line() == b"are you there?"
        samples = server.wait_metrics(lambda now: now.total("shard_restarts_total") == 1)
        accepted = samples.by("shard", "connections_accepted_total")
        assert accepted["0"] + accepted["1"] == 64


def _is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text()


@contextmanager
def little_memory(pid: int, limit_bytes: int) -> Iterator[None]:
    """The process may have so much more memory, by a control group; skips the test where none can be had."""
    for root, limit, swap in (
        (CGROUPS / "memory", "memory.limit_in_bytes", "memory.swappiness"),
        (CGROUPS, "memory.max", "memory.swap.max"),
    ):
        group = root / f"shardnet-test-{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
            with suppress(FileNotFoundError):  # A kernel without swap has none of these.
                (group / swap).write_text("0")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            group.rmdir()
            continue
        try:
            yield
        finally:
            wait_until(partial(_is_empty, group))
            group.rmdir()
        return
    pytest.skip("no control group for memory can be made here")


@pytest.mark.fault("F60")
def test_worker_that_the_kernel_kills_for_its_memory_is_replaced() -> None:
    with ShardedServer("tests.process.apps:hoarding", workers=2) as server:
        before = server.wait_serving()
        with ExitStack() as stack:
            clients: dict[int, Client] = {}
            while len(clients) < 2:
                client = stack.enter_context(Client(server.address))
                clients[int(client.ask(b"1"))] = client
            with little_memory(before[0], 16 << 20):
                clients[0].send(b"200000000")
                assert clients[0].rest() == b""
                server.wait_metrics(lambda now: now.total("shard_restarts_total", shard=0) == 1)
            assert clients[1].ask(b"1") == b"1"  # Nobody else was killed, nor anybody else's connection.
        after = server.wait_serving()
        assert after[1] == before[1]
        server.output.wait(r'event="worker ended" shard=0 .*SIGKILL', 1.0)


@pytest.mark.fault("F01")
def test_kill_of_random_workers_under_connecting_clients() -> None:
    with ShardedServer("tests.process.apps:greeting", workers=SHARDS) as server:
        with connecting(server) as running:
            running.wait_running()
            assert kill_randomly(server, KILLS, seed=1) == []
            report = running.finish()
        assert_nothing_lost(server, report)


@pytest.mark.fault("F01")
@pytest.mark.load
@pytest.mark.timeout(400)
def test_kill_of_random_workers_under_full_load() -> None:
    """As above while 2,000 more connections send large messages; these begin anew when they are cut."""
    with ShardedServer("tests.process.apps:greeting", workers=SHARDS) as server:
        streaming = RunningLoad(
            server.load_addresses(), connections=2000, messages=100, greeting="hello\n", seed=2,
            repeat=True, reconnect=True, hang_s=25.0, deadline_s=300.0, processes=1,
        )  # fmt: skip
        with streaming as heavy, connecting(server, deadline_s=300.0) as light:
            heavy.wait_running(60.0)
            light.wait_running(60.0)
            assert kill_randomly(server, KILLS, seed=2) == []
            reports = [light.finish(), heavy.finish()]
        assert_nothing_lost(server, reports[0] + reports[1])


def connecting(server: ShardedServer, deadline_s: float = 50.0) -> RunningLoad:
    """Clients that connect, exchange a message, end the stream, and connect again."""
    return RunningLoad(
        server.load_addresses(), connections=CLIENTS, messages=1, max_size_bytes=2000, greeting="hello\n",
        repeat=True, hang_s=25.0, deadline_s=deadline_s,
    )  # fmt: skip


def kill_randomly(server: ShardedServer, kills: int, seed: int) -> list[str]:
    """SIGKILL a worker, wait until its shard serves again, and so on. All the while `/metrics` is scraped, and every
    scrape compared with the one before; what went backwards is returned."""
    choose = random.Random(seed).choice
    wrong: list[str] = []
    before = server.scrape()

    def scrape_until(wanted: Callable[[Samples], bool]) -> None:
        nonlocal before
        deadline_s = time.monotonic() + RECOVERY_S
        while time.monotonic() < deadline_s:
            now = server.scrape()
            wrong.extend(now.went_backwards(before))
            before = now
            if wanted(now):
                return
        raise AssertionError(f"not so within {RECOVERY_S} s: {server.shards()}")

    killed: set[int] = set()
    for number in range(1, kills + 1):
        scrape_until(lambda now: now.total("shard_state", state="serving") == server.shard_count)
        shard, pid = choose(sorted(server.worker_pids().items()))
        assert pid not in killed, f"shard {shard} is shown with a worker that was killed"
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        scrape_until(lambda now, number=number: now.total("shard_restarts_total") >= number)  # type: ignore[misc]
    scrape_until(lambda now: now.total("shard_state", state="serving") == server.shard_count)
    return wrong


def assert_nothing_lost(server: ShardedServer, report: Report) -> None:
    """The law of `kill -9`, from both ends, when all clients are done.

    A client cannot see whether a connection that was reset before the greeting had been accepted: a worker may die
    between accepting and greeting. The servers' counters can tell, for they outlive the workers:

    - Every connection that was established was accepted. All that a kill can take from the count is the one connection
      that the worker had accepted and not yet counted.
    - So resets before accept = established - accepted, up to that one per kill; and what was cut at all had been
      accepted and not been closed by a worker that died.
    - None refused, none silent, no byte wrong.
    """
    samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
    accepted = samples.total("connections_accepted_total")
    closed = samples.total("connections_closed_total")
    lost, cut = report.count(*UNSERVED), report.count(*SERVED)
    told = f"{report.outcomes}, {accepted=}, {closed=}, {report.established=}, {report.faults[:5]}"
    assert set(report.failures) <= {*UNSERVED, *SERVED}, told
    assert report.completed > 10 * KILLS, told
    assert report.established == report.sessions, told
    assert 0 <= report.established - accepted <= min(KILLS, lost), told
    assert lost + cut <= report.established - closed, told
    assert samples.by("reason", "shard_restarts_total")["signal"] == KILLS
    assert samples.total("shard_restarts_total") == KILLS
    shares = samples.by("shard", "connections_accepted_total")
    assert sorted(shares) == [str(shard) for shard in range(SHARDS)]
    assert all(shares.values()), shares
