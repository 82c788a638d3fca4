"""Settings have the effect that they promise, whichever layer they are from."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer, shardnet

pytestmark = pytest.mark.process

APP: Final = """
import asyncio

async def handler(conn):
    await conn.send(b"debug %d\\n" % asyncio.get_running_loop().get_debug())

async def flood(conn):
    conn.write(bytes(4 << 20))
    conn.write(b"more")
    await conn.drain()
"""
NO_MODE: Final = "unix_mode and unix_owner have no effect: no address is unix:PATH"
SAID_S: Final = 10.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def first_line(server: ShardedServer) -> bytes:
    with Client(server.address) as client:
        return client.line()


@pytest.mark.parametrize(
    ("options", "env", "debug"), [([], {}, 0), (["--debug"], {}, 1), ([], {"SHARDNET_DEBUG": "1"}, 1)]
)
def test_debug_turns_on_the_debug_mode_of_asyncio(
    folder: Path, options: list[str], env: dict[str, str], debug: int
) -> None:
    with ShardedServer("app:handler", app_dir=folder, options=options, env=env) as server:
        assert first_line(server) == b"debug %d" % debug


def test_write_limit_of_a_file_resets_who_has_more_unsent(folder: Path) -> None:
    (folder / "shardnet.toml").write_text("write_limit = 262144\n")
    with (
        ShardedServer("app:flood", app_dir=folder) as server,
        Client(server.address, receive_buffer_bytes=4096) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.rest()
    (folder / "shardnet.toml").unlink()
    with (
        ShardedServer("app:flood", app_dir=folder) as server,
        Client(server.address, receive_buffer_bytes=4096) as client,
    ):
        assert len(client.rest()) == (4 << 20) + len(b"more")


def test_log_goes_to_a_file_in_the_format_asked_for(folder: Path) -> None:
    (folder / "shardnet.toml").write_text('log_file = "server.log"\nlog_format = "json"\naccess_log = "access.log"\n')
    with ShardedServer("app:handler", app_dir=folder) as server:
        first_line(server)
    lines = [json.loads(line) for line in (folder / "server.log").read_text().splitlines()]
    assert {"worker ready", "stopped"} <= {line["event"] for line in lines}
    (access,) = (folder / "access.log").read_text().splitlines()
    assert json.loads(access)["sent_bytes"] == len("debug 0\n")
    assert not server.output.lines("stderr")


def test_log_level_leaves_out_what_is_less(folder: Path) -> None:
    with ShardedServer("app:handler", app_dir=folder, env={"SHARDNET_LOG_LEVEL": "warning"}) as server:
        first_line(server)
    assert not server.output.lines("stderr")


def test_log_file_that_cannot_be_written_is_told_in_one_line(folder: Path) -> None:
    finished = shardnet("run", "app:handler", "--log-file", "no/where.log", cwd=folder)
    assert finished.status == 1
    (line,) = finished.stderr_lines
    assert str(folder / "no" / "where.log") in line


def test_unix_mode_is_that_of_the_socket(folder: Path) -> None:
    path = folder / "app.sock"
    options = ["--unix-mode", "600", "--unix-owner", f"{os.getuid()}:{os.getgid()}"]
    with ShardedServer("app:handler", app_dir=folder, binds=[f"unix:{path}", "127.0.0.1:0"], options=options) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not [line for line in server.output.lines() if NO_MODE in line]


def test_unix_mode_without_a_unix_address_is_warned_of(folder: Path) -> None:
    with ShardedServer("app:handler", app_dir=folder, env={"SHARDNET_UNIX_MODE": "600"}) as server:
        server.output.wait(NO_MODE, SAID_S)


def test_app_may_stand_in_the_file(folder: Path) -> None:
    (folder / "shardnet.toml").write_text('app = "app:handler"\nbind = ["127.0.0.1:70000"]\n')
    finished = shardnet("run", cwd=folder)
    assert finished.status == 3
    assert "shardnet.toml:2: bind: " in finished.stderr
    (folder / "shardnet.toml").write_text('app = "app:nothing"\nbind = ["127.0.0.1:0"]\nmetrics_bind = "off"\n')
    finished = shardnet("run", cwd=folder)
    assert finished.status == 4
    assert "app:nothing" in finished.stderr
