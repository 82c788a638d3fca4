"""A connection's calls to its protocol: which, in what order, and what its end is put down to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shardnet.connection import Limits
from shardnet.errors import DeadlineExceeded, WriteQueueOverflow
from tests.adapter_kit import (
    MUCH,
    SMALL_BUFFER_BYTES,
    Recorder,
    echo,
    lost,
    no_collector,
    open_narrow,
    recorders,
    serving,
)
from tests.serving import MODES, Client, Serving, until

__all__ = ["no_collector"]  # A fixture.

LONG_S = 60.0


# Order.


@pytest.mark.parametrize("mode", MODES)
def test_protocol_is_called_in_order(mode: str) -> None:
    factory = recorders(echo)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        [protocol] = factory.made
        assert protocol.calls == ["made"]
        assert protocol.transport.get_extra_info("shardnet.connection") is conn
        for message in (b"one", b"two"):
            client.put(message)
            assert await client.receive() == message
        client.end()
        assert await client.receive() == b""
        assert (await lost(factory)).calls == ["made", "data", "eof", "lost"]
        assert protocol.lost_by == [None]
        await until(lambda: kit.closed() == {"EOF": 1})

    with serving(factory, mode=mode) as kit:
        kit.run(main(kit))


def test_each_connection_has_its_own_protocol() -> None:
    factory = recorders(echo)

    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(20)]
        for number, client in enumerate(clients):
            client.put(b"%d" % number)
        for number, client in enumerate(clients):
            assert await client.receive() == b"%d" % number
        assert len(factory.made) == 20

    with serving(factory) as kit:
        kit.run(main(kit))


def test_bytes_that_came_with_the_end_come_before_it() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client = kit.connect()
        client.put(MUCH[:100_000])
        client.end()
        protocol = await lost(factory)
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert bytes(protocol.data) == MUCH[:100_000]

    with serving(factory) as kit:
        kit.run(main(kit))


# Ends.

End = Callable[[Client, Recorder], None]


@pytest.mark.parametrize(
    ("end", "calls", "closed"),
    [
        (lambda client, protocol: client.end(), ["made", "eof", "lost"], "EOF"),
        (lambda client, protocol: client.close(), ["made", "eof", "lost"], "EOF"),
        (lambda client, protocol: protocol.transport.close(), ["made", "lost"], "LOCAL"),
        (lambda client, protocol: protocol.transport.abort(), ["made", "lost"], "LOCAL"),
    ],
    ids=["end", "peer_closes", "close", "abort"],
)
def test_lost_by_nothing(end: End, calls: list[str], closed: str) -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        end(client, factory.made[0])
        protocol = await lost(factory)
        assert protocol.calls == calls
        assert protocol.lost_by == [None]
        client.close()
        await until(lambda: kit.closed() == {closed: 1})

    with serving(factory) as kit:
        kit.run(main(kit))


def test_lost_by_a_reset() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.reset()
        protocol = await lost(factory)
        assert protocol.calls == ["made", "lost"]
        assert isinstance(protocol.lost_by[0], ConnectionResetError)
        assert kit.closed() == {"RESET": 1}
        assert kit.handler_exceptions == 0

    with serving(factory) as kit:
        kit.run(main(kit))


def test_lost_by_a_reset_while_reading_pauses() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        factory.made[0].transport.pause_reading()
        client.reset()
        protocol = await lost(factory)
        assert isinstance(protocol.lost_by[0], ConnectionResetError)

    with serving(factory) as kit:
        kit.run(main(kit))


def test_lost_by_a_peer_that_takes_nothing_for_too_long() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.write(MUCH)
        protocol = await lost(factory)
        assert isinstance(protocol.lost_by[0], DeadlineExceeded)
        assert protocol.calls == ["made", "pause", "lost"]
        assert kit.closed() == {"DEADLINE": 1}
        client.close()

    with serving(factory, limits=Limits(write_stall_s=0.01), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_lost_by_writing_far_more_than_the_peer_takes() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        await open_narrow(kit)
        transport = factory.made[0].transport
        for _ in range(4):
            transport.write(MUCH)
        protocol = await lost(factory)
        assert isinstance(protocol.lost_by[0], WriteQueueOverflow)
        assert transport.get_write_buffer_size() == 0

    with serving(factory, limits=Limits(write_hard_bytes=len(MUCH)), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("during", ["made", "data", "eof", "pause", "resume", "lost"])
@pytest.mark.parametrize("method", ["close", "abort"])
def test_closing_in_any_call_is_followed_by_the_end_alone(during: str, method: str) -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == during:
            getattr(protocol.transport, method)()
            getattr(protocol.transport, method)()
        elif name == "made":
            protocol.transport.write(MUCH)

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client = kit.connect(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        client.put(b"x")
        client.end()
        receiving = asyncio.ensure_future(client.receive_to_end())
        protocol = await lost(factory)
        assert during in protocol.calls
        assert protocol.lost_by == [None]
        if method == "close" and during != "made":
            assert await receiving == MUCH
        await asyncio.gather(receiving, return_exceptions=True)
        client.close()
        await until(lambda: not kit.active())

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_close_sends_what_is_queued_and_is_told_when_that_is_done() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        [protocol] = factory.made
        protocol.transport.write(MUCH)
        protocol.transport.close()
        assert protocol.transport.is_closing()
        client.put(b"too late")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not protocol.lost_by
        received = asyncio.ensure_future(client.receive_to_end())
        await lost(factory)
        assert conn.unsent_bytes == 0
        assert await received == MUCH
        assert not protocol.data

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_lost_does_not_wait_for_the_peer_to_end_its_stream() -> None:
    """The descriptor lingers for that; the protocol has its end at once, as on asyncio."""
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        factory.made[0].transport.write(b"bye")
        factory.made[0].transport.close()
        await lost(factory)
        assert kit.active() == 1
        client.put(b"ignored")
        assert await client.receive_to_end() == b"bye"
        client.close()
        await until(lambda: not kit.active())

    with serving(factory, limits=Limits(linger_s=LONG_S)) as kit:
        kit.run(main(kit))


# Resumption of writing, from inside a flush.


@pytest.mark.parametrize("method", ["close", "write_eof"])
def test_what_is_written_on_resumption_is_sent_before_the_end(method: str) -> None:
    """A producer writes its last part when it may write again, and ends. The end of stream went out right then, before
    the part that had just been queued, which was lost."""
    parts = 3

    def on_call(protocol: Recorder, name: str) -> object:
        written = protocol.calls.count("resume") + 1
        if name in ("data", "resume") and written <= parts:
            protocol.transport.write(MUCH)
            if written == parts:
                getattr(protocol.transport, method)()
        return name == "eof"

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.set_write_buffer_limits(low=0, high=0)
        client.put(b"x")
        assert await client.receive_to_end() == MUCH * parts
        factory.made[0].transport.close()
        client.close()
        await lost(factory)

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_abort_on_resumption_after_the_end_of_stream_was_written() -> None:
    """The end of stream, which waited behind the queue, was then sent on a descriptor that was closed: a ValueError out
    of the turn of the loop."""

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "resume":
            protocol.transport.abort()

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        transport = factory.made[0].transport
        transport.set_write_buffer_limits(high=0)
        transport.write(MUCH)
        transport.write_eof()
        assert await client.receive_to_end() == MUCH
        assert (await lost(factory)).lost_by == [None]

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))
