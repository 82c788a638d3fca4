"""`--watch`: what is saved is served."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer, shardnet, wait_until

pytestmark = pytest.mark.process

APP: Final = """
async def handler(conn):
    await conn.send(b"{answer}\\n")
"""
SAID_S: Final = 20.0


def write(folder: Path, answer: str) -> None:
    (folder / "app.py").write_text(APP.format(answer=answer))


def ask(server: ShardedServer) -> bytes:
    with Client(server.address) as client:
        return client.rest()


@pytest.mark.parametrize("more", [[], ["--preload"]], ids=["", "preload"])
def test_edit_is_served_and_a_broken_one_is_not(tmp_path: Path, more: list[str]) -> None:
    write(tmp_path, "one")
    with ShardedServer("app:handler", app_dir=tmp_path, options=["--watch", *more]) as server:
        server.output.wait('event="watching"', SAID_S)
        assert ask(server) == b"one\n"

        write(tmp_path, "two")
        server.output.wait("source changed, reloading.* files=app.py", SAID_S)
        wait_until(lambda: ask(server) == b"two\n")  # The old workers still take what was queued.

        (tmp_path / "app.py").write_text("def (:\n")
        server.output.wait("reload failed.*SyntaxError", SAID_S)
        assert ask(server) == b"two\n"
        assert sum("reload failed" in line for line in server.output.lines()) == 1

        write(tmp_path, "three")
        wait_until(lambda: ask(server) == b"three\n")


def test_watch_leaves_nobody_behind_when_the_server_is_killed(tmp_path: Path) -> None:
    write(tmp_path, "one")
    with ShardedServer("app:handler", app_dir=tmp_path, options=["--watch"], expect_status=-signal.SIGKILL) as server:
        server.output.wait('event="watching"', SAID_S)
        server.signal(signal.SIGKILL)
        assert server.wait(SAID_S) == -signal.SIGKILL


def test_watch_survives_the_rotation_of_logs_and_follows_it(tmp_path: Path) -> None:
    """USR1 to all processes of a name, as rotation scripts send it, killed the one that watches, without a word; and
    without it that one wrote to the old file for ever."""
    write(tmp_path, "one")
    log, old = tmp_path / "log", tmp_path / "log.1"
    options = ["--watch", "--log-file", str(log)]
    with ShardedServer("app:handler", app_dir=tmp_path, options=options) as server:
        wait_until(lambda: 'event="watching"' in log.read_text(), SAID_S)
        log.rename(old)
        for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
        server.signal(signal.SIGUSR1)
        wait_until(log.exists)
        write(tmp_path, "two")
        wait_until(lambda: "source changed, reloading" in log.read_text(), SAID_S)
        wait_until(lambda: ask(server) == b"two\n")


def test_watch_needs_watchfiles_and_says_so(tmp_path: Path) -> None:
    """A module that is None is one that cannot be imported."""
    write(tmp_path, "one")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['watchfiles'] = None\n")
    finished = shardnet("run", "app:handler", "--watch", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert finished.status == 2
    assert finished.stderr_lines == ["shardnet: --watch needs the package watchfiles: pip install 'shardnet[watch]'"]
