"""`--watch`: what is saved is served."""

from __future__ import annotations

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


def test_watch_needs_watchfiles_and_says_so(tmp_path: Path) -> None:
    """A module that is None is one that cannot be imported."""
    write(tmp_path, "one")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['watchfiles'] = None\n")
    finished = shardnet("run", "app:handler", "--watch", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert finished.status == 2
    assert finished.stderr_lines == ["shardnet: --watch needs the package watchfiles: pip install 'shardnet[watch]'"]
