"""The test kit's `ShardedServer`, by hurting it: what it promises to notice, it notices."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shardnet.testing import ShardedServer
from shardnet.testing.output import run_command
from shardnet.testing.processes import session_pids
from shardnet.testing.samples import get, parse
from tests.harness.server import PROJECT

pytestmark = pytest.mark.process

ECHO = "examples.echo:handler"


def ask(server: ShardedServer) -> bytes:
    with server.connect() as client:
        client.sendall(b"hello")
        return client.recv(5)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_server_kills_the_worker_of_a_shard() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        before = server.wait_serving()
        assert server.kill(1) == before[1]
        server.wait_metrics(lambda now: now.total("shard_restarts_total", shard=1, reason="signal") == 1)
        after = server.wait_serving()
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert server.shards()[1].restarts == 1
        assert ask(server) == b"hello"


def test_server_hangs_and_resumes_the_worker_of_a_shard() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT, workers=1) as server:
        pid = server.hang(0)
        assert is_stopped(pid)
        with server.connect() as client:
            client.sendall(b"hello")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(5)
            server.resume(0)
            client.settimeout(10.0)
            assert client.recv(5) == b"hello"
        server.resume(0)  # Nothing happens.


def test_server_ends_well_with_a_worker_that_hangs() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        server.hang(0)
        server.hang(1)
        server.kill(1)


def test_server_reloads() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        before = server.wait_serving()
        with server.connect() as old:
            old.sendall(b"?")
            assert old.recv(1) == b"?"
            after = server.reload()
            assert not set(before.values()) & set(after.values())
            assert [shard.generation for shard in server.shards()] == [2, 2]
            assert ask(server) == b"hello"
        assert server.reload() != after


def test_server_serves_on_every_sort_of_address(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    binds = ("127.0.0.1:0", f"unix:{path}", "[::1]:0")
    with ShardedServer(ECHO, app_dir=PROJECT, binds=binds) as server:
        assert server.unix_paths == [path]
        assert [host for host, _ in server.addresses] == ["127.0.0.1", "::1"]
        assert server.address == server.addresses[0]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"


def test_server_passes_options_and_environment_on(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import os\nasync def handler(conn):\n    await conn.send(os.environ['GREETING'].encode())\n"
    )
    options = ("--drain-timeout", "1")
    with ShardedServer("told:handler", app_dir=tmp_path, options=options, env={"GREETING": "hello"}) as server:
        with server.connect() as client:
            assert client.recv(5) == b"hello"
        assert server.stop() == 0


def test_server_reads_metrics_as_prometheus_does() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        ask(server)
        _, text = get(server.metrics_address, "/metrics")
    families = list(text_string_to_metric_families(text))
    read = [sample for family in families for sample in family.samples]
    wanted = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in read}
    samples = parse(text)
    assert samples.values == wanted
    assert {name for name, _ in samples.counters} == {
        sample.name for family in families if family.type == "counter" for sample in family.samples
    }
    assert samples.total("connections_accepted_total") == 1.0


# What it notices.


def test_server_notices_a_wrong_exit_status() -> None:
    with (
        pytest.raises(AssertionError, match="exit status is 0, not 70"),
        ShardedServer(ECHO, app_dir=PROJECT, expect_status=70),
    ):
        pass


def test_server_notices_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text("async def handler(conn):\n    raise LookupError\n")
    server = ShardedServer("raising:handler", app_dir=tmp_path, workers=1)
    with pytest.raises(AssertionError, match="1 tracebacks") as caught, server:
        assert ask(server) == b""
    assert "Traceback" in caught.value.__notes__[0]


def test_server_says_why_it_did_not_start() -> None:
    with (
        pytest.raises(AssertionError, match=r"did not start: shardnet: examples\.echo:ecko: module") as caught,
        ShardedServer("examples.echo:ecko", app_dir=PROJECT),
    ):
        pass
    assert "the server's output" in caught.value.__notes__[0]


def test_server_is_killed_when_the_test_fails_and_shows_what_it_said() -> None:
    server = ShardedServer(ECHO, app_dir=PROJECT)
    with pytest.raises(LookupError) as caught, server:
        raise LookupError("in the test")
    assert "shardnet" in caught.value.__notes__[0]
    assert session_pids(server.pid) == []


def test_server_notices_that_it_has_ended() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        server.wait_serving()
        assert server.stop() == 0
        with pytest.raises(AssertionError, match="ended already, with exit status 0"):
            server.signal(signal.SIGTERM)
        with pytest.raises(AssertionError, match="ended with exit status 0"):
            server.wait_serving()


def test_server_waits_only_so_long() -> None:
    with ShardedServer(ECHO, app_dir=PROJECT) as server:
        with pytest.raises(AssertionError, match=r"not as wanted within 0\.1 s"):
            server.wait_shards(lambda shards: False, 0.1)
        with pytest.raises(AssertionError, match=r"still running after 0\.1 s"):
            server.wait(0.1)
        with pytest.raises(AssertionError, match="did not say so"):
            server.output.wait("never said", 0.1)
        with pytest.raises(AssertionError, match="no worker serves shard 7"):
            server.kill(7)


def test_command_that_leaves_processes_behind_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],"
        " stdin=-3, stdout=-3, stderr=-3)\n"
        "async def handler(conn): ...\n"
    )
    with pytest.raises(AssertionError, match="left processes"):
        run_command("check", "leaving:handler", "--app-dir", os.fspath(tmp_path))
