"""A handler that uses asyncio the way handlers do, loaded by real workers as `tests.process.ecosystem:handler`.

A client sends the name of a check and its arguments on one line; the answer is `ok WHAT` or the error.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import httpx

from shardnet.connection import Connection


async def sleep() -> str:
    began_s = time.monotonic()
    await asyncio.sleep(0.05)
    return "slept" if time.monotonic() - began_s >= 0.05 else "woke too early"


async def timeout() -> str:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        return "timed out"
    return "no timeout"


async def wait_for() -> str:
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    except TimeoutError:
        return "timed out"
    return "no timeout"


async def task_group() -> str:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(number)) for number in range(10)]
    return str(sum(task.result() for task in tasks))


async def create_task() -> str:
    queue: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(queue.put("from a task"))
    said = await queue.get()
    await task
    return said


async def executor() -> str:
    name = await asyncio.get_running_loop().run_in_executor(None, lambda: threading.current_thread().name)
    return "another thread" if name != threading.current_thread().name else name


async def connect(port: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    writer.write(b"ping\n")
    await writer.drain()
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.decode().strip()


async def subprocess() -> str:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(input() * 2)", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    stdout, _ = await child.communicate(b"ab\n")
    return f"{stdout.decode().strip()} {child.returncode}"


async def http(url: str) -> str:
    async with httpx.AsyncClient() as client:
        first, second = await asyncio.gather(client.get(url), client.get(url))
    return f"{first.status_code} {second.status_code} {sorted(first.json())}"


async def read_with_timeout(conn: Connection) -> str:
    """A read that is given up keeps nothing of the stream: what comes later is read by the next."""
    try:
        async with asyncio.timeout(0.01):
            await conn.read()
    except TimeoutError:
        await conn.send(b"go on\n")
        return (await conn.read_until()).decode().strip()
    return "no timeout"


CHECKS: dict[str, Callable[..., Awaitable[str]]] = {
    check.__name__: check
    for check in (sleep, timeout, wait_for, task_group, create_task, executor, connect, subprocess, http)
}


async def handler(conn: Connection) -> None:
    while line := await conn.read():
        name, *arguments = line.decode().split()
        try:
            if name == read_with_timeout.__name__:
                said = await read_with_timeout(conn)
            else:
                said = await CHECKS[name](*arguments)
        except Exception as error:
            said = repr(error)
        await conn.send(f"{said}\n".encode())
