"""What a connection's transport promises: asyncio's documented interface, and what apps rely on beside it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.adapter_kit import (
    MUCH,
    Recorder,
    narrow,
    open_narrow,
    recorders,
    serving,
    turns,
)
from tests.serving import Serving, until

# Writing.


def test_write_copies_what_may_change() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        transport = factory.made[0].transport
        data = bytearray(MUCH)
        transport.write(data)
        transport.write(memoryview(data)[:256])
        data[:] = bytes(len(data))
        assert await client.receive_exactly(len(MUCH) + 256) == MUCH + MUCH[:256]

    with narrow(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("parts", [[], [b""], [b"one", bytearray(b"two"), memoryview(b"three")], [b"", b"one"]])
def test_writelines_writes_them_in_order(parts: list[Any]) -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        factory.made[0].transport.writelines(parts)
        factory.made[0].transport.writelines(iter(parts))
        factory.made[0].transport.close()
        assert await client.receive_to_end() == b"".join([*parts, *parts])

    with serving(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"]])
def test_write_of_what_is_no_bytes_is_a_type_error(wrong: Any) -> None:
    """Also on a connection that is closed, as on asyncio: it is found in every test of the app, not only by luck."""
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        transport = factory.made[0].transport
        for _ in range(2):
            with pytest.raises(TypeError, match=type(wrong).__name__):
                transport.write(wrong)
            with pytest.raises(TypeError):
                transport.writelines([wrong])
            transport.close()
        client.close()

    with serving(factory) as kit:
        kit.run(main(kit))


def test_write_after_close_is_dropped_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        transport = factory.made[0].transport
        transport.write(b"said")
        transport.close()
        for _ in range(100):
            transport.write(b"unsaid")
            transport.writelines([b"unsaid"])
        assert await client.receive_to_end() == b"said"
        client.close()

    with caplog.at_level(logging.WARNING, "asyncio"), serving(factory) as kit:
        kit.run(main(kit))
    assert len(caplog.records) == 1


# Our end of the stream.


def test_write_eof_ends_writing_behind_the_queue_and_reading_goes_on() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        [protocol] = factory.made
        assert protocol.transport.can_write_eof()
        protocol.transport.write(MUCH)
        protocol.transport.write_eof()
        protocol.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            protocol.transport.write(b"x")
        with pytest.raises(RuntimeError, match="after write_eof"):
            protocol.transport.writelines([b"x"])
        assert not protocol.transport.is_closing()
        assert await client.receive_to_end() == MUCH
        client.put(b"still here")
        await until(lambda: protocol.data == b"still here")
        client.close()
        await until(lambda: protocol.lost_by == [None])

    with narrow(factory) as kit:
        kit.run(main(kit))


def test_write_eof_after_close_is_nothing() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        factory.made[0].transport.close()
        factory.made[0].transport.write_eof()
        factory.made[0].transport.write(b"dropped")
        assert await client.receive_to_end() == b""
        client.close()

    with serving(factory) as kit:
        kit.run(main(kit))


# The peer's.


def test_eof_received_that_returns_true_keeps_the_other_direction_open() -> None:
    def on_call(protocol: Recorder, name: str) -> object:
        return name == "eof"

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"all I have")
        client.end()
        [protocol] = factory.made
        await until(lambda: "eof" in protocol.calls)
        await turns()
        assert not protocol.transport.is_closing()
        for _ in range(3):
            protocol.transport.write(b"more")
            assert await client.receive() == b"more"
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
        await turns()
        protocol.transport.close()
        assert await client.receive() == b""
        await until(lambda: protocol.lost_by)
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert kit.closed() == {"EOF": 1}

    with serving(factory) as kit:
        kit.run(main(kit))


def test_reset_of_a_connection_whose_peer_had_ended_is_told() -> None:
    factory = recorders(lambda protocol, name: name == "eof")

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.end()
        await until(lambda: "eof" in factory.made[0].calls)
        client.reset()
        await until(lambda: factory.made[0].lost_by)
        assert isinstance(factory.made[0].lost_by[0], ConnectionError)

    with serving(factory) as kit:
        kit.run(main(kit))


# Flow control of writing.


def test_protocol_is_told_to_pause_above_the_high_mark_and_to_resume_at_the_low_one() -> None:
    sizes: list[tuple[str, int]] = []

    def on_call(protocol: Recorder, name: str) -> None:
        if name in ("pause", "resume"):
            sizes.append((name, protocol.transport.get_write_buffer_size()))

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        transport = factory.made[0].transport
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=20_000, low=10_000)
        assert transport.get_write_buffer_limits() == (10_000, 20_000)
        written = 0
        while transport.get_write_buffer_size() + 1000 <= 20_000:
            transport.write(bytes(1000))
            written += 1000
        assert transport.get_write_buffer_size() == conn.unsent_bytes
        rest = 20_000 - transport.get_write_buffer_size()
        transport.write(bytes(rest))
        assert sizes == []  # At the mark is not above it.
        transport.write(b"x")
        assert sizes == [("pause", 20_001)]
        transport.write(b"x")
        await client.receive_exactly(written + rest + 2)
        await until(lambda: len(sizes) == 2)
        (_, (name, size)) = sizes
        assert name == "resume"
        assert size <= 10_000

    with narrow(factory) as kit:
        kit.run(main(kit))


def test_high_mark_of_zero_pauses_at_the_first_byte_that_waits() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        [protocol] = factory.made
        protocol.transport.set_write_buffer_limits(high=0)
        assert protocol.transport.get_write_buffer_limits() == (0, 0)
        protocol.transport.write(b"fits")
        assert protocol.calls == ["made"]
        protocol.transport.write(MUCH)
        assert protocol.calls == ["made", "pause"]
        await client.receive_exactly(len(MUCH) + 4)
        await until(lambda: protocol.calls == ["made", "pause", "resume"])
        assert protocol.transport.get_write_buffer_size() == 0

    with narrow(factory) as kit:
        kit.run(main(kit))


def test_lower_marks_pause_at_once() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        [protocol] = factory.made
        protocol.transport.set_write_buffer_limits(high=len(MUCH))
        protocol.transport.write(MUCH)
        assert protocol.calls == ["made"]
        protocol.transport.set_write_buffer_limits(high=1000)
        assert protocol.calls == ["made", "pause"]
        await client.receive_exactly(len(MUCH))
        with pytest.raises(ValueError, match="high"):
            protocol.transport.set_write_buffer_limits(high=5, low=6)

    with narrow(factory) as kit:
        kit.run(main(kit))


def test_writes_from_inside_pausing_and_resuming_arrive_in_order() -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == "pause":
            protocol.transport.write(b"paused")
        if name == "resume" and protocol.calls.count("resume") == 1:
            protocol.transport.write(b"resumed")

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.write(MUCH)
        assert await client.receive_exactly(len(MUCH) + 13) == MUCH + b"pausedresumed"

    with narrow(factory) as kit:
        kit.run(main(kit))
