"""Protocols that raise, their contexts, their drain, and what is left of them."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.connection import Connection
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
from tests.serving import Client, Serving, until

__all__ = ["no_collector"]  # A fixture.

LONG_S = 60.0


# Protocols that raise.


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("during", ["made", "data", "eof"])
def test_raising_ends_the_connection_alone_and_is_told_as_why(during: str, error: type[BaseException]) -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == during and protocol is not factory.made[0]:
            protocol.transport.write(b"last words")
            raise error
        echo(protocol, name)

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        neighbour, _ = await kit.open()
        client = kit.connect()
        client.put(b"x")
        client.end()
        assert (await client.receive_to_end()).endswith(b"last words")
        protocol = await lost(factory, 1)
        assert [type(why) for why in protocol.lost_by] == [error]
        await until(lambda: kit.closed() == {"ERROR": 1})
        [(event, fields, logged)] = kit.logged
        assert event == "handler raised"
        assert fields["connection"] == 2
        assert logged is protocol.lost_by[0]
        neighbour.put(b"?")
        assert await neighbour.receive() == b"?"

    with serving(factory) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 1


@pytest.mark.parametrize("during", ["pause", "resume"])
def test_raising_on_a_change_of_flow_is_told_to_the_loop(during: str) -> None:
    """As asyncio does it: the connection goes on."""

    def on_call(protocol: Recorder, name: str) -> None:
        if name == during:
            raise LookupError

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.write(MUCH)
        assert await client.receive_exactly(len(MUCH)) == MUCH
        await until(lambda: "resume" in factory.made[0].calls)
        assert factory.made[0].calls == ["made", "pause", "resume"]
        [context] = kit.loop_errors
        assert isinstance(context["exception"], LookupError)
        kit.loop_errors.clear()

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_on_resumption_ends_the_connection_not_the_loop(error: type[BaseException]) -> None:
    """asyncio lets these two through; out of the turn, they would have left the end of a close half done."""

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "resume":
            raise error

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        factory.made[0].transport.write(MUCH)
        assert await client.receive_to_end() == MUCH
        assert isinstance((await lost(factory)).lost_by[0], error)

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_raising_at_the_end_is_logged_and_counted() -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == "lost":
            raise LookupError

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.close()
        await until(lambda: kit.handler_exceptions == 1)
        assert isinstance(kit.logged[0][2], LookupError)
        await until(lambda: kit.closed() == {"EOF": 1})

    with serving(factory) as kit:
        kit.run(main(kit))


def _raises() -> Any:
    raise LookupError


@pytest.mark.parametrize("factory", [_raises, lambda: None, lambda: object()])
def test_factory_that_fails_ends_the_connection(factory: Callable[[], Any]) -> None:
    async def main(kit: Serving) -> None:
        for count in (1, 2):
            client = kit.connect()
            assert await client.receive() == b""
            client.close()
            await until(lambda count=count: kit.closed() == {"ERROR": count})  # type: ignore[misc]

    with serving(factory) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 2


# Contexts.


def test_calls_share_a_context_that_is_their_connections() -> None:
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
    seen: list[tuple[str, int]] = []

    def on_call(protocol: Recorder, name: str) -> object:
        seen.append((name, number.get()))
        if name == "data":
            protocol.transport.write(MUCH)
        return None

    def make() -> Recorder:
        number.set(number.get() + 1)
        return Recorder(on_call)

    async def main(kit: Serving) -> None:
        for _ in range(2):
            client, _ = await open_narrow(kit)
            client.put(b"x")
            assert await client.receive_exactly(len(MUCH)) == MUCH
            client.close()
            await until(lambda: seen[-1][0] == "lost")
        names = ["made", "data", "pause", "resume", "eof", "lost"]
        assert seen == [(name, 1) for name in names] * 2
        assert number.get() == 0

    with serving(make, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


# Drain.


def test_drain_ends_an_idle_protocol_as_its_peer_would() -> None:
    def on_call(protocol: Recorder, name: str) -> object:
        echo(protocol, name)
        if name == "eof":
            protocol.transport.write(b"goodbye")
        return True  # A wish that is not granted: nobody waits for the peer of an idle connection.

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        clients[0].put(b"x")
        assert await clients[0].receive() == b"x"
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        for client in clients:
            assert await client.receive_to_end() == b"goodbye"
            client.close()
        assert await draining
        assert [protocol.calls for protocol in factory.made] == [
            ["made", "data", "eof", "lost"],
            ["made", "eof", "lost"],
        ]
        assert kit.closed() == {"DRAIN": 2}

    with serving(factory) as kit:
        kit.run(main(kit))


def test_drain_waits_for_a_protocol_that_owes_an_answer() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        [protocol] = factory.made
        client.put(b"?")
        await until(lambda: protocol.data)
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        await until(lambda: kit.server.shard.draining)
        for _ in range(20):
            await asyncio.sleep(0)
        assert protocol.calls == ["made", "data"]
        protocol.transport.write(b"!")
        assert await client.receive_to_end() == b"!"
        client.close()
        assert await draining
        assert protocol.calls == ["made", "data", "eof", "lost"]

    with serving(factory) as kit:
        kit.run(main(kit))


def test_drain_waits_for_what_is_unread_and_unsent() -> None:
    factory = recorders(echo)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        factory.made[0].transport.pause_reading()
        client.put(b"x")
        slow, sending = await open_narrow(kit)
        factory.made[1].transport.write(MUCH)
        await until(lambda: conn.unread_in_kernel() and sending.unsent_bytes)
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        await until(lambda: kit.server.shard.draining)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any("eof" in protocol.calls for protocol in factory.made)
        factory.made[0].transport.resume_reading()
        assert await client.receive_to_end() == b"x"
        assert await slow.receive_to_end() == MUCH
        client.close()
        slow.close()
        assert await draining

    with serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_drain_cuts_at_the_deadline() -> None:
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"?")
        await until(lambda: factory.made[0].data)
        draining = asyncio.ensure_future(kit.server.drain(0.01))
        assert await client.receive_to_end() == b""
        client.close()
        assert not await draining
        assert (await lost(factory)).calls == ["made", "data", "lost"]
        assert kit.closed() == {"DRAIN": 1}

    with serving(factory) as kit:
        kit.run(main(kit))


# Memory.


def _end(how: str, transport: Any, client: Client) -> None:
    match how:
        case "eof":
            client.end()
        case "close":
            transport.close()
        case "close_unread":
            client.put(b"x")
            transport.close()
        case "abort":
            transport.abort()
        case "reset":
            client.reset()
        case "reset_while_unsent":
            transport.write(MUCH)
            client.reset()
        case "raise":
            client.put(b"raise")
        case "socket":
            transport.get_extra_info("socket")
            client.end()


HOW = ["eof", "close", "close_unread", "abort", "reset", "reset_while_unsent", "raise", "socket"]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", HOW)
def test_connection_that_is_over_needs_no_garbage_collector(how: str) -> None:
    """Transport and protocol refer to each other as long as there is something to tell."""
    gone: list[weakref.ref[Any]] = []

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "made":
            conn: Connection = protocol.transport.get_extra_info("shardnet.connection")
            gone.extend(weakref.ref(thing) for thing in (protocol, protocol.transport, conn))
        if protocol.data == b"raise" and name == "data":
            raise LookupError
        protocol.lost_by.clear()  # What it raised refers to it.

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        _end(how, gone[1](), client)
        del conn
        client.close()
        await until(lambda: not kit.active())
        kit._logged.records.clear()
        for _ in range(3):
            await asyncio.sleep(0)
        assert [reference() for reference in gone] == [None, None, None]

    with serving(lambda: Recorder(on_call), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))
