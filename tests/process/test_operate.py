"""The commands for a running server, as an operator types them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import Client
from tests.harness.scrape import get
from tests.harness.server import Finished, ShardedServer, shardnet

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test's own for control sockets; short, because a socket's path may have 107 bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    folder = Path("/tmp") / f"shardnet-test-{os.getpid()}"
    folder.mkdir()
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):  # In the latter, other servers of this machine would be found.
        monkeypatch.setenv(name, str(folder))
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def serve(app: str = "tests.process.apps:which", *options: str, workers: int = 2) -> ShardedServer:
    return ShardedServer(app, workers=workers, options=["--name", "ours", *options])


def order(*arguments: str) -> Finished:
    return shardnet(*arguments, timeout_s=60.0)


def said(*arguments: str) -> str:
    """What a command prints that has to succeed."""
    finished = order(*arguments)
    assert finished.status == 0, finished
    return finished.stdout


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said("status", "--json"))
    return found


def test_status_shows_the_server_and_its_shards() -> None:
    with serve() as server, Client(server.address) as client:
        shard = int(client.line())
        found = status()
        assert (found["name"], found["pid"], found["generation"]) == ("ours", server.pid, 1)
        assert [one["shard"] for one in found["shards"]] == [0, 1]
        assert found["shards"][shard]["connections"] == 1
        assert {one["workers"][0]["pid"] for one in found["shards"]} == set(server.worker_pids().values())
        lines = said("status").splitlines()
        assert lines[0].startswith(
            f"ours: tests.process.apps:which on 127.0.0.1:{server.address[1]}, pid {server.pid},"
        )
        assert [line.split()[:2] for line in lines[2:]] == [["0", "serving"], ["1", "serving"]]


def test_reload_and_upgrade_return_when_the_new_generation_serves() -> None:
    with serve() as server:
        for command, generation in (("reload", 2), ("upgrade", 3)):
            before = set(server.worker_pids().values())
            assert said(command) == f"generation {generation} serves\n"
            assert not before & set(server.worker_pids().values())
            assert status()["pid"] == server.pid


def test_reload_that_fails_says_why_and_exits_one(tmp_path: Path) -> None:
    app = tmp_path / "mortal.py"
    app.write_text("async def handler(conn): pass\n")
    with ShardedServer("mortal:handler", workers=2, options=["--name", "ours", "--app-dir", str(tmp_path)]):
        app.write_text("raise RuntimeError('new code')  # Longer than before, for the .pyc.\n")
        finished = order("reload")
        assert finished.status == 1
        last = finished.stderr_lines[-1]
        assert last.startswith(
            "shardnet: reload failed: mortal:handler: importing mortal raised RuntimeError: new code"
        )
        assert last.endswith("; generation 1 keeps serving")


def test_scale_returns_when_so_many_serve() -> None:
    with serve("tests.process.apps:which", "--max-workers", "3", workers=1) as server:
        assert said("scale", "3") == "3 shards serve\n"
        assert len(server.worker_pids()) == 3
        assert said("scale", "1") == "1 shard serves\n"
        finished = order("scale", "4")
        assert (finished.status, finished.stderr_lines[-1]) == (
            2, "shardnet: 4 shards: it can be 1 to 3, which is --max-workers",
        )  # fmt: skip


def test_restart_replaces_one_worker() -> None:
    with serve() as server:
        before = server.worker_pids()
        assert said("restart", "1") == "shard 1 has a new worker\n"
        after = server.worker_pids()
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert server.scrape().unasked_restarts == 0
        finished = order("restart", "2")
        assert (finished.status, finished.stderr_lines[-1]) == (2, "shardnet: no shard 2: there are 0 to 1")


def test_shard_that_is_drained_stays_empty_and_is_served_by_others() -> None:
    with serve() as server:
        assert said("drain", "0") == "shard 0 is empty\n"
        for _ in range(16):
            with Client(server.address) as client:
                assert client.line() == b"1"
        assert said("reload") == "generation 2 serves\n"
        assert [shard["state"] for shard in status()["shards"]] == ["vacant", "serving"]
        finished = order("drain", "1")
        assert finished.status == 2
        assert "shard 1 is the only one that serves" in finished.stderr_lines[-1]
        assert said("undrain", "0") == "shard 0 serves\n"


@pytest.mark.parametrize("word", [b"sleep", b"spin"])
def test_stacks_show_a_handler_that_holds_the_loop(word: bytes) -> None:
    with serve("tests.process.apps:stuck", "--hang-timeout", "off") as server, Client(server.address) as client:
        client.send(word)
        busy = next(text for shard in ("0", "1") if "in stuck" in (text := said("stacks", shard)))
        assert "Current thread" in busy
        assert "not known: its event loop does not turn" in busy
        assert "2 tasks" in said("stacks")  # Of the other one.
        assert order("stop", "--now").stdout == "stopped\n"
        assert server.wait(10.0) == 0


def test_stacks_show_where_tasks_wait_and_how_many() -> None:
    with serve(workers=1) as server:
        clients = [Client(server.address) for _ in range(5)]
        for client in clients:
            client.line()
        text = said("stacks", "0")
        assert "5 x which\n" in text
        assert 'apps.py", line ' in text
        for client in clients:
            client.close()


def test_log_level_is_changed_everywhere() -> None:
    with serve() as server:
        said("log-level", "debug")
        assert said("log-level", "warning") == "log level warning\n"
        said("upgrade")  # It outlives the program.
        lines = len(server.output.lines("stderr"))
        said("restart", "0")
        assert len(server.output.lines("stderr")) == lines
        said("log-level", "debug")
        said("restart", "0")
        server.output.wait('info supervisor .*event="worker ready" shard=0 generation=2', 10.0)
        finished = order("log-level", "loud")
        assert finished.status == 2
        assert "log level 'loud' is none of debug, info, warning, error" in finished.stderr_lines[-1]
        server.output.wait("refused", 10.0)


def test_stop_returns_when_the_server_is_gone() -> None:
    with serve() as server:
        assert said("stop") == "stopped\n"
        assert server.wait(10.0) == 0
        finished = order("status")
        assert (finished.status, finished.stderr_lines) == (
            6, ["shardnet: no server of this user runs; start one with shardnet run"],
        )  # fmt: skip


def test_server_is_found_by_name_by_settings_or_because_it_is_the_only_one(tmp_path: Path) -> None:
    with serve(), ShardedServer("tests.process.apps:greeting") as other:
        finished = order("status")
        assert finished.status == 6
        assert finished.stderr_lines == [
            "shardnet: several servers run: say which with --name, one of ours, tests.process.apps"
        ]
        assert f"pid {other.pid}," in said("status", "--name", "tests.process.apps")
        (tmp_path / "shardnet.toml").write_text('name = "ours"\n')
        assert said("status", "--config", str(tmp_path / "shardnet.toml")).startswith("ours: ")
        assert order("status", "--name", "nobody").stderr_lines == [
            "shardnet: no server named nobody runs; running: ours, tests.process.apps"
        ]
        finished = order("run", "tests.process.apps:which", "--name", "ours", "--bind", "127.0.0.1:0")
        assert finished.status == 5
        assert finished.stderr_lines[-1] == (
            "shardnet: a server named ours is running already: give this one another --name"
        )


def test_socket_is_its_owners_alone_and_rubbish_hurts_nobody(runtime: Path) -> None:
    with serve() as server:
        path = runtime / "shardnet" / "ours.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        packets = [b"", b"rubbish", b"[" * 60_000, b'{"id":1,"type":"status","from":"x"}', b'{"id":1,"type":"\\ud800"}']
        for packet in packets * 2:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(path))
                sock.send(packet or b" ")
        idle = []
        for _ in range(40):  # More than are let in, who say nothing.
            idle.append(sock := socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.connect(str(path))
        for sock in idle:
            sock.close()
        assert status()["pid"] == server.pid
    assert not path.exists()


def test_socket_of_a_server_that_was_killed_is_replaced(runtime: Path) -> None:
    with ShardedServer("tests.process.apps:which", options=["--name", "ours"], expect_status=-9) as server:
        server.signal(9)
        server.wait(10.0)
    assert (runtime / "shardnet" / "ours.sock").exists()
    assert order("status").status == 6
    with serve():
        assert status()["name"] == "ours"


def test_lame_duck_is_not_ready_and_serves_also_after_an_upgrade() -> None:
    with serve() as server:
        assert get(server.metrics_address, "/readyz")[0] == 200
        assert said("lame-duck") == "not ready, still serving\n"
        server.wait_metrics(lambda now: now.total("lame_duck") == 1)
        assert get(server.metrics_address, "/readyz")[0] == 503
        said("upgrade")
        assert get(server.metrics_address, "/readyz")[0] == 503
        with Client(server.address) as client:
            assert client.line() in (b"0", b"1")
        assert "lame duck" in said("status")
        assert said("lame-duck", "off") == "ready again\n"
        server.wait_metrics(lambda now: now.total("lame_duck") == 0)
        server.signal(signal.SIGWINCH)
        server.wait_metrics(lambda now: now.total("lame_duck") == 1)
