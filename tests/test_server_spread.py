"""The spread of a drain: idle connections end one after the other, so that not all their peers come back at once."""

from __future__ import annotations

import asyncio

import pytest

from shardnet.app import Kind
from shardnet.connection import Limits
from tests.adapter_kit import turns
from tests.hook_kit import KINDS, LONG_S, FakeTime, Notes, callback_echo, clock
from tests.serving import Client, Serving, until

__all__ = ["clock"]  # A fixture.


# The spread of a drain.


@KINDS
@pytest.mark.parametrize("lingering", [False, True])
def test_idle_connections_end_spread_over_time(kind: Kind, lingering: bool, clock: FakeTime) -> None:
    """Those that had ended and only lingered, because their peers were slow to close, counted as still to be ended: so
    the others ended too early, most of them in the first half."""
    count = 40

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(count)]
        draining = asyncio.ensure_future(kit.server.drain(100.0, 10.0))
        await until(lambda: kit.server.shard.draining)
        await turns(200)
        assert open_now(kit) == count
        for share in (0.1, 0.25, 0.5, 0.55, 0.9, 1.0):
            clock.now_s = 1000.0 + 10.0 * share
            await until(lambda share=share: count - open_now(kit) >= round(count * share))  # type: ignore[misc]
            await turns(200)
            assert count - open_now(kit) == round(count * share)
            if not lingering:
                for client in clients:
                    if is_at_end(client):
                        client.close()
                clients[:] = [client for client in clients if client.sock.fileno() >= 0]
        for client in clients:
            client.close()
        assert await draining

    with Serving(Notes().app(kind), limits=Limits(linger_s=LONG_S)) as kit:
        kit.run(main(kit))


def open_now(kit: Serving) -> int:
    return sum(not conn.is_closing() for conn in kit.connections)


def is_at_end(client: Client) -> bool:
    try:
        return client.sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_busy_connections_are_no_reason_to_end_idle_ones_sooner(clock: FakeTime) -> None:
    async def main(kit: Serving) -> None:
        idle = [(await kit.open())[0] for _ in range(10)]
        for _ in range(10):
            client, conn = await kit.open()
            conn.pause()
            client.put(b"unread")
        await until(lambda: sum(conn.readable for conn in kit.connections) == 10)
        draining = asyncio.ensure_future(kit.server.drain(100.0, 10.0))
        await until(lambda: kit.server.shard.draining)
        clock.now_s += 2.5
        await until(lambda: open_now(kit) == 15)
        await turns(200)
        assert open_now(kit) == 15
        clock.now_s += 7.5
        await until(lambda: open_now(kit) == 10)
        for conn in kit.connections:
            conn.resume()
        for client in [*idle, *kit.clients]:
            client.close()
        assert await draining

    with Serving(callback_echo, limits=Limits(linger_s=LONG_S)) as kit:
        kit.run(main(kit))


def test_peers_that_have_not_spoken_yet_are_not_sent_away_at_once(clock: FakeTime) -> None:
    """A client that connects and then sends its request found its connection ended in between, when a successor took
    over at that moment and ends were not spread."""

    async def main(kit: Serving) -> None:
        spoke, silent = (await kit.open())[0], (await kit.open())[0]
        await spoke.send(b"hello")
        assert await spoke.receive() == b"hello"
        draining = asyncio.ensure_future(kit.server.drain(100.0, 0.0, 1.0))
        assert await spoke.receive() == b""
        spoke.close()
        await turns(200)
        assert open_now(kit) == 1
        await silent.send(b"late")
        assert await silent.receive() == b"late"
        assert await silent.receive() == b""
        silent.close()
        assert await draining

    with Serving(callback_echo) as kit:
        kit.run(main(kit))


def test_peers_that_never_speak_are_ended_later_and_spread_as_well(clock: FakeTime) -> None:
    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(10)]
        draining = asyncio.ensure_future(kit.server.drain(100.0, 10.0, 5.0))
        await until(lambda: kit.server.shard.draining)
        for passed_s, left in ((4.9, 10), (10.0, 5), (15.0, 0)):
            clock.now_s = 1000.0 + passed_s
            await until(lambda left=left: open_now(kit) <= left)  # type: ignore[misc]
            await turns(200)
            assert open_now(kit) == left
        for client in clients:
            client.close()
        assert await draining

    with Serving(callback_echo) as kit:
        kit.run(main(kit))
