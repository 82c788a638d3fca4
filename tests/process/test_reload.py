"""HUP: a new generation of workers on the same listeners, and nothing that a client would notice."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.procs import descriptors, wait_gone
from tests.harness.report import Outcome, Report
from tests.harness.server import ShardedServer, wait_until
from tests.process.test_fds import audit
from tests.process.test_stop import Gate

pytestmark = pytest.mark.process

RELOADS: Final = 10
CLIENTS: Final = 48
# What is edited twice within a second, to the same size, would pass for unchanged by its .pyc.
ENVIRONMENT: Final = {"PYTHONDONTWRITEBYTECODE": "1"}

APP: Final = '''
from tests.process.apps import gate

async def handler(conn):
    """Says its version; told the port of a gate, waits there, and says it again."""
    await conn.send(b"version VERSION\\n")
    async for line in conn:
        await gate(int(line))
        await conn.send(b"still VERSION\\n")
'''

# An import that takes until the test opens its gate.
WAITING: Final = """
import contextlib, socket
with contextlib.suppress(OSError):
    socket.create_connection(("127.0.0.1", {port})).recv(1)
"""


@pytest.fixture
def gate() -> Iterator[Gate]:
    closing = Gate()
    yield closing
    closing.open()


def write_app(folder: Path, version: str, first: str = "") -> None:
    (folder / "versioned.py").write_text(first + APP.replace("VERSION", version))


def serve(folder: Path, *options: str, workers: int = 2) -> ShardedServer:
    """A server of the app in this folder."""
    return ShardedServer(
        "versioned:handler", workers=workers, options=["--app-dir", str(folder), *options], env=ENVIRONMENT
    )


def assert_unnoticed(report: Report) -> None:
    """The law: nobody is refused, nobody hangs, nothing is reset. What a client may see is a clean end of stream,
    where it was waiting to say something when the old generation drained; it would have got that any day."""
    told = f"{report.failures}, {report.faults[:5]}"
    assert set(report.failures) <= {Outcome.SERVED_EOF, Outcome.UNSERVED_EOF}, told
    assert report.established == report.sessions, told
    assert report.completed > 10 * RELOADS, told


def test_reload_ten_times_under_connecting_clients() -> None:
    with ShardedServer("tests.process.apps:greeting", workers=4) as server:
        load = RunningLoad(
            server.load_addresses(), connections=CLIENTS, messages=1, max_size_bytes=2000, greeting="hello\n",
            repeat=True, hang_s=25.0, deadline_s=50.0,
        )  # fmt: skip
        with load:
            load.wait_running()
            before = server.scrape()
            for number in range(1, RELOADS + 1):
                pids = server.reload()
                assert set(pids) == {0, 1, 2, 3}
                now = server.scrape()
                assert now.went_backwards(before) == []
                assert now.total("generation") == number + 1
                before = now
            report = load.finish()
        assert_unnoticed(report)
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert samples.total("connections_accepted_total") == report.established
        assert samples.total("reloads_total", outcome="ok") == RELOADS
        assert samples.unasked_restarts == 0


def test_old_connections_finish_on_the_old_code_and_new_ones_get_the_new(tmp_path: Path, gate: Gate) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, ExitStack() as stack:
        busy, idle = (stack.enter_context(Client(server.address)) for _ in range(2))
        assert busy.line() == idle.line() == b"version one"
        busy.send(b"%d\n" % gate.port)
        old = server.worker_pids()
        write_app(tmp_path, "number two")
        new = server.reload()
        assert not set(old.values()) & set(new.values())
        assert idle.rest() == b""
        for _ in range(20):
            with Client(server.address) as client:
                assert client.line() == b"version number two"
        gate.open()
        assert busy.rest() == b"still one\n"
        assert wait_gone(old.values(), 10.0) == []


@pytest.mark.fault("F13")
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("import nothing_of_this_name\n", "importing versioned raised ModuleNotFoundError"),
        ("async def handler(conn:\n", "importing versioned raised SyntaxError"),
        ("import os\nos._exit(3)\n", r"shard \d: exit status 3"),
    ],
    ids=["import", "syntax", "exit"],
)
def test_new_code_that_does_not_come_up_is_one_line_and_the_old_serves_on(
    tmp_path: Path, broken: str, why: str
) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, Client(server.address) as early:
        assert early.line() == b"version one"
        old = server.wait_serving()
        (tmp_path / "versioned.py").write_text(broken)
        server.signal(signal.SIGHUP)
        server.output.wait(f"reload failed: .*{why}.*, generation 1 keeps serving", 10.0)
        samples = server.wait_metrics(lambda now: now.total("reloads_total", outcome="failed") == 1)
        assert samples.total("generation") == 1
        assert samples.unasked_restarts == 0
        with Client(server.address) as client:
            assert client.line() == b"version one"
        assert server.wait_serving() == old
        write_app(tmp_path, "three")
        server.reload()
        assert early.rest() == b""
        with Client(server.address) as client:
            assert client.line() == b"version three"
        errors = [line for line in server.output.lines("stderr") if "Z error " in line]
        assert len(errors) == 1, errors


@pytest.mark.fault("F10")
def test_burst_of_reloads_keeps_to_two_generations_and_leaks_nothing(tmp_path: Path) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path, "--drain-spread", "0") as server:
        server.reload()
        wait_until(lambda: generations(server) == {2})
        before = [fd.kind for fd in descriptors(server.pid)]
        due_s = time.monotonic()
        for _ in range(20):
            server.signal(signal.SIGHUP)
            due_s += 0.1
            while (left_s := due_s - time.monotonic()) > 0:
                server.output.wait_more(left_s)
        server.wait_shards(lambda _: asked_for_nothing_more(server))
        last = int(server.scrape().total("generation"))
        assert last > 3
        wait_until(lambda: generations(server) == {last})
        assert sorted(fd.kind for fd in descriptors(server.pid)) == sorted(before)
        assert_two_generations(server.output.lines("stderr"))


@pytest.mark.fault("F10")
def test_burst_of_reloads_waits_for_what_still_drains_and_is_one(tmp_path: Path, gate: Gate) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, Client(server.address) as busy:
        assert busy.line() == b"version one"
        busy.send(b"%d\n" % gate.port)
        server.reload()
        write_app(tmp_path, "number two")
        for _ in range(20):
            server.signal(signal.SIGHUP)
        server.output.wait('event="reload waits" why="generation 1 drains"', 10.0)
        assert server.scrape().total("generation") == 2
        gate.open()
        assert busy.rest() == b"still one\n"
        server.output.wait('event="reloaded" generation=3', 10.0)
        server.wait_shards(lambda _: generations(server) == {3})
        with Client(server.address) as client:
            assert client.line() == b"version number two"
        log = server.output.lines("stderr")
        assert sum('event="reload waits"' in line for line in log) == 1
        assert sum('event="reload" ' in line for line in log) == 2
        assert_two_generations(log)


def generations(server: ShardedServer) -> set[int]:
    """Of all workers that the supervisor has, by its log."""
    alive: dict[str, int] = {}
    for line in server.output.lines("stderr"):
        found = re.search(r'event="worker (held|ready|ended)" shard=\d+ generation=(\d+) pid=(\d+)', line)
        if found:
            alive[found[3]] = int(found[2])
            if found[1] == "ended":
                del alive[found[3]]
    return set(alive.values())


def asked_for_nothing_more(server: ShardedServer) -> bool:
    """Whether every reload that was begun or waited has ended."""
    begun, done, waits = 0, 0, False
    for line in server.output.lines("stderr"):
        if 'event="reload" ' in line:
            begun, waits = begun + 1, False
        done += 'event="reloaded" ' in line
        waits = waits or 'event="reload waits"' in line
    return begun == done and not waits


def assert_two_generations(log: list[str]) -> None:
    """When a generation is begun, none but the one before it lives."""
    ended: dict[int, int] = {}
    begun = 0
    for line in log:
        if found := re.search(r'event="worker ended" shard=\d+ generation=(\d+)', line):
            ended[int(found[1])] = ended.get(int(found[1]), 0) + 1
        elif found := re.search(r'event="reload" generation=(\d+)', line):
            begun += 1
            assert all(ended[older] == 2 for older in range(1, int(found[1]) - 1)), line
    assert begun >= 2


def test_every_process_holds_exactly_its_own_descriptors_after_reloads() -> None:
    with ShardedServer("examples.echo:handler", workers=4, binds=["127.0.0.1:0", "127.0.0.1:0"]) as server:
        ports = [port for _, port in server.addresses]
        listeners = audit(server, server.wait_serving(), ports)
        before = sorted(fd.kind for fd in descriptors(server.pid))
        for _ in range(3):
            old = server.worker_pids()
            new = server.reload()
            assert wait_gone(old.values(), 10.0) == []
            assert audit(server, new, ports) == listeners
        wait_until(lambda: sorted(fd.kind for fd in descriptors(server.pid)) == before)


def test_worker_killed_while_the_next_generation_boots_is_missed_by_nobody(tmp_path: Path, gate: Gate) -> None:
    """The new generation is held up by its import until the test lets it go on."""
    write_app(tmp_path, "one")
    with serve(tmp_path) as server:
        old = server.wait_serving()
        write_app(tmp_path, "two", first=WAITING.format(port=gate.port))
        server.signal(signal.SIGHUP)
        server.output.wait('event="reload" generation=2', 10.0)
        server.kill(0)
        with ExitStack() as stack:
            waiting = [stack.enter_context(Client(server.address)) for _ in range(20)]
            gate.open()
            assert {client.line() for client in waiting} <= {b"version one", b"version two"}
        server.output.wait('event="reloaded" generation=2', 10.0)
        new = server.wait_serving()
        assert not set(old.values()) & set(new.values())


def test_term_in_the_middle_of_a_reload_stops_everything(tmp_path: Path, gate: Gate) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, Client(server.address) as client:
        assert client.line() == b"version one"
        write_app(tmp_path, "two", first=WAITING.format(port=gate.port))
        server.signal(signal.SIGHUP)
        server.output.wait('event="reload" generation=2', 10.0)
        assert server.stop() == 0
        assert client.rest() == b""
        assert [line for line in server.output.lines("stderr") if "Z error " in line] == []
