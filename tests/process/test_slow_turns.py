"""Handlers that hold the loop: who and where is in the log, and turns that are quick enough cost nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

SOON_S: Final = 10.0

APP: Final = """
import asyncio, signal, time

def grind(seconds):
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        pass

async def handler(conn):
    async for line in conn:
        match line:
            case b"sleep\\n":
                time.sleep(0.15)  # A call that blocks.
            case b"grind\\n":
                grind(0.15)
            case b"later\\n":
                asyncio.get_running_loop().call_soon(grind, 0.15)
            case b"await\\n":
                await asyncio.sleep(0.15)
            case b"alarm\\n":
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
        await conn.send(line)
"""


def serve(folder: Path, *options: str) -> ShardedServer:
    (folder / "slow.py").write_text(APP)
    return ShardedServer("slow:handler", workers=1, options=["--app-dir", str(folder), *options])


def line_of(text: str) -> int:
    return 1 + next(number for number, line in enumerate(APP.splitlines()) if text in line)


def test_turn_that_is_held_up_is_logged_with_where_it_stood(tmp_path: Path) -> None:
    with serve(tmp_path) as server, Client(server.address) as client:
        server.wait_serving()
        assert client.ask(b"sleep") == b"sleep"
        found = server.output.wait(r'event="?slow turn"? .*', SOON_S)
        where = re.escape(f"{tmp_path}/slow.py:{line_of('A call that blocks')} in handler")
        shape = rf'took_s=0\.\d+ where="{where}" line="time.sleep\(0.15\).*" handler=handler'
        assert re.search(shape, found[0])
        assert client.ask(b"grind") == b"grind"
        server.output.wait(r'slow.py:\d+ in grind" line=".*" handler=handler', SOON_S)
        assert client.ask(b"later") == b"later"
        server.output.wait(r'slow.py:\d+ in grind" line=".*" handler=grind', SOON_S)
        assert client.ask(b"await") == b"await"
        samples = server.wait_metrics(lambda now: now.total("slow_turns_total") == 3)
        assert samples.total("loop_turn_duration_seconds_bucket", le="0.1") + 3 == samples.total(
            "loop_turn_duration_seconds_count"
        )


def test_app_may_have_the_alarm_for_itself(tmp_path: Path) -> None:
    """Slow turns are still counted and logged, without a place."""
    with serve(tmp_path) as server, Client(server.address) as client:
        server.wait_serving()
        assert client.ask(b"alarm") == b"alarm"
        assert client.ask(b"sleep") == b"sleep"
        server.output.wait(r'event="?slow turn"? .* took_s=[\d.]+$', SOON_S)
        server.wait_metrics(lambda now: now.total("slow_turns_total") == 1)


@pytest.mark.parametrize(("threshold", "count"), [("off", 0), ("0.05", 1), ("60", 0)])
def test_threshold_is_the_operators(tmp_path: Path, threshold: str, count: int) -> None:
    with serve(tmp_path, "--slow-turn", threshold) as server, Client(server.address) as client:
        server.wait_serving()
        for line in (b"sleep", b"quick"):
            assert client.ask(line) == line
        server.wait_metrics(lambda now: now.total("completions_total", op="read", outcome="ok") >= 2)
        assert server.scrape().total("slow_turns_total") == count
