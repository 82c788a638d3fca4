"""What a user is told who asks for what cannot be: one line that says what and how to mend it, and an exit status."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import PROJECT, TRACEBACK, Finished, ShardedServer, shardnet

pytestmark = pytest.mark.process

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


def test_address_held_by_another_program_is_told_with_its_pid() -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        finished = shardnet("run", "examples.echo:handler", "--bind", address, "--metrics-bind", "127.0.0.1:0")
    assert_told(finished, ADDRESS, address, f"pid {os.getpid()}")


def test_metrics_address_held_by_another_program_is_told_when_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        finished = shardnet("run", "examples.echo:handler", "--bind", "127.0.0.1:0", "--metrics-bind", address)
    assert_told(finished, ADDRESS, address)


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
