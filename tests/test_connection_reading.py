"""Connections: reading and framing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shardnet.connection import LINE_MAX_BYTES, CallbackConnection, Connection
from shardnet.errors import UsageError
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, RECEIVES_PER_TURN_MAX
from tests.serving import Serving, the_task, until

Read = Callable[[Connection], Awaitable[Any]]


def reads(*steps: Read, puts: list[bytes | None], outcome: list[object] | None = None) -> list[object]:
    """What a handler that takes these steps gets, one after the other, when the peer sends `puts`, each when all that
    came before is used up; None: its end of stream. An exception is given as its type and text."""
    got: list[object] = [] if outcome is None else outcome

    async def handler(conn: Connection) -> None:
        for step in steps:
            try:
                got.append(await step(conn))
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                got.append(error)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        for data in puts:
            if data is None:
                client.end()
            else:
                client.put(data)
            await until(lambda: task.done() or (conn.unread_in_kernel() == 0 and conn._parked))
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    return got


# read


def test_read_gives_what_there_is_up_to_its_size() -> None:
    assert reads(
        lambda conn: conn.read(2),
        lambda conn: conn.read(100),
        lambda conn: conn.read(),
        lambda conn: conn.read(),
        puts=[b"abcde", b"f", None],
    ) == [b"ab", b"cde", b"f", b""]


def test_read_of_no_byte_is_empty_and_does_not_wait() -> None:
    assert reads(lambda conn: conn.read(0), lambda conn: conn.read(), puts=[b"x"]) == [b"", b"x"]


@pytest.mark.parametrize("read", [lambda conn: conn.read(), lambda conn: conn.read(10 * CHUNK_MAX_BYTES)])
def test_read_gives_chunks_of_at_most_64_kib(read: Read) -> None:
    sizes = []

    async def handler(conn: Connection) -> None:
        while conn.unread_in_kernel() < CHUNK_MAX_BYTES + 1:
            await asyncio.sleep(0)
        sizes.append(len(await read(conn)))
        sizes.append(len(await read(conn)))

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        await client.send(bytes(CHUNK_MAX_BYTES + 1))
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert sizes == [CHUNK_MAX_BYTES, 1]


def test_read_at_the_end_of_the_stream_is_empty_again_and_again() -> None:
    assert reads(
        lambda conn: conn.read(),
        lambda conn: conn.read(),
        lambda conn: conn.read(5),
        puts=[None],
    ) == [b"", b"", b""]


@pytest.mark.parametrize("read", [lambda conn: conn.read(-2), lambda conn: conn.read_exactly(-1)])
def test_read_refuses_a_negative_size(read: Read) -> None:
    async def step(conn: Connection) -> bool:
        with pytest.raises(ValueError, match="size"):
            await read(conn)
        return True

    assert reads(step, puts=[]) == [True]


def test_iteration_gives_chunks_until_the_end() -> None:
    async def collect(conn: Connection) -> list[bytes]:
        return [data async for data in conn]

    assert reads(collect, puts=[b"a", b"b", None]) == [[b"a", b"b"]]


# read_exactly


def test_read_exactly_gathers_what_comes_in_pieces_and_leaves_the_rest() -> None:
    assert reads(
        lambda conn: conn.read_exactly(4),
        lambda conn: conn.read_exactly(0),
        lambda conn: conn.read(),
        puts=[b"ab", b"c", b"defg"],
    ) == [b"abcd", b"", b"efg"]


def test_read_exactly_says_what_there_was_when_the_stream_ends_before() -> None:
    error, after = reads(lambda conn: conn.read_exactly(4), lambda conn: conn.read(), puts=[b"ab", None])
    assert isinstance(error, asyncio.IncompleteReadError)
    assert (error.partial, error.expected) == (b"ab", 4)
    assert after == b""


def test_read_exactly_takes_much_more_than_a_chunk() -> None:
    payload = bytes(range(256)) * 4096
    got = []

    async def handler(conn: Connection) -> None:
        got.append(await conn.read_exactly(len(payload)))
        assert conn._leftover is None  # A receive buffer lives no longer than it is needed.

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        await client.send(payload)
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert got == [payload]


@pytest.mark.parametrize(
    "read", [lambda conn: conn.read_exactly(6), lambda conn: conn.read_until(b"f")], ids=["exactly", "until"]
)
def test_framing_that_is_cancelled_half_way_loses_nothing(read: Read) -> None:
    got = []

    async def handler(conn: Connection) -> None:
        task = asyncio.ensure_future(read(conn))
        while conn._buffered() < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        got.append(await read(conn))

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"abc")
        await until(lambda: conn._buffered() == 3)
        client.put(b"def")
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert got == [b"abcdef"]


# read_until


def test_read_until_gives_pipelined_lines_one_by_one() -> None:
    assert reads(
        lambda conn: conn.read_until(),
        lambda conn: conn.read_until(),
        lambda conn: conn.read_until(),
        lambda conn: conn.read(),
        puts=[b"a\n\nbc", b"d\nrest"],
    ) == [b"a\n", b"\n", b"bcd\n", b"rest"]


def test_read_until_finds_a_separator_that_comes_in_pieces() -> None:
    assert reads(
        lambda conn: conn.read_until(b"\r\n\r\n"),
        lambda conn: conn.read(),
        puts=[b"a\r", b"\n", b"b\r\n\r", b"\nc"],
    ) == [b"a\r\nb\r\n\r\n", b"c"]


def test_read_until_says_what_there_was_when_the_stream_ends_before() -> None:
    error, after = reads(lambda conn: conn.read_until(), lambda conn: conn.read(), puts=[b"ab", None])
    assert isinstance(error, asyncio.IncompleteReadError)
    assert (error.partial, error.expected) == (b"ab", None)
    assert after == b""


@pytest.mark.parametrize("data", [b"abcdefgh", b"abcde\n"], ids=["no separator", "separator past the limit"])
def test_read_until_stops_at_its_limit_and_leaves_the_bytes(data: bytes) -> None:
    error, again, rest = reads(
        lambda conn: conn.read_until(b"\n", limit=5),
        lambda conn: conn.read_until(b"\n", limit=5),
        lambda conn: conn.read_exactly(len(data)),
        puts=[data],
    )
    assert isinstance(error, asyncio.LimitOverrunError)
    assert error.consumed == len(data)
    assert isinstance(again, asyncio.LimitOverrunError)
    assert rest == data


def test_read_until_counts_the_separator_in_its_limit() -> None:
    assert reads(lambda conn: conn.read_until(b"\n", limit=5), puts=[b"abcd\n"]) == [b"abcd\n"]


def test_read_until_has_a_limit_of_its_own() -> None:
    got = []

    async def handler(conn: Connection) -> None:
        with pytest.raises(asyncio.LimitOverrunError):
            await conn.read_until()
        got.append(conn._buffered())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        await client.send(bytes(LINE_MAX_BYTES))
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert got == [LINE_MAX_BYTES]


def test_read_until_refuses_an_empty_separator() -> None:
    async def step(conn: Connection) -> bool:
        with pytest.raises(ValueError, match="separator"):
            await conn.read_until(b"")
        return True

    assert reads(step, puts=[]) == [True]


# pause and resume


def test_paused_connection_leaves_bytes_in_the_kernel() -> None:
    got = []

    async def handler(conn: Connection) -> None:
        conn.pause()
        got.append(await conn.read())
        got.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"a")
        await until(lambda: conn.readable)
        assert not got
        assert conn.unread_in_kernel() == 1
        conn.resume()
        await until(lambda: got)
        conn.pause()  # While a read waits: it goes on waiting.
        client.put(b"b")
        await until(lambda: conn.readable)
        assert conn.unread_in_kernel() == 1
        conn.resume()
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
        assert kit.completions(Op.READ, Outcome.CANCELLED) == 1
    assert got == [b"a", b"b"]


def test_resume_wants_no_more_than_the_read_that_waits() -> None:
    got: list[object] = []

    async def handler(conn: Connection) -> None:
        conn.pause()
        got.append(await conn.read(2))
        got.append(conn.unread_in_kernel())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"abc")
        await until(lambda: conn.readable)
        conn.resume()
        await task

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert got == [b"ab", 1]


def test_pause_of_a_closed_connection_does_not_hold_up_its_end() -> None:
    """A pause used to withdraw the read that waits for the peer's end, and the connection lingered to the full."""

    async def handler(conn: Connection) -> None:
        conn.close()
        conn.pause()

    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive() == b""
        client.close()
        await until(lambda: kit.closed())
        assert kit.completions(Op.TIMER, Outcome.OK) == 0

    with Serving(handler) as kit:
        kit.run(main(kit))


# What a connection says of itself.


def test_connection_knows_its_ends_and_its_place() -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        _, second = await kit.open()
        assert conn.peer == client.sock.getsockname()
        assert conn.local == client.sock.getpeername()
        assert (conn.id, second.id) == (1, 2)
        assert conn.state is None
        assert conn.shard is second.shard
        assert sorted(other.id for other in conn.shard.connections) == [1, 2]
        assert str(conn.peer) in repr(conn)
        assert "open" in repr(conn)
        conn.abort()
        assert conn.shard.connections == [second]
        assert "closed" in repr(conn)
        with pytest.raises(ConnectionError, match="local address"):
            _ = conn.local

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_callback_connection_refuses_reads() -> None:
    def on_data(conn: CallbackConnection, data: bytes) -> None:
        pass

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        for read in (conn.read(), conn.read_exactly(1), conn.read_until()):
            with pytest.raises(UsageError, match="on_data"):
                await read

    with Serving(on_data) as kit:
        kit.run(main(kit))


def test_flood_of_tiny_records_leaves_turns_to_the_others() -> None:
    """A handler took up to 4 MiB before anybody else had the turn. With records of a few bytes that was more than a
    million of them at one go, and the other connections waited for seconds."""

    async def handler(conn: Connection) -> None:
        while True:
            await conn.read_until()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += client.sock.send(b"ab\n" * 100_000)
        turns, most_bytes = 0, 0
        while size - (before := kit.received_bytes()) > 1_000_000:
            await asyncio.sleep(0)
            turns += 1
            most_bytes = max(most_bytes, kit.received_bytes() - before)
        assert turns > 1
        assert most_bytes <= (1 + RECEIVES_PER_TURN_MAX) * CHUNK_MAX_BYTES < 1_000_000

    with Serving(handler) as kit:
        kit.run(main(kit))
