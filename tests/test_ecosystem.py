"""What is made for asyncio works inside a handler, because the loop is asyncio's own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from asyncio.subprocess import PIPE

import pytest

from shardnet.connection import Connection
from tests.serving import MODES, Serving

pytestmark = pytest.mark.parametrize("mode", MODES)


async def ask(kit: Serving, data: bytes = b"go") -> bytes:
    """What the handler answers to `data` until it ends the connection."""
    client = kit.connect()
    client.put(data)
    return await client.receive_to_end()


def test_handler_calls_functions_in_threads(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        data = await conn.read()
        await conn.send(await asyncio.to_thread(lambda: data * 2))

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit, b"ab")) == b"abab"


def test_handler_runs_a_subprocess(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=PIPE, stdout=PIPE)
        output, _ = await process.communicate(await conn.read())
        await conn.send(output + b"%d" % (process.returncode or 0))

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit, b"ab")) == b"ab0"


def test_handler_is_a_client_of_its_own_server(mode: str) -> None:
    """Streams and connections of one loop wait for each other."""

    async def handler(conn: Connection) -> None:
        port = conn.local[1]
        data = await conn.read()
        if len(data) > 1:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data[1:])
            await conn.send(await reader.read())
            writer.close()
            await writer.wait_closed()
        await conn.send(data[:1])

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit, b"abcd")) == b"dcba"


def test_handler_starts_a_server_of_asyncio(mode: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()
        await writer.wait_closed()

    async def handler(conn: Connection) -> None:
        data = await conn.read()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(data)
            await conn.send(await reader.read())
            writer.close()
            await writer.wait_closed()

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit, b"ab")) == b"ab"


def test_handlers_talk_through_queues_and_timers(mode: str) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(conn: Connection) -> None:
        data = await conn.read()
        if data == b"taker":
            await conn.send(await queue.get())
        else:
            asyncio.get_running_loop().call_later(0.01, queue.put_nowait, data)

    async def main(kit: Serving) -> None:
        taker = asyncio.create_task(ask(kit, b"taker"))
        assert await ask(kit, b"given") == b""
        assert await taker == b"given"

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))


def test_thread_wakes_the_waiting_loop(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set_result, b"woken"))
        thread.start()
        await conn.send(await woken)
        thread.join()

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit)) == b"woken"


def test_signal_handlers_run_while_the_loop_waits(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()
        loop = asyncio.get_running_loop()
        by_loop, by_python = loop.create_future(), loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, by_loop.set_result, b"1")
        previous = signal.signal(signal.SIGUSR2, lambda *_: loop.call_soon_threadsafe(by_python.set_result, b"2"))
        try:
            await asyncio.to_thread(os.kill, os.getpid(), signal.SIGUSR1)
            await conn.send(await by_loop)
            await asyncio.to_thread(os.kill, os.getpid(), signal.SIGUSR2)
            await conn.send(await by_python)
        finally:
            signal.signal(signal.SIGUSR2, previous)
            loop.remove_signal_handler(signal.SIGUSR1)

    with Serving(handler, mode=mode) as kit:
        assert kit.run(ask(kit)) == b"12"
