"""The connection of a streams handler: who holds it, what it tells, its drain, and what is left of it."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.app import App
from shardnet.connection import Connection
from tests.adapter_kit import (
    MUCH,
    Given,
    Reader,
    Writer,
    narrow_streams,
    no_collector,
    open_narrow,
    turns,
)
from tests.serving import Serving, until

__all__ = ["no_collector"]  # A fixture.

LONG_S = 60.0


async def echo(reader: Reader, writer: Writer) -> None:
    """As in asyncio's documentation, but for the size."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


# Whoever holds reader or writer.


@pytest.mark.parametrize("kept", ["reader", "writer", "transport"])
@pytest.mark.parametrize("sort", ["coroutine", "function"])
def test_connection_lives_as_long_as_somebody_holds_a_part_of_it(kept: str, sort: str) -> None:
    """As on asyncio, where a handler may return and leave its connection to a task, or to a list of players."""
    held: list[Any] = []

    def keep(reader: Reader, writer: Writer) -> None:
        held.append({"reader": reader, "writer": writer, "transport": writer.transport}[kept])

    async def handler(reader: Reader, writer: Writer) -> None:
        keep(reader, writer)

    app = App(handler) if sort == "coroutine" else App(keep, kind="streams")

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        await turns()
        assert kit.server.handlers == 0
        if kept == "transport":  # Which is no holder on asyncio, either.
            assert await client.receive() == b""
            return
        assert not conn.is_closing()
        if kept == "reader":
            client.put(b"x")
            assert await held[0].read(1) == b"x"
        else:
            held[0].write(b"y")
            assert await client.receive() == b"y"
        held.clear()
        assert await client.receive() == b""
        client.close()
        await until(lambda: kit.closed() == {"LOCAL": 1})

    with Serving(app) as kit:
        kit.run(main(kit))


def test_task_of_a_handler_that_has_returned_serves_on() -> None:
    tasks: set[asyncio.Task[None]] = set()

    async def handler(reader: Reader, writer: Writer) -> None:
        task = asyncio.ensure_future(echo(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        await until(lambda: not kit.server.handlers)
        for _ in range(3):
            client.put(b"x")
            assert await client.receive() == b"x"
        client.end()
        assert await client.receive() == b""
        await until(lambda: not tasks)

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_plain_function_that_returns_nothing_closes() -> None:
    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive_to_end() == b"bye"
        client.close()
        await until(lambda: kit.closed() == {"LOCAL": 1})
        assert kit.handler_exceptions == 0

    with Serving(App(lambda reader, writer: writer.write(b"bye"), kind="streams")) as kit:
        kit.run(main(kit))


def test_plain_function_may_return_a_coroutine() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        assert conn.task is not None
        client.put(b"x")
        assert await client.receive() == b"x"

    with Serving(App(lambda reader, writer: echo(reader, writer), kind="streams")) as kit:
        kit.run(main(kit))


# What it tells of itself.


def test_writer_tells_of_its_connection() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, writer = await given.open(kit)
        conn = writer.get_extra_info("shardnet.connection")
        assert isinstance(conn, Connection)
        assert conn.shard is kit.server.shard
        assert writer.get_extra_info("peername") == client.sock.getsockname()
        assert writer.get_extra_info("sockname") == client.sock.getpeername()
        assert writer.get_extra_info("what else", 5) == 5
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert writer.transport is writer.transport
        assert not writer.transport.is_closing()
        for thing in (reader, writer, writer.transport):
            assert repr(thing)
        client.close()
        writer.close()
        await writer.wait_closed()
        assert writer.get_extra_info("sockname") is not None
        assert writer.transport.is_closing()

    with Serving(given) as kit:
        kit.run(main(kit))


def test_transport_that_is_asked_for_first_when_all_is_over() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        client.close()
        writer.close()
        await writer.wait_closed()
        await until(lambda: not kit.active())
        assert writer.get_extra_info("socket", "none") == "none"
        assert writer.get_extra_info("peername")
        writer.write(b"dropped")
        with pytest.raises(ConnectionResetError):
            await writer.drain()

    with Serving(given) as kit:
        kit.run(main(kit))


# Drain of the server.


def test_drain_ends_a_handler_that_waits_in_a_read() -> None:
    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        for client in clients:
            assert await client.receive() == b""
            client.close()
        assert await draining
        assert kit.closed() == {"DRAIN": 3}

    with Serving(echo) as kit:
        kit.run(main(kit))


def test_drain_loses_no_bytes_that_the_reader_has_buffered() -> None:
    """A record that has come in part is waited for."""

    async def handler(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readexactly(4))

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"ab")
        await until(lambda: not conn.unread_in_kernel())
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        await until(lambda: conn.shard.draining)
        await turns()
        assert not draining.done()
        client.put(b"cd")
        assert await client.receive_to_end() == b"abcd"
        client.close()
        assert await draining
        assert kit.handler_exceptions == 0

    with Serving(handler) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("held", [False, True])
def test_drain_cuts_at_the_deadline(held: bool) -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        if held:
            given.release()
            await until(lambda: not kit.server.handlers)
        writer.write(b"last")
        del writer
        draining = asyncio.ensure_future(kit.server.drain(0.01))
        assert await client.receive_to_end() == b"last"
        client.close()
        assert not await draining
        assert kit.closed() == {"DRAIN": 1}

    with Serving(given) as kit:
        kit.run(main(kit))


# Memory.


def _fails(reader: Reader, writer: Writer) -> Any:
    raise LookupError


HANDLERS: dict[str, Callable[[Reader, Writer], Any]] = {}


def _handler(function: Any) -> Any:
    HANDLERS[function.__name__] = function
    return function


@_handler
async def _echoes(reader: Reader, writer: Writer) -> None:
    await echo(reader, writer)


@_handler
async def _drains(reader: Reader, writer: Writer) -> None:
    writer.write(MUCH)
    await writer.drain()


@_handler
async def _asks(reader: Reader, writer: Writer) -> None:
    writer.get_extra_info("socket")
    await reader.readline()


@_handler
async def _reads_on(reader: Reader, writer: Writer) -> None:
    await reader.readexactly(100)


@_handler
async def _raises(reader: Reader, writer: Writer) -> None:
    await reader.read(1)
    raise LookupError


@_handler
async def _waits(reader: Reader, writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()
    assert writer.transport.is_closing()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", HANDLERS)
def test_connection_that_is_over_needs_no_garbage_collector(name: str, reset: bool) -> None:
    gone: list[weakref.ref[Any]] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        gone.extend(weakref.ref(thing) for thing in (reader, writer))
        await HANDLERS[name](reader, writer)

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        gone.append(weakref.ref(conn))
        del conn
        client.put(b"x")
        await turns()
        if reset:
            client.reset()
        else:
            client.end()
            await client.receive_to_end()
            client.close()
        await until(lambda: not kit.active() and not kit.server.handlers)
        kit._logged.records.clear()
        await turns()
        assert [reference() for reference in gone] == [None, None, None]

    with narrow_streams(handler) as kit:
        kit.run(main(kit))
