"""The reader of a streams handler: what asyncio promises of it, on a shardnet connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shardnet.app import App
from tests.adapter_kit import (
    MUCH,
    Given,
    Reader,
    Writer,
    narrow_streams,
    open_narrow,
    turns,
)
from tests.serving import MODES, Serving, until

LONG_S = 60.0


async def echo(reader: Reader, writer: Writer) -> None:
    """As in asyncio's documentation, but for the size."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


# Reading.


@pytest.mark.parametrize("mode", MODES)
def test_streams_echo(mode: str) -> None:
    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        sending = asyncio.ensure_future(client.send(MUCH))
        assert await client.receive_exactly(len(MUCH)) == MUCH
        await sending
        client.end()
        assert await client.receive() == b""
        client.close()
        await until(lambda: kit.closed() == {"EOF": 1})
        assert kit.server.handlers == 0

    with narrow_streams(echo, mode=mode) as kit:
        kit.run(main(kit))


def test_read_of_some_of_all_and_of_nothing() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        assert await reader.read(0) == b""
        client.put(b"abcdef")
        assert await reader.read(2) == b"ab"
        assert await reader.read(100) == b"cdef"
        sending = asyncio.ensure_future(client.send(MUCH))
        sending.add_done_callback(lambda _: client.end())
        assert await reader.read() == MUCH
        assert await reader.read() == b""
        assert await reader.read(5) == b""

    with Serving(given) as kit:
        kit.run(main(kit))


def test_lines_records_and_separators_in_turn() -> None:
    """Each leaves what is behind its own for the next, whichever that is."""
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        client.put(b"line\n12345six--seven\nrest")
        assert await reader.readline() == b"line\n"
        assert await reader.readexactly(5) == b"12345"
        assert await reader.readuntil(b"--") == b"six--"
        assert await reader.readexactly(0) == b""
        assert await reader.readline() == b"seven\n"
        assert await reader.read(2) == b"re"
        client.put(b"\nlast")
        client.end()
        assert [line async for line in reader] == [b"st\n", b"last"]
        assert await reader.readline() == b""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(1)
        assert caught.value.partial == b""

    with Serving(given) as kit:
        kit.run(main(kit))


def test_stream_that_ends_early_gives_up_what_there_was() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        for method, argument, expected in (("readexactly", 10, 10), ("readuntil", b"--", None)):
            client, reader, _ = await given.open(kit)
            client.put(b"short")
            client.end()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await getattr(reader, method)(argument)
            assert (caught.value.partial, caught.value.expected) == (b"short", expected)
            assert await reader.read(5) == b""

    with Serving(given) as kit:
        kit.run(main(kit))


def test_separator_that_is_split_between_chunks_is_found() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        reading = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        for part in (b"head\r", b"\n", b"\r", b"\nbody"):
            await turns()
            assert not reading.done()
            client.put(part)
        assert await reading == b"head\r\n\r\n"
        assert await reader.read(100) == b"body"

    with Serving(given) as kit:
        kit.run(main(kit))


def test_limit_is_the_apps() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        client.put(b"0123456789" * 3 + b"\n" + b"behind")
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await reader.readuntil(b"\n")
        assert caught.value.consumed >= 20
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        await turns()
        assert b"behind".endswith(await reader.read(100))
        client.put(b"x" * 20 + b"\n")
        assert await reader.readline() == b"x" * 20 + b"\n"
        client.put(MUCH[:50_000])
        assert await reader.readexactly(50_000) == MUCH[:50_000]  # Which no limit concerns.

    with Serving(App(given, limit=20)) as kit:
        kit.run(main(kit))


def test_at_eof_is_true_when_all_is_read_and_the_end_has_come() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        assert not reader.at_eof()
        client.put(b"abc")
        client.end()
        await turns()
        seen = b""
        while not reader.at_eof():
            seen += await reader.read(1)
        assert seen == b"abc"

    with Serving(given) as kit:
        kit.run(main(kit))


def test_at_eof_keeps_the_order_of_bytes_that_a_cancelled_read_put_back() -> None:
    """It looked in the kernel, past the bytes that waited in the connection: they then came behind their successors."""
    given = Given()

    async def cancel_when_read(reader: Reader, other: asyncio.Task[bytes]) -> None:
        await reader.read(1)
        other.cancel()

    async def main(kit: Serving) -> None:
        first, first_reader, _ = await given.open(kit)
        client, reader, writer = await given.open(kit)
        reading = asyncio.create_task(reader.read(100))
        cancelling = asyncio.create_task(cancel_when_read(first_reader, reading))
        await turns()
        first.put(b"x")  # In one batch, and before.
        client.put(b"1")
        await cancelling
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert writer.get_extra_info("shardnet.connection")._leftover == b"1"
        client.put(b"2")
        await turns()
        assert not reader.at_eof()
        assert await reader.read(100) + await reader.read(100) == b"12"

    with Serving(given) as kit:
        kit.run(main(kit))


def test_second_reader_is_refused() -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        for method in ("read", "readline", "readuntil"):
            reading = asyncio.ensure_future(reader.readexactly(1))
            await turns()
            with pytest.raises(RuntimeError):
                await getattr(reader, method)()
            assert not reader.at_eof()
            client.put(b"x")
            assert await reading == b"x"

    with Serving(given) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("method", ["read", "readline", "readexactly", "readuntil"])
def test_read_that_is_given_up_loses_no_byte(method: str) -> None:
    given = Given()
    arguments: dict[str, tuple[Any, ...]] = {"read": (100,), "readexactly": (4,)}

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(getattr(reader, method)(*arguments.get(method, ())), 0.001)
        if method != "read":
            client.put(b"ab")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(getattr(reader, method)(*arguments.get(method, ())), 0.001)
            client.put(b"c\n")
        else:
            client.put(b"abc\n")
        assert await getattr(reader, method)(*arguments.get(method, ())) == b"abc\n"

    with Serving(given) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("turns_between", range(4))
def test_read_that_is_cancelled_as_its_bytes_come_loses_none(turns_between: int) -> None:
    given = Given()

    async def main(kit: Serving) -> None:
        client, reader, _ = await given.open(kit)
        seen = b""
        for number in range(20):
            reading = asyncio.ensure_future(reader.read(100))
            await turns(2)
            client.put(b"%02d" % number)
            await turns(turns_between)
            reading.cancel()
            [got] = await asyncio.gather(reading, return_exceptions=True)
            if isinstance(got, bytes):
                seen += got
        while len(seen) < 40:
            seen += await reader.read(100)
        assert seen == b"".join(b"%02d" % number for number in range(20))

    with Serving(given) as kit:
        kit.run(main(kit))
