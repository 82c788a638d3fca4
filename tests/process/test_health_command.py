"""`shardnet health`: an exit status and a line, for every way a server can be, be reached, or not be there."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from shardnet.exporter.reception import CLIENTS_MAX
from shardnet.testing.processes import stop_and_wait
from tests.exporter_kit import Authority, authority
from tests.harness.server import PROJECT, Finished, ShardedServer, shardnet, wait_until

__all__ = ["authority"]  # A fixture.

pytestmark = pytest.mark.process

APP: Final = "examples.echo:handler"
FAILED: Final = 1
USAGE: Final = 2
CONFIG: Final = 3
NOT_RUNNING: Final = 6


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands' sockets are: no server of others is met there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current directory with no settings in it."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.fixture
def free_port() -> int:
    """Free on every address: there may be connections that rest on others than the one asked for."""
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    return port


def health(*arguments: str, folder: Path, **env: str) -> Finished:
    return shardnet("health", *arguments, cwd=folder, env={"PYTHONPATH": str(PROJECT)} | env)


def at(server: ShardedServer, scheme: str = "") -> tuple[str, str]:
    host, port = server.metrics_address
    return "--address", f"{scheme}{host}:{port}"


def assert_yes(finished: Finished, *words: str) -> None:
    assert (finished.status, finished.stderr) == (0, ""), finished
    assert len(finished.stdout.splitlines()) == 1
    for word in words:
        assert word in finished.stdout


def assert_no(finished: Finished, status: int, *words: str) -> None:
    """One line on stderr says why."""
    assert (finished.status, finished.stdout, len(finished.stderr_lines)) == (status, "", 1), finished
    for word in words:
        assert word in finished.stderr


def test_health_is_that_of_the_address_that_is_named(folder: Path) -> None:
    with ShardedServer(APP, workers=2) as server:
        server.wait_serving()
        assert_yes(health(*at(server), folder=folder), "ready: 2 of 2 shards serve")
        assert_yes(health(*at(server, "http://"), folder=folder), "ready")
        assert_yes(health("--live", *at(server), folder=folder), "live: the supervisor's loop turned")


def test_health_is_that_of_the_server_that_is_set_up_here(folder: Path, free_port: int) -> None:
    (folder / "shardnet.toml").write_text(f'metrics_bind = "127.0.0.1:{free_port}"\n')
    with ShardedServer(APP, options=("--metrics-bind", f":{free_port}")):
        assert_yes(health(folder=folder), "ready")
        assert_yes(health(folder=folder.parent, SHARDNET_METRICS_BIND=f":{free_port}"), "ready")
        assert_yes(health(folder=folder.parent, SHARDNET_METRICS_BIND=f"*:{free_port}"), "ready")
        assert_yes(health("--config", str(folder / "shardnet.toml"), folder=folder.parent), "ready")


def test_health_asks_the_commands_socket_when_there_are_no_metrics(folder: Path, free_port: int) -> None:
    """Set off here, off by a flag that is not known here, or on a port that is not known here."""
    elsewhere = f"127.0.0.1:{free_port}"
    with ShardedServer(APP, workers=2, options=("--name", "dark", "--ready-min-shards", "2")) as server:
        server.wait_serving()
        for bind in ("off", "127.0.0.1:0", elsewhere):
            assert_yes(health(folder=folder, SHARDNET_METRICS_BIND=bind), "ready: 2 of 2 shards serve")
            assert_yes(health("--live", folder=folder, SHARDNET_METRICS_BIND=bind), "live: the supervisor answers")
        assert_yes(health("--name", "dark", folder=folder), "ready")
        assert shardnet("drain", "1", "--name", "dark").status == 0
        for bind in ("off", elsewhere):
            finished = health(folder=folder, SHARDNET_METRICS_BIND=bind)
            assert_no(finished, FAILED, "not ready: 1 of 2 shards serve, 2 needed")
        assert shardnet("undrain", "1", "--name", "dark").status == 0
        assert shardnet("lame-duck", "--name", "dark").status == 0
        assert_no(health("--name", "dark", folder=folder), FAILED, "not ready: lame duck")
        assert_yes(health("--live", "--name", "dark", folder=folder), "live")


def test_health_says_why_a_server_is_not_ready(folder: Path) -> None:
    with ShardedServer(APP, workers=2, options=("--name", "lame", "--ready-min-shards", "all")) as server:
        server.wait_serving()
        assert shardnet("drain", "0", "--name", "lame").status == 0
        assert_no(health(*at(server), folder=folder), FAILED, "not ready: 1 of 2 shards serve, 2 needed")
        assert_yes(health("--live", *at(server), folder=folder), "live")
        assert shardnet("lame-duck", "--name", "lame").status == 0
        assert_no(health(*at(server), folder=folder), FAILED, "not ready: lame duck")


def test_health_over_tls_needs_neither_token_nor_certificate(
    authority: Authority, folder: Path, free_port: int, tmp_path: Path
) -> None:
    certificate, key = authority.issue("health")
    token = tmp_path / "token"
    token.write_text("sesame")
    env = {
        "SHARDNET_METRICS_BIND": f"127.0.0.1:{free_port}",
        "SHARDNET_METRICS_TLS_CERT": str(certificate),
        "SHARDNET_METRICS_TLS_KEY": str(key),
        "SHARDNET_METRICS_CLIENT_CA": str(authority.certificate),
        "SHARDNET_METRICS_TOKEN_FILE": str(token),
    }
    with ShardedServer(APP, env=env, options=("--metrics-bind", env["SHARDNET_METRICS_BIND"])) as server:
        server.output.wait("serving", 20)
        assert_yes(health(folder=folder, **env), "ready")
        https = at(server, "https://")
        assert_yes(health(*https, folder=folder), "ready")
        assert_yes(health(*https, "--ca", str(authority.certificate), folder=folder), "ready")
        stranger = Authority(tmp_path, authority.openssl)
        stranger.found()
        finished = health(*https, "--ca", str(stranger.certificate), folder=folder)
        assert_no(finished, FAILED, "certificate verify failed")
        assert_no(health(*https, "--ca", str(tmp_path / "missing"), folder=folder), USAGE, "--ca", "No such file")
        assert_no(health(*at(server), folder=folder), FAILED, "answered 400", "speaks TLS")


def test_health_says_that_no_server_runs(folder: Path, free_port: int) -> None:
    here = f"127.0.0.1:{free_port}"
    assert_no(health("--address", here, folder=folder), NOT_RUNNING, here, "Connection refused")
    assert_no(health(folder=folder, SHARDNET_METRICS_BIND=here), NOT_RUNNING, here, "no server of this user runs")
    assert_no(health(folder=folder, SHARDNET_METRICS_BIND="off"), NOT_RUNNING, "no server of this user runs")
    assert_no(health("--name", "nobody", folder=folder), NOT_RUNNING, "no server named nobody")


def test_health_ends_in_time_whoever_does_not_answer(folder: Path, free_port: int) -> None:
    """A listener that accepts nobody; a supervisor that is stopped, whose queue of commands is full in the end."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        finished = health("--address", address, "--timeout", "0.3", folder=folder)
        assert_no(finished, FAILED, "no answer within 0.3 s")
    with ShardedServer(APP, workers=1, options=("--name", "stopped")) as server:
        server.wait_serving()
        stop_and_wait(server.pid)
        try:
            for _ in range(20):
                finished = health("--name", "stopped", "--timeout", "0.2", folder=folder)
                assert_no(finished, FAILED, "no answer within 0.2 s")
            wait_until(lambda: health("--live", *at(server), folder=folder).status == FAILED, 20.0)
            assert_no(
                health("--live", *at(server), folder=folder), FAILED, "not live: the supervisor's loop last turned"
            )
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_health_is_told_while_others_hold_every_place(folder: Path) -> None:
    with ShardedServer(APP, workers=1) as server:
        others = [socket.create_connection(server.metrics_address, 10) for _ in range(3 * CLIENTS_MAX)]
        assert_yes(health(*at(server), folder=folder), "ready")
        for other in others:
            other.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "nonsense"], ["--address nonsense", "HOST:PORT"]),
        (["--address", "127.0.0.1:0"], ["HOST:PORT"]),
        (["--address", "127.0.0.1:70000"], ["HOST:PORT"]),
        (["--timeout", "0"], ["--timeout", "more than 0"]),
        (["--timeout", "soon"], ["--timeout"]),
        (["--wrong"], ["--wrong", "shardnet health --help"]),
        (["more"], ["more", "shardnet health --help"]),
    ],
)
def test_health_tells_a_wrong_flag_in_one_line(arguments: list[str], words: list[str], folder: Path) -> None:
    assert_no(health(*arguments, folder=folder), USAGE, *words)


def test_health_tells_settings_that_cannot_be(folder: Path) -> None:
    (folder / "shardnet.toml").write_text("workers = 'many'\n")
    assert_no(health(folder=folder), CONFIG, "shardnet.toml:1: workers")
    assert_no(health("--config", "missing.toml", folder=folder), CONFIG, "missing.toml")


def test_health_answers_no_to_somebody_else_at_the_address(folder: Path) -> None:
    """Something that speaks no HTTP, and something whose pages are not ours."""
    for said, why in (
        (b"220 mail.example ESMTP\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"HTTP/1.1 404 Not Found\r\n\r\nnothing here\n", "answered 404: nothing here"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "is no exporter of shardnet's"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as other:
            pid = os.fork()
            if pid == 0:
                try:
                    client, _ = other.accept()
                    client.recv(65536)
                    client.sendall(said)
                finally:
                    os._exit(0)
            finished = health("--address", f"127.0.0.1:{other.getsockname()[1]}", folder=folder)
            os.waitpid(pid, 0)
        assert_no(finished, FAILED, why)


def test_health_is_among_the_commands_and_teaches(folder: Path) -> None:
    assert "  health " in shardnet("--help").stdout
    text = health("--help", folder=folder).stdout
    for word in ("--live", "--address", "--ca", "--timeout", "HEALTHCHECK", "Exit status: 0 yes; 1 no"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
