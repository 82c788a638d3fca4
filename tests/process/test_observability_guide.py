"""The guide's five minutes, followed literally: every command of it is run as it stands, one after the other.

Only three things are different here. Prometheus is the one that tests have (the two lines with `sudo` are what a reader
does to get it), `shardnet` is this one, and a test does not wait half a minute: it asks until the answer has come.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.harness.server import PROJECT, wait_until
from tests.prometheus_tool import find_tools

pytestmark = pytest.mark.process

GUIDE: Final = PROJECT / "docs" / "observability.md"
PORTS: Final = (9000, 9090, 9464)
LISTENS: Final = {"shardnet run": 9000, "prometheus": 9090}  # A reader types more slowly than they start.
PATIENCE_S: Final = 50.0
ENDING_S: Final = 20.0
SHARDS: Final = 4  # As the guide has it.


def commands() -> list[str]:
    """The commands of the five minutes."""
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("## Five minutes") : text.index("## The three subjects")]
    found = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert len(found) == 8
    return found


def free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Reader:
    """Somebody who follows the guide, in a folder that holds what the repository's has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        programs = folder / "programs"
        programs.mkdir()
        (programs / "shardnet").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shardnet "$@"\n')
        (programs / "shardnet").chmod(0o755)
        tools = find_tools()
        (programs / "prometheus").symlink_to(tools.prometheus)
        (programs / "promtool").symlink_to(tools.promtool)
        for name in ("deploy", "examples", "shardnet"):
            (folder / name).symlink_to(PROJECT / name)
        self._environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}

    def begin(self, command: str) -> None:
        """Run what ends in `&`: until `end`."""
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command.removesuffix('&')}"],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._running.append(process)
        for beginning, port in LISTENS.items():
            if command.startswith(beginning):
                wait_until(lambda port=port: not free(port), PATIENCE_S)  # type: ignore[misc]

    def ask(self, command: str) -> str:
        said = subprocess.run(
            ["sh", "-c", command], cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        return said.stdout

    def end(self) -> None:
        """End what runs, the youngest first."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_guide_leads_to_live_figures(tmp_path: Path) -> None:
    find_tools()
    if taken := [port for port in PORTS if not free(port)]:
        pytest.skip(f"the guide's ports are somebody's here: {taken}")
    reader = Reader(tmp_path)
    answers: dict[str, str] = {}
    try:
        for command in commands():
            if command.startswith("sudo "):
                continue
            if command.endswith("&"):
                reader.begin(command)
                continue
            assert command.startswith("promtool query instant")
            deadline_s = time.monotonic() + PATIENCE_S
            lines = 2 if "op, outcome" in command else SHARDS
            while len((answer := reader.ask(command)).strip().splitlines()) < lines:
                assert time.monotonic() < deadline_s, (command, answer)
            answers[command] = answer
    finally:
        reader.end()
    connections, completions, swap = answers.values()
    for answer in (connections, swap):
        assert all(f'shard="{shard}"' in answer for shard in range(SHARDS))
    assert 'op="read"' in completions
    assert 'outcome="ok"' in completions


def test_guide_names_pages_that_there_are() -> None:
    for page in (
        GUIDE,
        PROJECT / "docs" / "dashboards.md",
        PROJECT / "docs" / "metrics.md",
        PROJECT / "docs" / "top.md",
    ):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)
