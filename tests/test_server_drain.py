"""The drain of a server: every connection comes to its end, and in time."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.connection import Connection, Limits
from tests.serving import Serving, collect_garbage, the_task, this_task, until

LONG_S = 60.0
SMALL_BUFFER_BYTES = 4096
MUCH = bytes(range(256)) * 4096


async def echo(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)


def on_data(conn: Connection, data: bytes) -> None:
    conn.write(data)


KINDS = pytest.mark.parametrize("handler", [echo, on_data], ids=["coroutine", "callback"])


@KINDS
def test_drain_without_connections_is_over_at_once(handler: Callable[..., Any]) -> None:
    with Serving(handler) as kit:
        assert kit.run(kit.server.drain(LONG_S))
        assert kit.server.shard.draining


@KINDS
def test_drain_ends_idle_connections(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        clients[0].put(b"x")
        assert await clients[0].receive() == b"x"
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        for client in clients:
            assert await client.receive() == b""
            client.close()
        assert await draining
        assert kit.closed() == {"DRAIN": 3}
        assert kit.handler_exceptions == 0

    with Serving(handler) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_accepts_what_is_queued_and_serves_it(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(50)]
        for client in clients:
            client.put(b"x")
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        for client in clients:
            assert await client.receive_to_end() == b"x"
            client.close()
        assert await draining
        assert kit.accepted_total() == 50
        kit.connect()  # It is for the next worker on this listener.
        for _ in range(5):
            await asyncio.sleep(0)
        assert kit.accepted_total() == 50

    with Serving(handler) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_leaves_no_reply_half_sent(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.create_task(client.send(MUCH[:150_000]))
        await until(lambda: conn.unsent_bytes)
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        assert await client.receive_exactly(150_000) == MUCH[:150_000]
        await sending
        assert await client.receive() == b""
        client.close()
        assert await draining

    with Serving(handler, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_leaves_a_paused_connection_with_unread_bytes_its_time(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.pause()
        client.put(b"x")
        await until(lambda: conn.unread_in_kernel())
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        await until(lambda: conn.shard.draining)
        conn.resume()
        assert await client.receive_to_end() == b"x"
        client.close()
        assert await draining

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_drain_lets_a_busy_handler_finish() -> None:
    released = asyncio.Event()

    async def handler(conn: Connection) -> None:
        async for data in conn:
            await released.wait()
            await conn.send(data)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"x")
        await until(lambda: not conn._parked)
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        await until(lambda: conn.shard.draining)
        released.set()
        assert await client.receive_to_end() == b"x"
        client.close()
        assert await draining
        assert kit.closed() == {"DRAIN": 1}

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_drain_cancels_a_handler_at_the_deadline_and_sends_what_it_says_last() -> None:
    async def handler(conn: Connection) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            conn.write(b"sorry")

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        draining = asyncio.create_task(kit.server.drain(0.01))
        assert await client.receive_to_end() == b"sorry"
        client.close()
        assert not await draining
        assert kit.closed() == {"DRAIN": 1}
        assert kit.handler_exceptions == 0
        [(event, fields, _)] = kit.logged
        assert (event, fields["connections"], fields["handlers"]) == ("drain deadline", 1, 1)

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_drain_resets_the_connection_of_a_handler_that_ignores_its_cancellation() -> None:
    released = asyncio.Event()

    async def handler(conn: Connection) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        assert not await kit.server.drain(0)
        with pytest.raises(ConnectionResetError):
            await client.receive()
        assert kit.closed() == {"DRAIN": 1}
        assert kit.active() == 0
        released.set()
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_resets_a_peer_that_does_not_listen(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        conn.write(MUCH)
        assert not await kit.server.drain(0)
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()
        assert kit.closed() == {"DRAIN": 1}

    with Serving(handler, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_frees_every_connection(handler: Callable[..., Any]) -> None:
    """Whatever they are at: idle, unread, unsent, lingering, failed, or new."""

    async def main(kit: Serving) -> None:
        await kit.open()
        unread, conn = await kit.open()
        conn.pause()
        unread.put(b"x")
        _, unsent = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        unsent.write(MUCH)
        _, lingering = await kit.open()
        lingering.close()
        failed, _ = await kit.open()
        failed.reset()
        kit.connect()
        assert not await kit.server.drain(0.05)
        assert kit.active() == 0
        assert list(kit.connections) == []
        assert sum(kit.closed().values()) == kit.accepted_total() == 6

    with Serving(handler, limits=Limits(linger_s=60), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_drain_waits_for_a_handler_that_outlives_its_connection() -> None:
    """A drain once waited for connections alone: a handler at work after its `close()`, on a commit say, was cancelled
    as soon as the last connection was gone, long before the deadline."""
    released = asyncio.Event()
    finished: list[bool] = []

    async def handler(conn: Connection) -> None:
        conn.close()
        await released.wait()
        finished.append(True)

    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive_to_end() == b""
        client.close()
        await until(lambda: kit.active() == 0 and kit.server.handlers == 1)
        draining = asyncio.create_task(kit.server.drain(LONG_S))
        await until(lambda: kit.server.shard.draining)
        assert not draining.done()
        released.set()
        assert await draining
        assert finished == [True]

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_handler_that_outlives_its_connection_is_not_collected() -> None:
    """Nothing but itself refers to a handler that waits for an event of its own. Once its connection was gone, the
    collector took its task; no callback told of its end, the count of handlers stayed too high for ever, and each drain
    took all of its timeout and ended with a warning."""
    tasks: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()

    async def handler(conn: Connection) -> None:
        tasks.add(this_task())
        conn.abort()
        await asyncio.Event().wait()

    async def main(kit: Serving) -> None:
        kit.connect()
        await until(lambda: kit.closed())
        collect_garbage()
        [task] = tasks
        task.cancel()
        del task
        assert await kit.server.drain(LONG_S)

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_drain_takes_no_reply_back_that_is_with_the_kernel() -> None:
    """At the deadline every connection was reset, also those that had sent their last byte and only waited for the
    peer's end: a reset drops what the kernel still holds, so that a slow client lost most of a complete reply."""

    async def handler(conn: Connection) -> None:
        await conn.read()
        await conn.send(MUCH[:150_000])

    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        client.put(b"?")
        await until(lambda: conn.task is None)
        assert conn.unsent_bytes == 0
        assert not await kit.server.drain(0)
        assert kit.closed() == {"DRAIN": 1}
        assert await client.receive_to_end() == MUCH[:150_000]

    with Serving(handler, limits=Limits(linger_s=60)) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_goes_on_when_an_app_has_closed_a_descriptor_itself(handler: Callable[..., Any]) -> None:
    """Asking the kernel how much is unread then raises EBADF, which once ended the drain: the worker never stopped, and
    everybody was cut by the supervisor's kill."""

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        os.close(conn.fd)
        assert await kit.server.drain(LONG_S)

    with Serving(handler, limits=Limits(linger_s=0.01)) as kit:
        kit.run(main(kit))
