"""Reading that pauses, and transports that are aborted."""

from __future__ import annotations

import asyncio

import pytest

from shardnet.connection import Limits
from tests.adapter_kit import (
    MUCH,
    Recorder,
    narrow,
    open_narrow,
    recorders,
    serving,
    take_all,
    turns,
)
from tests.serving import Serving, until

# Flow control of reading.


def test_paused_reading_leaves_bytes_in_the_kernel() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        [protocol] = factory.made
        transport = protocol.transport
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        client.put(b"later")
        client.end()
        await until(lambda: conn.unread_in_kernel() == 5)
        await turns()
        assert protocol.calls == ["made"]
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await until(lambda: protocol.lost_by)
        assert protocol.data == b"later"
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert not transport.is_reading()
        transport.pause_reading()
        transport.resume_reading()

    with serving(factory) as kit:
        kit.run(main(kit))


def test_pausing_in_a_call_leaves_the_next_bytes_for_later() -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name in ("made", "data"):
            protocol.transport.pause_reading()

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        [protocol] = factory.made
        for number in range(3):
            client.put(b"%d" % number)
            await until(lambda: conn.unread_in_kernel() == 1)
            await turns()
            assert len(protocol.data) == number
            protocol.transport.resume_reading()
            await until(lambda number=number: len(protocol.data) == number + 1)  # type: ignore[misc]
        assert protocol.data == b"012"

    with serving(factory) as kit:
        kit.run(main(kit))


def first_pauses_second(protocol: Recorder, name: str) -> None:
    """As `on_call` of `pair`."""
    if name == "data" and protocol is pair.made[0]:
        pair.made[1].transport.pause_reading()


pair = recorders(first_pauses_second)


@pytest.mark.parametrize("second", ["data", "end"])
def test_pausing_another_whose_completion_is_in_the_same_batch(second: str) -> None:
    """A protocol must hear of nothing while it is paused, also not of the end."""
    pair.made.clear()

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        clients[0].put(b"x")
        if second == "data":
            clients[1].put(b"1")
        else:
            clients[1].end()
        [_, paused] = pair.made
        await until(lambda: not paused.transport.is_reading())
        await turns()
        assert paused.calls == ["made"]
        if second == "data":
            clients[1].put(b"2")
            clients[1].end()
            await turns()
            assert paused.calls == ["made"]
        paused.transport.resume_reading()
        await until(lambda: paused.lost_by)
        if second == "data":
            assert paused.data == b"12"
            assert paused.calls == ["made", "data", "eof", "lost"]
        else:
            assert paused.calls == ["made", "eof", "lost"]

    with serving(pair) as kit:
        kit.run(main(kit))


def test_end_is_told_once_to_a_protocol_that_was_paused_and_resumed_in_its_batch() -> None:
    def on_call(protocol: Recorder, name: str) -> object:
        if name == "data":
            factory.made[1].transport.pause_reading()
            factory.made[1].transport.resume_reading()
        return name == "eof"  # It stays, so that it could be told again.

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        clients[0].put(b"x")
        clients[1].end()
        await until(lambda: factory.made[0].data)
        await turns()
        assert factory.made[1].calls == ["made", "eof"]

    with serving(factory) as kit:
        kit.run(main(kit))


def test_what_a_batch_left_over_comes_before_what_came_later() -> None:
    """Resumed in a turn that also flushed its queue, a connection posted a read there, whose bytes then overtook those
    that were left over from before the pause."""

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "data" and protocol is factory.made[0]:
            factory.made[1].transport.pause_reading()
        if name == "made" and len(factory.made) == 3:
            factory.made[1].transport.resume_reading()

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        first, _ = await kit.open()
        second, conn = await open_narrow(kit)
        [_, protocol] = factory.made
        protocol.transport.write(MUCH[:100_000])
        await until(lambda: conn.unsent_bytes)
        first.put(b"x")
        second.put(b"1")
        await until(lambda: factory.made[0].data)
        await turns()
        assert conn._leftover == b"1"
        assert not protocol.data
        second.put(b"2")
        await turns()
        received = b""
        while conn.unsent_bytes > 60_000:  # Until one flush brings it below the mark at which reading may go on.
            received += take_all(second)
            await asyncio.sleep(0)
        while len(taken := take_all(second)):
            received += taken
        kit.connect()
        await until(lambda: len(protocol.data) == 2)
        assert protocol.data == b"12"

    with narrow(factory) as kit:
        kit.run(main(kit))


# Ending.


def test_abort_loses_what_is_queued_here_and_tells_the_peer() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.write(MUCH)
        factory.made[0].transport.abort()
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()
        await until(lambda: factory.made[0].lost_by == [None])

    with narrow(factory) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("closed_before", [False, True])
def test_abort_loses_nothing_that_is_with_the_kernel(closed_before: bool) -> None:
    """On asyncio, a last word and an abort right after it means that the word arrives."""
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        transport = factory.made[0].transport
        transport.write(b"last word")
        if closed_before:
            transport.close()
            await turns()
        transport.abort()
        assert await client.receive_to_end() == b"last word"
        assert not kit.active()
        await until(lambda: factory.made[0].lost_by == [None])

    with serving(factory, limits=Limits(linger_s=60)) as kit:
        kit.run(main(kit))
