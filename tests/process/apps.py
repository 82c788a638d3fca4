"""Handlers for the process tests, loaded by real workers as `tests.process.apps:NAME`.

Each is the least that shows one thing. Where a handler must be busy for exactly as long as the test wants, it waits
at the test's *gate*: a connection to a listener of the test, open until the test closes it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time

from shardnet.connection import Connection

GREETING = b"hello\n"
REPLY_BYTES = 1 << 20
BUSY_S = 60.0

_gates: dict[int, asyncio.Task[None]] = {}  # By port: one connection to a gate per worker.


async def _until_closed(port: int) -> None:
    with contextlib.suppress(ConnectionError):  # Closed with us in its queue, or before we came: open is open.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await reader.read()
        finally:
            writer.close()


async def gate(port: int) -> None:
    """Wait until the test closes the gate's connections."""
    if port not in _gates:
        _gates[port] = asyncio.create_task(_until_closed(port))
    await asyncio.shield(_gates[port])


async def greeting(conn: Connection) -> None:
    """An echo that says hello first, so that a client knows it was accepted."""
    await conn.send(GREETING)
    async for data in conn:
        await conn.send(data)


async def which(conn: Connection) -> None:
    """Says which shard serves, and then echoes."""
    await conn.send(b"%d\n" % conn.shard.id)
    async for data in conn:
        await conn.send(data)


def reply(tag: int, size: int) -> bytes:
    """A reply that no other tag has, of `size` bytes."""
    return (b"%016d" % tag * (size // 16 + 1))[:size]


async def replies(conn: Connection) -> None:
    """Per line `tag size port`: `working`, then a wait at that gate (0: none), then the reply."""
    try:
        while True:
            tag, size, port = map(int, (await conn.read_until()).split())
            await conn.send(b"working\n")
            if port:
                await gate(port)
            await conn.send(reply(tag, size))
    except asyncio.IncompleteReadError:
        return


async def busy(conn: Connection) -> None:
    """Answers a minute after it was asked; it can be waited for only by those who have the time."""
    while data := await conn.read():
        await conn.send(b"working\n")
        await asyncio.sleep(BUSY_S)
        await conn.send(data)


ERRORS = {error.__name__.encode() + b"\n": error for error in (ValueError, KeyboardInterrupt, SystemExit)}


def _raise_if_named(data: bytes) -> None:
    if data in ERRORS:
        raise ERRORS[data]("it was named")


async def raising(conn: Connection) -> None:
    """An echo that cannot stand the names of some errors."""
    async for data in conn:
        _raise_if_named(data)
        await conn.send(b"%d " % conn.shard.id + data)


def raising_on_data(conn: Connection, data: bytes) -> None:
    """The same as a callback."""
    _raise_if_named(data)
    conn.write(b"%d " % conn.shard.id + data)


async def exiting(conn: Connection) -> None:
    """Ends its worker, as if all were well, when it is told `exit`."""
    async for data in conn:
        if data == b"exit\n":
            os._exit(0)
        await conn.send(b"%d\n" % conn.shard.id)


def _connections_in_memory() -> bytes:
    return b"%d\n" % sum(isinstance(thing, Connection) for thing in gc.get_objects())


async def counting(conn: Connection) -> None:
    """An echo without garbage collection that is asked with `count` how many connections there are, also dead ones."""
    gc.disable()
    async for data in conn:
        await conn.send(_connections_in_memory() if data == b"count\n" else data)


def counting_on_data(conn: Connection, data: bytes) -> None:
    """The same as a callback."""
    gc.disable()
    conn.write(_connections_in_memory() if data == b"count\n" else data)


def _square(number: int) -> int:
    return number * number


_pool: concurrent.futures.ProcessPoolExecutor | None = None


async def pooled(conn: Connection) -> None:
    """Squares numbers in a process of a pool that nobody ever shuts down."""
    global _pool
    if _pool is None:
        _pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    async for data in conn:
        square = await asyncio.get_running_loop().run_in_executor(_pool, _square, int(data))
        await conn.send(b"%d\n" % square)


async def immortal(conn: Connection) -> None:
    """Starts a thread that never ends and is no daemon."""
    threading.Thread(target=threading.Event().wait).start()
    async for data in conn:
        await conn.send(data)


def _break() -> None:
    raise LookupError("out of a turn")


async def breaking(conn: Connection) -> None:
    """An echo that, asked to `break`, makes a turn of the engine raise: what a bug of shardnet's own would do."""
    async for data in conn:
        if data == b"break\n":
            conn._host.engine.defer(_break)
        await conn.send(data)


async def stuck(conn: Connection) -> None:
    """Holds the loop in the way that a word says, and echoes everything else."""
    async for data in conn:
        match data.strip():
            case b"sleep":
                time.sleep(BUSY_S)  # What must not be done.
            case b"spin":
                sum(range(10**12))  # One call in C, which no Python signal handler interrupts.
            case b"segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case _:
                await conn.send(data)


_hoard: list[bytes] = []


async def hoarding(conn: Connection) -> None:
    """Keeps as many bytes as it is told, and says which shard does."""
    async for data in conn:
        _hoard.append(b"x" * int(data))
        await conn.send(b"%d\n" % conn.shard.id)


async def stubborn(conn: Connection) -> None:
    """Echoes, and goes on until it is cut; or leaves a grandchild without a parent, and says its pid."""
    data = await conn.read()
    if data != b"orphan":
        await conn.send(data)
        await asyncio.sleep(BUSY_S)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.write(writer, b"%d\n" % os.getpid())
            os.closerange(0, 1024)
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
    await conn.send(os.read(reader, 20))


async def silent(conn: Connection) -> None:
    """Reads, and says nothing."""
    async for _ in conn:
        pass
