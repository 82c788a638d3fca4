"""Echoes of every kind, and apps with a lifespan, for the process tests.

Asked with `count` (a line), an echo says how many connections its worker has in memory, dead ones included, and does
without the garbage collector. Asked with `blocks`, it runs that, which also empties the free lists of Python's own, and
says how many blocks of memory Python's allocator has handed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

from shardnet import App, Connection, Shard

BUFFER_BYTES = 10_000


def answer(data: bytes) -> bytes:
    gc.disable()
    if data == b"blocks\n":
        gc.collect()
        return b"%d\n" % sys.getallocatedblocks()
    if data != b"count\n":
        return data
    return b"%d\n" % sum(isinstance(thing, Connection) for thing in gc.get_objects())


async def conn(conn: Connection) -> None:
    async for data in conn:
        await conn.send(answer(data))


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(answer(data))
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def callback(conn: Connection, data: bytes) -> None:
    conn.write(answer(data))


class Protocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(answer(data))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Buffered(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(answer(bytes(self.buffer[:nbytes])))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


# Lifespans. Each says what it does in the log.


@contextlib.asynccontextmanager
async def _lifespan(shard: Shard) -> AsyncIterator[None]:
    shard.log.info("life begins")
    shard.state.greeting = b"hello from %d\n" % shard.id
    yield
    shard.log.info("life ends", connections=len(shard.connections))


def _on_connect(conn: Connection) -> None:
    conn.write(conn.shard.state.greeting)


def _on_disconnect(conn: Connection, error: BaseException | None) -> None:
    conn.shard.log.info("client gone", error=error)


def _on_drain(conn: Connection) -> None:
    conn.write(b"goodbye\n")


whole = App(
    streams, lifespan=_lifespan, on_connect=_on_connect, on_disconnect=_on_disconnect, on_drain=_on_drain, limit=100
)


@contextlib.asynccontextmanager
async def _fails_at_the_start(shard: Shard) -> AsyncIterator[None]:
    waiting = asyncio.ensure_future(asyncio.Event().wait())  # Nobody ever ends it.
    await asyncio.sleep(0)
    assert not waiting.done()
    raise ConnectionError("the database is not there")
    yield


fails_at_the_start = App(conn, lifespan=_fails_at_the_start)


@contextlib.asynccontextmanager
async def _cancelled_at_the_start(shard: Shard) -> AsyncIterator[None]:
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    waiting.cancel()
    await waiting
    yield


cancelled_at_the_start = App(conn, lifespan=_cancelled_at_the_start)


@contextlib.asynccontextmanager
async def _fails_at_the_end(shard: Shard) -> AsyncIterator[None]:
    yield
    raise ConnectionError("the database is gone")


fails_at_the_end = App(conn, lifespan=_fails_at_the_end)


@contextlib.asynccontextmanager
async def _exits_at_the_end(shard: Shard) -> AsyncIterator[None]:
    yield
    raise SystemExit("that was all")


exits_at_the_end = App(conn, lifespan=_exits_at_the_end)


@contextlib.asynccontextmanager
async def _hangs_at_the_end(shard: Shard) -> AsyncIterator[None]:
    yield
    await asyncio.Event().wait()


hangs_at_the_end = App(conn, lifespan=_hangs_at_the_end)


@contextlib.asynccontextmanager
async def _group(shard: Shard) -> AsyncIterator[None]:
    shard.state.fail = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        background = tasks.create_task(_fail_when_told(shard.state.fail))
        yield
        background.cancel()


async def _fail_when_told(told: asyncio.Event) -> None:
    await told.wait()
    raise LookupError("in the background")


async def _echo_or_fail(conn: Connection) -> None:
    async for data in conn:
        if data == b"fail\n":
            conn.shard.state.fail.set()
        await conn.send(data)


group = App(_echo_or_fail, lifespan=_group)
