"""Workers whose loops do not turn: others serve who connects to them, stacks tell why, and who does not recover is
replaced. Nobody is killed for what he could not help."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.passing import let_pass
from tests.harness.procs import session_pids, stop_and_wait
from tests.harness.scrape import get
from tests.harness.server import ShardedServer, wait_until

pytestmark = pytest.mark.process

HANG_TIMEOUT_S: Final = 1.0
HANGING: Final = ["--hang-timeout", str(HANG_TIMEOUT_S)]
CLIENTS: Final = 32
SOON_S: Final = 10.0


def assert_all_are_served(server: ShardedServer, shards: set[bytes]) -> None:
    """Many clients connect, so that the kernel gives some to every listener; by these shards they are answered, by all
    of them as soon as those to whom listeners were lent have given them back."""

    def answered() -> bool:
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(server.address)) for _ in range(CLIENTS)]
            found = {client.line() for client in clients}
        assert found <= shards
        return found == shards

    wait_until(answered, SOON_S)


@pytest.mark.fault("F06")
def test_stopped_worker_has_its_listener_lent_and_gets_it_back() -> None:
    with ShardedServer("tests.process.apps:which", workers=2) as server:
        workers = server.wait_serving()
        with ExitStack() as stack:
            mine = next(c for c in iter(lambda: stack.enter_context(Client(server.address)), None) if c.line() == b"0")
            server.hang(0)
            assert_all_are_served(server, {b"1"})
            server.resume(0)
            assert mine.ask(b"still here?") == b"still here?"
            server.output.wait(r"listeners taken back", SOON_S)
            assert_all_are_served(server, {b"0", b"1"})
        assert server.worker_pids() == workers
        assert server.scrape().total("shard_restarts_total") == 0


@pytest.mark.fault("F07")
def test_worker_that_stays_stopped_is_killed_counted_as_hung_and_replaced() -> None:
    with ShardedServer("tests.process.apps:which", workers=2, options=HANGING) as server:
        server.wait_serving()
        hung = server.hang(0)
        samples = server.wait_metrics(lambda now: now.total("shard_restarts_total") == 1)
        assert samples.total("shard_restarts_total", shard=0, reason="hang") == 1
        assert server.wait_serving()[0] != hung
        assert_all_are_served(server, {b"0", b"1"})
        server.output.wait(rf'event="worker hangs" shard=0 .*pid={hung}', SOON_S)


@pytest.mark.fault("F08")
@pytest.mark.parametrize(("word", "frame"), [(b"sleep", "in stuck"), (b"spin", "in stuck")])
def test_handler_that_holds_the_loop_is_shown_by_its_stack(word: bytes, frame: str) -> None:
    with ShardedServer("tests.process.apps:stuck", workers=2, options=HANGING) as server, ExitStack() as stack:
        server.wait_serving()
        client = stack.enter_context(Client(server.address))
        client.send(word + b"\n")
        assert client.rest() == b""
        server.output.wait(r'event="last stacks" shard=', SOON_S)
        server.output.wait(rf'  \| .*apps\.py", line \d+ {frame}', SOON_S)
        samples = server.wait_metrics(lambda now: now.total("shard_restarts_total") == 1)
        assert samples.total("shard_restarts_total", reason="hang") == 1


@pytest.mark.fault("F08")
def test_all_workers_that_hang_on_the_same_thing_are_replaced() -> None:
    with ShardedServer("tests.process.apps:stuck", workers=2, options=HANGING) as server, ExitStack() as stack:
        server.wait_serving()
        for client in [stack.enter_context(Client(server.address)) for _ in range(CLIENTS)]:
            client.send(b"sleep\n")
        samples = server.wait_metrics(lambda now: now.total("shard_restarts_total", reason="hang") >= 2)
        assert set(samples.by("shard", "shard_restarts_total")) == {"0", "1"}
        assert get(server.metrics_address, "/livez")[0] == 200


def test_whole_server_that_is_frozen_loses_nobody() -> None:
    """As when a machine sleeps, or a container is paused: longer than any patience, and everybody at once."""
    with ShardedServer("tests.process.apps:which", workers=2, options=HANGING) as server, Client(server.address) as one:
        workers = server.wait_serving()
        one.line()
        pids = session_pids(server.pid)
        for pid in [server.pid, *(pid for pid in pids if pid != server.pid)]:
            stop_and_wait(pid)
        let_pass(3 * HANG_TIMEOUT_S + 2.0)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert one.ask(b"awake?") == b"awake?"
        let_pass(2 * HANG_TIMEOUT_S)
        assert server.worker_pids() == workers
        assert server.scrape().total("shard_restarts_total") == 0


def test_import_may_take_longer_than_the_hang_timeout() -> None:
    env = {"SLOW_IMPORT_S": str(HANG_TIMEOUT_S + 2.5)}
    with ShardedServer("tests.process.slow_import:handler", workers=2, options=HANGING, env=env) as server:
        server.wait_serving()
        assert server.scrape().total("shard_restarts_total") == 0


def test_idle_workers_do_not_hang() -> None:
    with ShardedServer("tests.process.apps:which", workers=2, options=HANGING) as server:
        workers = server.wait_serving()
        let_pass(3 * HANG_TIMEOUT_S + 2.0)
        assert server.worker_pids() == workers


def test_what_kills_a_worker_is_in_the_log() -> None:
    with ShardedServer("tests.process.apps:stuck", workers=2) as server, Client(server.address) as client:
        server.wait_serving()
        client.send(b"segfault\n")
        assert client.rest() == b""
        server.output.wait(r"  \| Fatal Python error: Segmentation fault", SOON_S)
        server.output.wait(r'  \| .*apps\.py", line \d+ in stuck', SOON_S)
        server.output.wait(r'event="worker ended" .*how="signal 11 SIGSEGV"', SOON_S)
