"""Addresses that are not plain TCP: unix paths, inherited sockets, one socket for IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.procs import end_session, session_pids
from tests.harness.server import PROJECT, ShardedServer, shardnet, wait_until
from tests.process.test_addresses import needs_ipv6

pytestmark = pytest.mark.process

WHICH: Final = "tests.process.apps:which"
SHARDS: Final = 3
PATIENCE_S: Final = 10.0


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "app.sock")


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def shard_of(sock: socket.socket) -> int:
    """Who serves a connection to `which`."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = sock.recv(100)
        assert chunk, "the server ended the stream"
        line += chunk
    return int(line)


def shards_of(path: Path, count: int) -> Counter[int]:
    """Who serves so many connections that come one after the other and stay."""
    with contextlib.ExitStack() as stack:
        return Counter(shard_of(stack.enter_context(connect(path))) for _ in range(count))


def test_unix_path_is_served_by_every_shard_and_removed_at_the_end(path: Path) -> None:
    with ShardedServer(WHICH, workers=SHARDS, binds=[f"unix:{path}", "127.0.0.1:0"]) as server:
        server.wait_serving()
        shards = shards_of(path, 60)
        assert set(shards) == set(range(SHARDS)), shards
        with Client(server.address) as client:
            assert client.line()
        assert server.scrape().by("listener", "connections_accepted_total")[f"unix:{path}"] == 60
        assert server.stop() == 0
        assert not path.exists()


def replaced(server: ShardedServer, killed: int) -> bool:
    return killed not in server.wait_serving().values()


def test_unix_connections_survive_the_death_of_workers(path: Path) -> None:
    """Law: a worker's death costs the connections that it had accepted, and no other."""
    with ShardedServer(WHICH, workers=2, binds=[f"unix:{path}", "127.0.0.1:0"]) as server:
        server.wait_serving()
        served: Counter[int] = Counter()
        with contextlib.ExitStack() as stack:
            for shard in (0, 1, 0, 1):
                waiting = []
                for other in (0, 1):
                    server.hang(other)
                for _ in range(10):
                    waiting.append(stack.enter_context(connect(path)))
                killed = server.kill(shard)
                server.resume(1 - shard)
                served.update(shard_of(client) for client in waiting)
                # Not before its death has been noticed: until then the dead one passes for serving.
                wait_until(functools.partial(replaced, server, killed))
        assert sum(served.values()) == 40


def test_unix_path_is_served_without_a_gap_through_reloads(path: Path) -> None:
    """Law: nobody who connects while a generation replaces another is refused, reset or left waiting."""
    with ShardedServer(WHICH, workers=2, binds=[f"unix:{path}", "127.0.0.1:0"]) as server:
        server.wait_serving()
        over = threading.Event()
        failures: list[BaseException] = []
        served = 0

        def load() -> None:
            nonlocal served
            while not over.is_set():
                try:
                    with connect(path) as client:
                        shard_of(client)
                    served += 1
                except BaseException as error:
                    failures.append(error)

        loader = threading.Thread(target=load)
        loader.start()
        try:
            for _ in range(3):
                server.reload()
        finally:
            over.set()
            loader.join()
        assert not failures
        assert served > 10


@pytest.mark.fault("F26")
def test_second_instance_on_a_unix_path_is_refused_and_told_the_holder(path: Path) -> None:
    with ShardedServer(WHICH, binds=[f"unix:{path}", "127.0.0.1:0"]) as server:
        finished = shardnet("run", WHICH, "--bind", f"unix:{path}", "--metrics-bind", "off")
        assert finished.status == 5
        assert f"a shardnet on unix:{path} is already running, pid {server.pid}: stop it" in finished.stderr
        with connect(path) as client:
            shard_of(client)


@pytest.mark.fault("F26")
def test_unix_path_of_a_server_that_was_killed_is_taken_over(path: Path) -> None:
    with ShardedServer(WHICH, binds=[f"unix:{path}", "127.0.0.1:0"], expect_status=-signal.SIGKILL) as server:
        server.signal(signal.SIGKILL)
        server.wait(PATIENCE_S)
        server.assert_nobody_left()
    assert path.is_socket()
    with ShardedServer(WHICH, binds=[f"unix:{path}", "127.0.0.1:0"]), connect(path) as client:
        shard_of(client)


def test_unix_socket_has_the_rights_that_the_flags_say(path: Path) -> None:
    owner = f"{os.getuid()}:{os.getgid()}"
    flags = ["--unix-mode", "606", "--unix-owner", owner]
    with ShardedServer(WHICH, binds=[f"unix:{path}", "127.0.0.1:0"], options=flags):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o606, os.getuid(), os.getgid())


@pytest.mark.parametrize(
    ("bind", "status", "line"),
    [
        ("unix:/proc/version", 2, "what is there is no socket"),
        ("unix:/no/such/folder/app.sock", 1, "there is no folder /no/such/folder; make it first"),
        ("unix:/" + "x" * 107, 2, "a unix socket's at most 107"),
        ("fd://999", 2, "address fd://999: descriptor 999 is not open"),
        ("fd://1", 2, "0 to 2 are the standard streams"),
    ],
)
def test_address_that_cannot_be_is_one_line(bind: str, status: int, line: str) -> None:
    finished = shardnet("run", WHICH, "--bind", bind, "--metrics-bind", "off")
    assert line in finished.stderr
    assert finished.status == status
    assert "Traceback" not in finished.stderr


@needs_ipv6
def test_dual_stack_serves_both_families() -> None:
    with ShardedServer(WHICH, workers=2, binds=["*:0"]) as server:
        port = server.address[1]
        for host in ("127.0.0.1", "::1"):
            with Client((host, port)) as client:
                assert client.line()


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_inherited_socket_is_served_by_every_shard(path: Path, family: str) -> None:
    """As systemd passes it: open when we start, with connections waiting, and open in whoever passed it afterwards."""
    with contextlib.ExitStack() as stack:
        if family == "tcp":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        else:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(128)
        clients = []
        for _ in range(30):  # Before anybody serves.
            client = stack.enter_context(socket.socket(listener.family))
            client.settimeout(PATIENCE_S)
            client.connect(listener.getsockname())
            clients.append(client)
        fd = listener.fileno()
        command = [sys.executable, "-m", "shardnet", "run", WHICH, "--workers", str(SHARDS)]
        command += ["--bind", f"fd://{fd}", "--metrics-bind", "off"]
        log = stack.enter_context(tempfile.TemporaryFile())
        server = subprocess.Popen(
            command, cwd=PROJECT, pass_fds=[fd], start_new_session=True, stdout=subprocess.PIPE, stderr=log, text=True
        )
        stack.enter_context(server)
        stack.callback(end_session, server.pid)
        assert server.stdout is not None
        assert f" on fd://{fd}, {SHARDS} shards" in server.stdout.readline()
        shards = Counter(map(shard_of, clients))
        # On a busy machine a worker may not get to run for some tens of connections.
        while set(shards) != set(range(SHARDS)) and shards.total() < 1000:
            client = stack.enter_context(socket.socket(listener.family))
            client.settimeout(PATIENCE_S)
            client.connect(listener.getsockname())
            shards[shard_of(client)] += 1
        assert set(shards) == set(range(SHARDS)), shards
        for client in clients:
            client.close()
        server.terminate()
        assert server.wait(PATIENCE_S) == 0
        if family == "unix":
            assert path.is_socket(), "it is not ours to remove"


# Logs.


def holders(file: Path, session: int) -> set[int]:
    """The processes of a session that have a file open."""
    found = set()
    for pid in session_pids(session):
        with contextlib.suppress(OSError):
            if any(entry.resolve() == file for entry in Path(f"/proc/{pid}/fd").iterdir()):
                found.add(pid)
    return found


def test_log_files_hold_every_process_and_are_opened_anew_when_told(path: Path) -> None:
    log, access = path.with_name("log"), path.with_name("access")
    flags = ["--log-file", str(log), "--access-log", str(access), "--log-format", "json", "--log-level", "debug"]
    with ShardedServer(WHICH, workers=2, binds=[f"unix:{path}", "127.0.0.1:0"], options=flags) as server:
        server.wait_serving()
        with connect(path) as client:
            shard_of(client)
        with Client(server.address) as tcp:
            tcp.line()
            peer = f"127.0.0.1:{tcp.port}"
        server.wait_metrics(lambda samples: samples.total("connections_active") == 0)
        for file in (log, access):
            file.rename(file.with_suffix(".1"))
        server.signal(signal.SIGUSR1)
        everybody = 2 + 1 + 1  # Workers, exporter, supervisor.
        wait_until(lambda: len(holders(log, server.pid)) == everybody)
        assert not holders(log.with_suffix(".1"), server.pid)
        with Client(server.address) as tcp:
            tcp.line()
        server.wait_metrics(lambda samples: samples.total("connections_active") == 0)
    old, new = (
        [json.loads(line) for line in file.read_text().splitlines()] for file in (access.with_suffix(".1"), access)
    )
    assert len(old) == 2
    assert len(new) == 1
    by_listener = {entry["listener"]: entry for entry in old}
    assert by_listener[f"unix:{path}"]["sent_bytes"] == 2
    [tcp_entry] = [entry for entry in old if entry["peer"] == peer]
    assert {"shard", "generation", "duration_s", "reason", "connection", "received_bytes"} <= set(tcp_entry)
    before = [json.loads(line) for line in log.with_suffix(".1").read_text().splitlines()]
    after = [json.loads(line) for line in log.read_text().splitlines()]
    assert "worker ready" in {entry["event"] for entry in before}
    assert "stopped" in {entry["event"] for entry in after}
    assert not any(line.startswith("{") for line in server.output.lines())
