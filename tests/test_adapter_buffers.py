"""Protocols that bring their own buffers, take over from each other, or stand in front of a file."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardnet.app import App, Kind
from tests.adapter_kit import MUCH, SMALL_BUFFER_BYTES, Made, Recorder, open_narrow, recorders
from tests.serving import Serving, until


def serving(factory: Callable[[], Any], **options: Any) -> Serving:
    return Serving(factory, kind=Kind.PROTOCOL, **options)


class Buffered(asyncio.BufferedProtocol):
    """Takes what comes into a buffer of `size` bytes, and keeps it."""

    def __init__(self, size: int, on_data: Callable[[Buffered], object] = lambda protocol: None) -> None:
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.calls: list[str] = []
        self.lost_by: list[BaseException | None] = []
        self._on_data = on_data

    def connection_made(self, transport: Any) -> None:
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> Any:
        assert sizehint == -1
        self.calls.append("get")
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert nbytes > 0
        self.calls.append("updated")
        self.data += self.buffer[:nbytes]
        self._on_data(self)

    def eof_received(self) -> None:
        self.calls.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost_by.append(exc)


# Buffers.


@pytest.mark.parametrize("size", [1, 7, 4096, 65536, 1_000_000])
def test_buffered_protocol_gets_every_byte_in_order(size: int) -> None:
    factory = Made(lambda: Buffered(size))
    sent = MUCH[: size * 1000]

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        await client.send(sent)
        client.end()
        await until(lambda: factory.made[0].lost_by)
        [protocol] = factory.made
        assert bytes(protocol.data) == sent
        assert protocol.calls[-1] == "eof"
        assert protocol.calls[:-1] == ["get", "updated"] * (len(protocol.calls) // 2)

    with serving(factory) as kit:
        kit.run(main(kit))


def test_buffer_may_be_resized_when_it_was_filled() -> None:
    """The bytes were copied through a view that was still there when the protocol was told of them: BufferError, where
    asyncio's own transport keeps none."""

    def shrink(protocol: Buffered) -> None:
        del protocol.buffer[:1]
        protocol.buffer.extend(bytes(3))

    factory = Made(lambda: Buffered(2, shrink))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(MUCH[:1000])
        await until(lambda: len(factory.made[0].data) == 1000)
        assert factory.made[0].data == MUCH[:1000]

    with serving(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize(
    "buffer", [array.array("I", bytes(64)), memoryview(bytearray(100))[50:], memoryview(array.array("d", bytes(800)))]
)
def test_buffer_may_be_of_any_sort(buffer: Any) -> None:
    class Odd(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            return buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data += memoryview(buffer).cast("B")[:nbytes]

    factory = Made(lambda: Odd(0))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(MUCH[:1000])
        await until(lambda: len(factory.made[0].data) == 1000)
        assert factory.made[0].data == MUCH[:1000]

    with serving(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize(
    ("buffer", "error"),
    [(bytearray(), RuntimeError), (b"read only", TypeError), (None, TypeError), (memoryview(bytes(4))[::2], TypeError)],
    ids=["empty", "read_only", "none", "with_gaps"],
)
def test_buffer_that_cannot_be_filled_ends_the_connection(buffer: Any, error: type[Exception]) -> None:
    class Wrong(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            return buffer

    factory = Made(lambda: Wrong(0))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"x")
        assert await client.receive() == b""
        await until(lambda: factory.made[0].lost_by)
        assert [type(why) for why in factory.made[0].lost_by] == [error]
        assert kit.handler_exceptions == 1
        if error is RuntimeError:
            assert str(factory.made[0].lost_by[0]) == "get_buffer() returned an empty buffer"

    with serving(factory) as kit:
        kit.run(main(kit))


def test_buffered_protocol_that_pauses_gets_the_rest_later() -> None:
    factory = Made(lambda: Buffered(10, lambda protocol: protocol.transport.pause_reading()))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(MUCH[:95])
        [protocol] = factory.made
        for count in range(1, 11):
            await until(lambda: not protocol.transport.is_reading())
            assert protocol.data == MUCH[: min(95, 10 * count)]
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(protocol.data) == min(95, 10 * count)
            protocol.transport.resume_reading()
            if count == 5:
                client.put(b"more")  # Behind what is left over.
                client.end()
        await until(lambda: not protocol.transport.is_reading())
        protocol.transport.resume_reading()
        await until(lambda: protocol.lost_by)
        assert bytes(protocol.data) == MUCH[:95] + b"more"

    with serving(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("method", ["close", "abort"])
def test_buffered_protocol_that_closes_gets_no_more(method: str) -> None:
    factory = Made(lambda: Buffered(10, lambda protocol: getattr(protocol.transport, method)()))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(MUCH[:95])
        await until(lambda: factory.made[0].lost_by == [None])
        assert factory.made[0].calls == ["get", "updated"]
        client.close()

    with serving(factory) as kit:
        kit.run(main(kit))


# Another protocol takes over.


def test_plain_protocol_hands_over_to_a_buffered_one_and_back() -> None:
    """With every byte, in order: the switch is in the middle of a chunk, where only the buffered one can make it."""
    order: list[str] = []

    def to_plain(protocol: Buffered) -> None:
        order.append(f"buffered {bytes(protocol.data).decode()}")
        if protocol.data == b"aaabbb":
            plain.transport = protocol.transport
            protocol.transport.set_protocol(plain)

    def to_buffered(protocol: Recorder, name: str) -> None:
        if name == "data":
            order.append(f"plain {bytes(protocol.data).decode()}")
            buffered.transport = protocol.transport
            protocol.transport.set_protocol(buffered)

    plain, buffered = Recorder(to_buffered), Buffered(3, to_plain)
    plain.calls.append("made")
    factory = recorders(to_buffered)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"1")
        await until(lambda: factory.made[0].data == b"1")
        client.put(b"aaabbbccc")
        await until(lambda: plain.data)
        assert order == ["plain 1", "buffered aaa", "buffered aaabbb", "plain ccc"]
        assert plain.transport.get_protocol() is buffered
        client.end()
        await until(lambda: buffered.lost_by == [None])
        assert buffered.calls[-1] == "eof"
        assert plain.calls == ["made", "data"]
        assert factory.made[0].calls == ["made", "data"]

    with serving(factory) as kit:
        kit.run(main(kit))


def test_protocol_that_took_over_from_a_paused_one_gets_what_was_left_over() -> None:
    def pause(protocol: Buffered) -> None:
        protocol.transport.pause_reading()

    other = Recorder()
    other.calls.append("made")
    factory = Made(lambda: Buffered(2, pause))

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"123")
        await until(lambda: factory.made[0].data == b"12")
        transport = factory.made[0].transport
        transport.set_protocol(other)
        client.put(b"4")
        client.end()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not other.data
        transport.resume_reading()
        await until(lambda: other.lost_by)
        assert other.data == b"34"
        assert other.calls == ["made", "data", "eof", "lost"]

    with serving(factory) as kit:
        kit.run(main(kit))


def test_stream_reader_protocol_serves_a_streams_handler() -> None:
    """What `asyncio.start_server` makes: asyncio's own reader and writer, on the transport."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    def make() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), handler)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        text = (b"x" * 999 + b"\n") * 200
        sending = asyncio.ensure_future(client.send(text))
        assert await client.receive_exactly(len(text)) == text
        await sending
        client.end()
        assert await client.receive() == b""

    with serving(make, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


# Files.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(MUCH)
    return path


Sendfile = Callable[[asyncio.BaseTransport], Any]


@pytest.mark.parametrize("kind", [Kind.PROTOCOL, Kind.STREAMS])
def test_sendfile_sends_a_file_and_reading_goes_on(kind: Kind, file: Path) -> None:
    """The streams transport refused the protocol that `loop.sendfile` puts in front, with reading paused for ever."""
    factory, function = _sending(kind)

    async def main(kit: Serving) -> None:
        loop = asyncio.get_running_loop()
        client, _ = await open_narrow(kit)
        transport = factory()
        transport.write(b"<")
        with file.open("rb") as opened:
            sending = asyncio.ensure_future(loop.sendfile(transport, opened, 256, len(MUCH) - 256))
            assert await client.receive_exactly(1 + len(MUCH) - 256) == b"<" + MUCH[256:]
            assert await sending == len(MUCH) - 256
        transport.write(b">")
        assert await client.receive() == b">"
        assert transport.is_reading()
        client.put(b"echo this")
        assert await client.receive() == b"echo this"

    with Serving(function, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("kind", [Kind.PROTOCOL, Kind.STREAMS])
def test_sendfile_to_a_peer_that_vanishes_fails(kind: Kind, file: Path) -> None:
    factory, function = _sending(kind)

    async def main(kit: Serving) -> None:
        loop = asyncio.get_running_loop()
        client, conn = await open_narrow(kit)
        with file.open("rb") as opened:
            sending = asyncio.ensure_future(loop.sendfile(factory(), opened))
            await until(lambda: conn.unsent_bytes)
            for _ in range(20):
                await asyncio.sleep(0)
            client.reset()
            with pytest.raises(ConnectionError):
                await sending
        with file.open("rb") as opened, pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(factory(), opened)

    with Serving(function, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_sendfile_leaves_nobody_paused(file: Path) -> None:
    """While the end of the file waits in the queue, its owner is told of a resumption of which it never heard a pause:
    asyncio's own streams raise AssertionError then, and their `drain` would not wait meanwhile."""
    factory, function = _sending(Kind.STREAMS)

    async def main(kit: Serving) -> None:
        loop = asyncio.get_running_loop()
        client, conn = await open_narrow(kit)
        transport = factory()
        for paused in (False, True):
            if paused:
                transport.write(MUCH)
            transport.set_write_buffer_limits(high=0)
            with file.open("rb") as opened:
                sending = asyncio.ensure_future(loop.sendfile(transport, opened, 0, 16384))
                if paused:
                    await client.receive_exactly(len(MUCH))
                while not sending.done():
                    await asyncio.sleep(0)
            if not paused:
                assert await client.receive_exactly(16384) == MUCH[:16384]
                continue
            transport.write(MUCH)
            assert transport.get_protocol()._paused
            await client.receive_exactly(16384 + len(MUCH))
            await until(lambda: not conn.unsent_bytes)
            assert not transport.get_protocol()._paused

    with Serving(function, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def _sending(kind: Kind) -> tuple[Callable[[], Any], App]:
    """What tells the transport of the one connection, and an app of that kind that echoes."""
    transports: list[Any] = []

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "made":
            transports.append(protocol.transport)
        if name == "data":
            protocol.transport.write(bytes(protocol.data))

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(writer.transport)
        while data := await reader.read(100):
            writer.write(data)

    app = App(handler) if kind is Kind.STREAMS else App(lambda: Recorder(on_call))
    return lambda: transports[0], app
