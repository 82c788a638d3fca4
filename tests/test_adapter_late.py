"""What comes late at asyncio's faces: bytes written after `close`, and what a streams handler feeds its reader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shardnet.app import Kind
from tests.adapter_kit import MUCH, SMALL_BUFFER_BYTES, Recorder, open_narrow, recorders
from tests.serving import Serving, until

GOODBYE = b"goodbye"


def test_write_on_resumption_after_close_goes_out() -> None:
    """asyncio's TLS that is told to pause keeps its goodbye until it is told to resume, and closes the transport
    meanwhile. The goodbye was dropped, as everything written after `close`, so that a client which read slowly took the
    whole of an answer for one that was cut off.
    """

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "resume":
            protocol.transport.write(GOODBYE)

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        transport = factory.made[0].transport
        transport.write(MUCH)
        transport.close()
        assert await client.receive_to_end() == MUCH + GOODBYE
        client.close()
        await until(lambda: factory.made[0].calls == ["made", "pause", "resume", "lost"])

    with Serving(factory, kind=Kind.PROTOCOL, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


class Reading:
    """A streams handler that reads with `read(reader)`, and keeps what that came to."""

    def __init__(self, method: str, *args: Any) -> None:
        self.readers: list[Any] = []
        self.came: list[Any] = []
        self._method = method
        self._args = args

    async def __call__(self, reader: Any, writer: Any) -> None:
        self.readers.append(reader)
        try:
            self.came.append(await getattr(reader, self._method)(*self._args))
        except (ZeroDivisionError, asyncio.IncompleteReadError) as error:
            self.came.append(error)
        writer.close()


async def _feed(kit: Serving, handler: Reading, data: bytes, feed: str, *args: Any) -> Any:
    """What a handler's read comes to that waits, after `data` from the client, when its reader is fed."""
    client, conn = await kit.open()
    client.put(data)
    await until(lambda: conn.received_bytes == len(data))
    await asyncio.sleep(0)
    assert not handler.came
    getattr(handler.readers[0], feed)(*args)
    await until(lambda: handler.came)
    client.close()
    return handler.came[0]


@pytest.mark.parametrize(("method", "args"), [("read", (10,)), ("read", ()), ("readline", ())])
def test_reader_that_waits_meets_an_end_that_is_fed(method: str, args: tuple[int, ...]) -> None:
    handler = Reading(method, *args)
    data = b"" if args else b"half a line"
    with Serving(handler, kind=Kind.STREAMS) as kit:
        assert kit.run(_feed(kit, handler, data, "feed_eof")) == data


@pytest.mark.parametrize(("method", "args"), [("read", (10,)), ("read", ()), ("readline", ())])
def test_reader_that_waits_raises_an_exception_that_is_set(method: str, args: tuple[int, ...]) -> None:
    handler = Reading(method, *args)
    error = ZeroDivisionError()
    with Serving(handler, kind=Kind.STREAMS) as kit:
        assert kit.run(_feed(kit, handler, b"", "set_exception", error)) is error


def test_reader_that_waits_goes_on_with_bytes_that_are_fed_behind_those_that_came() -> None:
    handler = Reading("readexactly", 6)
    with Serving(handler, kind=Kind.STREAMS) as kit:
        assert kit.run(_feed(kit, handler, b"abc", "feed_data", b"def")) == b"abcdef"


def test_reader_does_not_read_on_after_an_exception_was_set() -> None:
    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        reader = handler.readers[0]
        client.put(b"a")
        await until(lambda: handler.came)
        reader.set_exception(ZeroDivisionError())
        client.put(b"b")
        with pytest.raises(ZeroDivisionError):
            await reader.read(1)
        assert not reader.at_eof()
        client.close()

    class Kept(Reading):
        async def __call__(self, reader: Any, writer: Any) -> None:
            self.writer = writer  # Or it would be closed as nobody's.
            self.readers.append(reader)
            self.came.append(await reader.read(1))

    handler = Kept("read", 1)
    with Serving(handler, kind=Kind.STREAMS) as kit:
        kit.run(main(kit))
