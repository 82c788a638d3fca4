"""What a user is told who asks for what cannot be: one line that says what and how to mend it, and an exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import PROJECT, TRACEBACK, Finished, ShardedServer, shardnet

pytestmark = pytest.mark.process

FAILED: Final = 1
USAGE: Final = 2
APP: Final = 4
ADDRESS: Final = 5

ON_ANY_PORT: Final = ["--workers", "2", "--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"]

BROKEN: Final = """
from nowhere_at_all import anything
"""
RAISING: Final = """
raise RuntimeError("the database is not there")
"""
HANDLERS: Final = """
number = 7
def takes_three(a, b, c): ...
async def good(conn): ...
"""


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    """A directory with apps to load, for a server to be started in."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "raising.py").write_text(RAISING)
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "syntax.py").write_text("def (:\n")
    return tmp_path


def assert_told(finished: Finished, status: int, *words: str) -> None:
    """One line on stderr, with these words in it."""
    assert finished.status == status, finished
    assert len(finished.stderr_lines) == 1, finished.stderr
    for word in words:
        assert word in finished.stderr_lines[0]
    assert finished.stdout == ""


WRONG_APPS: Final = [
    ("missing:handler", ["missing"]),
    ("handlers:absent", ["handlers", "absent"]),
    ("handlers:number", ["handlers:number", "handler"]),
    ("handlers:takes_three", ["handlers:takes_three", "handler"]),
    ("broken:handler", ["nowhere_at_all"]),
    ("raising:handler", ["RuntimeError", "the database is not there"]),
    ("syntax:handler", ["SyntaxError"]),
]


@pytest.mark.fault("F05")
@pytest.mark.parametrize(("app", "words"), WRONG_APPS, ids=[app for app, _ in WRONG_APPS])
@pytest.mark.parametrize("command", [["run", *ON_ANY_PORT], ["check"]], ids=["run", "check"])
def test_app_that_cannot_be_loaded_is_told_in_one_line(
    apps: Path, command: list[str], app: str, words: list[str]
) -> None:
    assert_told(shardnet(*command, app, cwd=apps), APP, *words)


@pytest.mark.parametrize("command", [["run", *ON_ANY_PORT], ["check"]], ids=["run", "check"])
@pytest.mark.parametrize("app", ["handlers", "handlers:", ":good"])
def test_app_that_is_not_named_fully_is_told_in_one_line(apps: Path, command: list[str], app: str) -> None:
    assert_told(shardnet(*command, app, cwd=apps), USAGE, "MODULE:NAME")


@pytest.mark.parametrize("command", [["run", *ON_ANY_PORT], ["check"]], ids=["run", "check"])
def test_app_that_cannot_be_loaded_is_told_with_a_traceback_when_debugging(apps: Path, command: list[str]) -> None:
    finished = shardnet(*command, "raising:handler", "--debug", cwd=apps)
    assert finished.status == APP
    assert TRACEBACK in finished.stderr
    assert "raising.py" in finished.stderr
    assert "the database is not there" in finished.stderr_lines[-1]


@pytest.mark.parametrize("app", ["handlers:good", "examples.echo:on_data"])
def test_check_is_content_with_an_app_that_loads(apps: Path, app: str) -> None:
    finished = shardnet("check", app, cwd=apps if app.startswith("handlers") else PROJECT)
    assert finished.status == 0
    assert finished.stderr == ""


@pytest.mark.fault("F25")
def test_address_held_by_another_program_is_told_with_its_pid() -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        finished = shardnet("run", "examples.echo:handler", "--bind", address, "--metrics-bind", "127.0.0.1:0")
    assert_told(finished, ADDRESS, address, f"pid {os.getpid()}")


def test_every_address_held_by_another_program_is_told_with_its_pid() -> None:
    """Whoever listened on one address and so kept us from all of them was not named: only listeners on that very
    address, or on every one, were looked for."""
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"0.0.0.0:{foreign.getsockname()[1]}"
        finished = shardnet("run", "examples.echo:handler", "--bind", address, "--metrics-bind", "127.0.0.1:0")
    assert_told(finished, ADDRESS, address, f"pid {os.getpid()}")


def test_metrics_address_that_is_served_already_is_told() -> None:
    """The advice was to stop whoever listens there: the one who asked."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    address = f"127.0.0.1:{port}"
    finished = shardnet("run", "examples.echo:handler", "--bind", address, "--metrics-bind", address)
    assert_told(finished, ADDRESS, address, "--bind", "--metrics-bind")


def test_metrics_address_held_by_another_program_is_told_when_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        finished = shardnet("run", "examples.echo:handler", "--bind", "127.0.0.1:0", "--metrics-bind", address)
    assert_told(finished, ADDRESS, address)


@pytest.mark.fault("F24")
def test_second_instance_is_told_the_pid_of_the_first_and_leaves_it_alone() -> None:
    with ShardedServer("examples.echo:handler") as server:
        workers = server.wait_serving()
        (address,) = server.load_addresses()
        finished = shardnet("run", "examples.echo:handler", "--bind", address, "--metrics-bind", "127.0.0.1:0")
        assert_told(finished, ADDRESS, address, "already running", f"pid {server.pid}")
        for number in range(8):
            with Client(server.address) as client:
                assert client.ask(b"%d" % number) == b"%d" % number
        assert server.worker_pids() == workers


@pytest.mark.parametrize("bind", ["127.0.0.1:http", "127.0.0.1:70000", "[::1:9000", "127.0.0.1:9000:1", ""])
def test_address_that_is_none_is_told_in_one_line(bind: str) -> None:
    finished = shardnet("run", "examples.echo:handler", "--bind", bind, "--metrics-bind", "127.0.0.1:0")
    assert_told(finished, USAGE, bind)


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_number_of_workers_that_is_none_is_told(workers: str) -> None:
    finished = shardnet("run", "examples.echo:handler", *ON_ANY_PORT, "--workers", workers)
    assert finished.status == USAGE
    assert "--workers" in finished.stderr_lines[-1]
    assert TRACEBACK not in finished.stderr


@pytest.mark.parametrize("command", [["run", *ON_ANY_PORT], ["check"]], ids=["run", "check"])
def test_current_directory_that_is_gone_is_told(tmp_path: Path, command: list[str]) -> None:
    """`run` tried for 30 seconds, because each worker found out by itself: "worker could not start: No such file"."""
    arguments = [sys.executable, "-m", "shardnet", *command, "handlers:good"]
    (tmp_path / "gone").mkdir()
    gone = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *arguments],
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert_told(Finished(gone.returncode, gone.stdout, gone.stderr), USAGE, "current directory", "--app-dir")


@pytest.mark.parametrize(("arguments", "status"), [(["check", "missing:handler"], APP), (["check", "--what"], USAGE)])
def test_exit_status_is_right_when_stderr_cannot_be_written(arguments: list[str], status: int) -> None:
    """With a full disk under stderr, the error about the error took over: always exit status 1."""
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run([sys.executable, "-m", "shardnet", *arguments], stderr=full, timeout=30, check=False)
    assert finished.returncode == status


def test_stdout_that_cannot_be_written_is_told_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "shardnet", "check", "examples.echo:handler"],
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert_told(Finished(finished.returncode, "", finished.stderr), FAILED, "No space left")
