"""The writer of a streams handler: sending, and the ways to an end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shardnet.connection import Limits
from shardnet.errors import DeadlineExceeded, WriteQueueOverflow
from tests.adapter_kit import (
    MUCH,
    Given,
    Reader,
    Writer,
    narrow_streams,
    open_narrow,
    turns,
)
from tests.serving import Serving, the_task, until

LONG_S = 60.0


# Writing.


def test_writer_writes_in_order_and_drain_waits() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        writer.write(b"one")
        writer.writelines([b"two", bytearray(b"three"), memoryview(b"four")])
        writer.write(b"")
        await writer.drain()
        data = bytearray(MUCH)
        writer.write(data)
        data[:] = bytes(len(data))
        draining = asyncio.ensure_future(writer.drain())
        others = [asyncio.ensure_future(writer.drain()) for _ in range(3)]
        await turns()
        assert not draining.done()
        assert await client.receive_exactly(15 + len(MUCH)) == b"onetwothreefour" + MUCH
        await draining
        await asyncio.gather(*others)
        writer.close()
        await writer.wait_closed()

    with narrow_streams(given) as kit:
        kit.run(main(kit))


def test_drain_heeds_the_marks_of_the_transport() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        transport: Any = writer.transport
        transport.set_write_buffer_limits(high=0)
        writer.write(b"fits")
        await writer.drain()
        writer.write(MUCH)
        draining = asyncio.ensure_future(writer.drain())
        await client.receive_exactly(4 + len(MUCH))
        await draining
        assert transport.get_write_buffer_size() == 0
        transport.set_write_buffer_limits(high=len(MUCH) * 2)
        writer.write(MUCH)
        await writer.drain()
        assert transport.get_write_buffer_size()
        await client.receive_exactly(len(MUCH))

    with narrow_streams(given) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("how", ["reset", "abort", "stall", "overflow"])
def test_drain_that_waits_when_the_connection_ends_fails(how: str) -> None:
    given = Given()
    limits = Limits(write_stall_s=0.01) if how == "stall" else Limits(write_hard_bytes=len(MUCH) // 2)
    errors = {"stall": DeadlineExceeded, "overflow": WriteQueueOverflow, "reset": ConnectionError, "abort": None}

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        writer.write(MUCH)
        draining = asyncio.ensure_future(writer.drain())
        await turns()
        assert not draining.done()
        if how == "reset":
            client.reset()
        elif how == "abort":
            writer.transport.abort()
        elif how == "overflow":
            writer.write(b"x")
        error = errors[how]
        if error is None:  # As on asyncio: an end that this side wanted is no error for who waits already.
            await draining
            await writer.wait_closed()
            with pytest.raises(ConnectionResetError):
                await writer.drain()
        else:
            with pytest.raises(error):
                await draining
            for wait in (writer.drain, writer.wait_closed):
                with pytest.raises(error):
                    await wait()
        writer.write(b"dropped")
        assert writer.is_closing()

    with narrow_streams(given, limits=limits) as kit:
        kit.run(main(kit))


def test_writing_without_reading_meets_a_peer_that_is_gone() -> None:
    """A loop of write and drain must come to an end."""
    ended: list[BaseException] = []

    async def pour(reader: Reader, writer: Writer) -> None:
        try:
            while True:
                writer.write(bytes(1000))
                await writer.drain()
        except ConnectionError as error:
            ended.append(error)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        await client.receive_exactly(10_000)
        client.close()
        await until(lambda: ended)
        await until(lambda: not kit.active())
        assert kit.handler_exceptions == 0

    with narrow_streams(pour) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_write_of_what_is_no_bytes_is_a_type_error(wrong: Any) -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, _, writer = await given.open(kit)
        with pytest.raises(TypeError):
            writer.write(wrong)
        with pytest.raises(TypeError):
            writer.writelines([wrong])
        writer.close()
        client.close()

    with Serving(given) as kit:
        kit.run(main(kit))


def test_half_close_each_way() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, writer = await given.open(kit)
        client.put(b"question")
        client.end()
        assert await reader.read() == b"question"
        assert reader.at_eof()
        writer.write(b"answer")
        await writer.drain()
        assert await client.receive() == b"answer"
        other, reader, writer = await given.open(kit)
        assert writer.can_write_eof()
        writer.write(MUCH)
        writer.write_eof()
        with pytest.raises(RuntimeError):
            writer.write(b"x")
        assert await other.receive_to_end() == MUCH
        other.put(b"and now?")
        assert await reader.read(100) == b"and now?"
        assert not writer.is_closing()

    with narrow_streams(given) as kit:
        kit.run(main(kit))


# Ending.


def test_close_flushes_and_wait_closed_waits_for_that() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, writer = await given.open(kit)
        reading = asyncio.ensure_future(reader.read())
        await turns()
        writer.write(MUCH)
        writer.close()
        writer.close()
        assert writer.is_closing()
        waiting = asyncio.ensure_future(writer.wait_closed())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 0.001)
        assert not waiting.done()
        conn = writer.get_extra_info("shardnet.connection")
        assert len(conn._sent_waiters) == 1  # Nothing is left of the one that was given up.
        assert await reading == b""
        assert await client.receive_to_end() == MUCH
        await waiting
        await writer.wait_closed()
        client.close()

    with narrow_streams(given, limits=Limits(linger_s=LONG_S)) as kit:
        kit.run(main(kit))


def test_reset_is_raised_by_reads_and_told_by_the_reader() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, writer = await given.open(kit)
        assert reader.exception() is None
        reading = asyncio.ensure_future(reader.readline())
        await turns()
        client.reset()
        with pytest.raises(ConnectionResetError):
            await reading
        assert isinstance(reader.exception(), ConnectionResetError)
        for wait in (reader.read, reader.readline, writer.drain, writer.wait_closed):
            with pytest.raises(ConnectionResetError):
                await wait()
        assert not reader.at_eof()

    with Serving(given) as kit:
        kit.run(main(kit))


def test_bytes_that_came_before_a_reset_are_read_first() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        client.put(b"last words\n")
        await turns()
        assert not reader.at_eof()  # It looks, and thereby takes them.
        client.reset()
        await turns()
        assert await reader.readline() == b"last words\n"
        with pytest.raises(ConnectionResetError):
            await reader.readline()

    with Serving(given) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_handler_that_raises_ends_its_connection_alone(error: type[BaseException]) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        async for line in reader:
            writer.write(line)
            if line == b"raise\n":
                raise error

    async def main(kit: Serving) -> None:
        neighbour, _ = await kit.open()
        client, _ = await kit.open()
        client.put(b"raise\n")
        assert await client.receive_to_end() == b"raise\n"
        client.close()
        await until(lambda: kit.closed() == {"ERROR": 1})
        assert kit.handler_exceptions == 1
        assert [event for event, _, _ in kit.logged] == ["handler raised"]
        neighbour.put(b"x\n")
        assert await neighbour.receive() == b"x\n"

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_handler_that_is_cancelled_closes_its_connection() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        the_task(conn).cancel()
        assert await client.receive() == b""
        assert kit.handler_exceptions == 0
        assert given.pairs[0][1].is_closing()

    with Serving(given) as kit:
        kit.run(main(kit))
