"""The current task, on a Python that does not note it in a dict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[1]

# A stand-in for CPython 3.14, where the dict is there as well, and is not asyncio's own any more.
SCRIPT: Final = """
import asyncio.tasks

noted = asyncio.tasks._current_tasks  # Where C's _enter_task and _leave_task go on writing to.

def current_task(loop=None):
    return noted.get(loop or asyncio.get_running_loop())

asyncio.tasks._current_tasks = {}
asyncio.current_task = asyncio.tasks.current_task = current_task

from tests.serving import Serving, the_task

seen = []

async def handler(conn):
    async for data in conn:
        seen.append(asyncio.current_task() is the_task(conn))
        await conn.send(data)

async def main(kit):
    client, conn = await kit.open()
    for _ in range(3):
        client.put(b"x")
        assert await client.receive() == b"x"

with Serving(handler) as kit:
    kit.run(main(kit))
print(seen)
"""


def test_handler_finds_its_task_when_a_dict_of_that_name_is_nobodys() -> None:
    """The compiled engine wrote to that dict, and a handler that was resumed had no current task."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("[True, True, True]\n", "")
