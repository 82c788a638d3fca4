"""Connections that have ended: what is left of them, and why it is counted that they ended."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable

import pytest

from shardnet.connection import Connection
from shardnet.errors import ConnectionFreed
from tests.serving import Client, Serving, collect_garbage, until


async def wait_for_the_end(conn: Connection) -> None:
    """A handler that neither reads nor writes."""
    await conn.wait_closed()


async def _close(client: Client, conn: Connection) -> None:
    conn.close()


async def _close_wholly(client: Client, conn: Connection) -> None:
    conn.close()
    client.close()
    await conn.wait_closed()


async def _abort(client: Client, conn: Connection) -> None:
    conn.abort()


@pytest.mark.parametrize("end", [_close, _close_wholly, _abort])
def test_connection_that_we_ended_reads_the_end_and_refuses_to_send(
    end: Callable[[Client, Connection], Awaitable[None]],
) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        await end(client, conn)
        assert await conn.read() == b""
        assert [data async for data in conn] == []
        assert await conn.read_exactly(0) == b""
        with pytest.raises(asyncio.IncompleteReadError):
            await conn.read_exactly(1)
        with pytest.raises(asyncio.IncompleteReadError):
            await conn.read_until()
        for data in (b"x", b""):
            with pytest.raises(ConnectionFreed):
                await conn.send(data)
        with pytest.raises(ConnectionFreed):
            await conn.drain()
        conn.write(b"x")
        conn.pause()
        conn.resume()
        conn.close()
        conn.abort()
        await conn.wait_closed()
        assert kit.sent_bytes() == 0

    with Serving(wait_for_the_end) as kit:
        kit.run(main(kit))


# Why it ended.


async def _peer_ends(client: Client, conn: Connection) -> None:
    client.close()


async def _peer_resets(client: Client, conn: Connection) -> None:
    client.reset()


async def _handler_raises(client: Client, conn: Connection) -> None:
    client.put(b"raise")
    assert await client.receive() == b""
    client.close()


async def _handler_returns(client: Client, conn: Connection) -> None:
    client.put(b"return")
    assert await client.receive() == b""
    client.close()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (_peer_ends, "EOF"),
        (_peer_resets, "RESET"),
        (_handler_raises, "ERROR"),
        (_handler_returns, "LOCAL"),
        (_abort, "LOCAL"),
        (_close_wholly, "LOCAL"),
    ],
)
def test_end_is_counted_with_its_reason(end: Callable[[Client, Connection], Awaitable[None]], reason: str) -> None:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            if data == b"raise":
                raise LookupError
            if data == b"return":
                return

    async def main(kit: Serving) -> None:
        _, other = await kit.open()
        client, conn = await kit.open()
        await end(client, conn)
        await until(lambda: kit.closed())
        assert kit.closed() == {reason: 1}
        assert (kit.accepted_total(), kit.active()) == (2, 1)
        assert kit.server.connections() == [other]
        assert kit.handler_exceptions == (reason == "ERROR")

    with Serving(handler) as kit:
        kit.run(main(kit))


async def reads_records(conn: Connection) -> None:
    while True:
        await conn.read_exactly(4)


def test_handler_that_lets_the_end_between_two_records_through_has_not_failed() -> None:
    """Every client that leaves politely ends `read_exactly` with an `IncompleteReadError`; a traceback for each would
    bury the real ones."""

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"abcd")
        client.end()
        assert await client.receive_to_end() == b""
        await until(lambda: kit.server.handlers == 0)
        assert kit.closed() == {"EOF": 1}
        assert kit.handler_exceptions == 0
        assert kit.logged == []

    with Serving(reads_records) as kit:
        kit.run(main(kit))


def test_handler_that_reads_in_a_task_group_has_not_failed_when_the_peer_resets() -> None:
    """The group wraps the error of the peer, which was then taken for the handler's: a traceback for each client that
    vanished."""

    async def handler(conn: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reads_records(conn))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.reset()
        await until(lambda: kit.closed() and kit.server.handlers == 0)
        assert kit.closed() == {"RESET": 1}
        assert kit.handler_exceptions == 0

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_handler_whose_task_group_failed_for_another_reason_too_has_failed() -> None:
    async def fail_in_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError

    async def handler(conn: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reads_records(conn))
            group.create_task(fail_in_the_end())

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.reset()
        await until(lambda: kit.closed() and kit.server.handlers == 0)
        assert kit.handler_exceptions == 1

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_handler_that_lets_the_end_within_a_record_through_has_failed() -> None:
    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"abcdef")
        client.end()
        assert await client.receive_to_end() == b""
        await until(lambda: kit.server.handlers == 0)
        assert kit.closed() == {"ERROR": 1}
        assert kit.handler_exceptions == 1

    with Serving(reads_records) as kit:
        kit.run(main(kit))


def test_connections_can_be_kept_in_a_weak_set() -> None:
    kept: weakref.WeakSet[Connection] = weakref.WeakSet()

    async def handler(conn: Connection) -> None:
        kept.add(conn)
        await conn.read()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        assert list(kept) == [conn]
        client.close()
        await until(lambda: kit.active() == 0)

    with Serving(handler) as kit:
        kit.run(main(kit))
    collect_garbage()
    assert list(kept) == []


def test_handler_that_neither_reads_nor_writes_learns_of_a_reset() -> None:
    """Nobody received for it, so nobody met the error: a push handler that waits for its queue, or for `wait_closed`,
    held its place for ever."""

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.reset()
        await until(lambda: kit.server.handlers == 0)
        assert kit.closed() == {"RESET": 1}
        assert kit.handler_exceptions == 0
        with pytest.raises(ConnectionResetError):
            await conn.send(b"x")

    with Serving(wait_for_the_end) as kit:
        kit.run(main(kit))


def test_bytes_before_a_reset_are_there_for_a_handler_that_reads_late() -> None:
    gate = asyncio.Event()
    received: list[bytes] = []

    async def handler(conn: Connection) -> None:
        await gate.wait()
        received.append(await conn.read())
        with pytest.raises(ConnectionResetError):
            await conn.read()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"last words")
        await until(lambda: conn.unread_in_kernel())
        client.reset()
        for _ in range(10):
            await asyncio.sleep(0)
        gate.set()
        await until(lambda: kit.server.handlers == 0)
        assert received == [b"last words"]
        assert kit.handler_exceptions == 0

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_end_by_the_peer_is_no_news_for_a_handler_that_does_not_read() -> None:
    """Its end of stream waits in the kernel, and what is sent to it still arrives."""

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.end()
        for _ in range(10):
            await asyncio.sleep(0)
        await conn.send(b"still here")
        assert await client.receive() == b"still here"
        assert kit.active() == 1

    with Serving(wait_for_the_end) as kit:
        kit.run(main(kit))


def test_reset_right_behind_the_end_of_the_stream_ends_a_connection_that_is_read_no_more() -> None:
    """Both came in one poll: the read met the end, and the error was forgotten with the event that told of it."""
    ended = []

    async def read_to_the_end_then_wait(conn: Connection) -> None:
        ended.append(await conn.read())
        await conn.wait_closed()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.end()
        client.reset()
        await until(conn.is_closing)
        await conn.wait_closed()
        assert ended == [b""]
        assert kit.closed() == {"RESET": 1}

    with Serving(read_to_the_end_then_wait) as kit:
        kit.run(main(kit))
