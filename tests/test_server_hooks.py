"""The hooks of an app: when they are called, and what becomes of it when they raise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.app import App, Handler, Kind
from shardnet.connection import Connection, Limits
from tests.adapter_kit import Recorder, turns
from tests.hook_kit import ECHOES, KINDS, LONG_S, Notes
from tests.serving import Client, Serving, until

# Connecting.


@KINDS
def test_on_connect_comes_before_the_handler_and_may_write_and_set_state(kind: Kind) -> None:
    def on_connect(conn: Connection) -> None:
        conn.state = "known"
        conn.write(b"welcome\n")

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        assert await client.receive() == b"welcome\n"
        assert conn.state == "known"
        client.put(b"x")
        assert await client.receive() == b"x"

    with Serving(Notes().app(kind, on_connect=on_connect)) as kit:
        kit.run(main(kit))


@KINDS
@pytest.mark.parametrize("method", ["close", "abort"])
def test_connection_that_on_connect_closes_has_no_handler(kind: Kind, method: str) -> None:
    notes = Notes()
    handled: list[object] = []

    def on_connect(conn: Connection) -> None:
        notes.on_connect(conn)
        conn.write(b"no\n")
        getattr(conn, method)()

    def handler(*args: Any) -> Any:
        handled.append(args)

    async def main(kit: Serving) -> None:
        client = kit.connect()
        client.put(b"let me in")
        with contextlib.suppress(ConnectionResetError):
            assert await client.receive_to_end() in (b"no\n", b"")
        client.close()
        await until(lambda: not kit.active())
        await turns()
        assert notes.calls == [("connect", 1), ("disconnect", 1, None)]
        assert not handled
        assert kit.closed() == {"LOCAL": 1}

    with Serving(App(ECHOES[kind], kind=kind)) as kit:
        kit.server._handler = Handler(kind, handler, on_connect=on_connect, on_disconnect=notes.on_disconnect)
        kit.run(main(kit))


@KINDS
@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_on_connect_that_raises_ends_the_connection(kind: Kind, error: type[BaseException]) -> None:
    notes = Notes()

    def on_connect(conn: Connection) -> None:
        conn.write(b"sorry")
        raise error

    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive_to_end() == b"sorry"
        client.close()
        await until(lambda: notes.calls)
        [(name, _, why)] = notes.calls
        assert (name, type(why)) == ("disconnect", error)
        assert kit.closed() == {"ERROR": 1}
        assert kit.handler_exceptions == 1

    with Serving(notes.app(kind, on_connect=on_connect)) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("kind", [Kind.CALLBACK, Kind.PROTOCOL])
def test_on_connect_may_pause(kind: Kind) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"x")
        await until(lambda: conn.unread_in_kernel())
        await turns()
        assert conn.unread_in_kernel() == 1
        conn.resume()
        assert await client.receive() == b"x"

    with Serving(Notes().app(kind, on_connect=lambda conn: conn.pause())) as kit:
        kit.run(main(kit))


# Disconnecting.

End = Callable[[Client, Connection], object]


def _put_raise(client: Client, conn: Connection) -> None:
    client.put(b"raise")


ENDS: list[tuple[str, End, type[BaseException] | None]] = [
    ("peer", lambda client, conn: client.close(), None),
    ("end", lambda client, conn: client.end(), None),
    ("close", lambda client, conn: conn.close(), None),
    ("abort", lambda client, conn: conn.abort(), None),
    ("reset", lambda client, conn: client.reset(), ConnectionResetError),
    ("raise", _put_raise, LookupError),
]  # fmt: skip


@KINDS
@pytest.mark.parametrize(("end", "error"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_on_disconnect_comes_once_with_what_ended_the_connection(
    kind: Kind, end: End, error: type[BaseException] | None
) -> None:
    notes = Notes()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        end(client, conn)
        await until(lambda: conn.fd < 0 or conn.is_closing())
        client.close()
        await until(lambda: not kit.active() and not kit.server.handlers)
        await turns()
        assert notes.names == ["connect", "disconnect"]
        why = notes.calls[1][2]
        assert why is None if error is None else isinstance(why, error)

    with Serving(notes.app(kind)) as kit:
        kit.run(main(kit))


def test_on_disconnect_is_not_called_from_inside_the_code_that_closes() -> None:
    notes = Notes()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.abort()
        assert notes.names == ["connect"]
        await until(lambda: notes.names == ["connect", "disconnect"])
        client.close()

    with Serving(notes.app()) as kit:
        kit.run(main(kit))


def test_on_disconnect_comes_after_the_protocols_own_end() -> None:
    order: list[str] = []

    def make() -> Recorder:
        return Recorder(lambda protocol, name: order.append(name))

    def on_disconnect(conn: Connection, error: BaseException | None) -> None:
        order.append("on_disconnect")

    async def main(kit: Serving) -> None:
        for end in ("close", "reset"):
            order.clear()
            client, _ = await kit.open()
            getattr(client, end)()
            await until(lambda: "on_disconnect" in order)
            assert order[-2:] == ["lost", "on_disconnect"]

    with Serving(App(make, on_disconnect=on_disconnect)) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_on_disconnect_that_raises_is_logged(error: type[BaseException]) -> None:
    def on_disconnect(conn: Connection, why: BaseException | None) -> None:
        raise error

    async def main(kit: Serving) -> None:
        for count in (1, 2):
            client, _ = await kit.open()
            client.close()
            await until(lambda count=count: kit.handler_exceptions == count)  # type: ignore[misc]
        assert [event for event, _, _ in kit.logged] == ["hook raised"] * 2
        assert [fields["connection"] for _, fields, _ in kit.logged] == [1, 2]
        assert all(fields["peer"] for _, fields, _ in kit.logged)

    with Serving(Notes().app(on_disconnect=on_disconnect)) as kit:
        kit.run(main(kit))


# Draining.


@KINDS
def test_on_drain_is_called_once_for_each_connection_and_may_say_goodbye(kind: Kind) -> None:
    notes = Notes()

    def on_drain(conn: Connection) -> None:
        notes.on_drain(conn)
        assert conn.shard.draining
        conn.write(b"goodbye")

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        for client in clients:
            assert await client.receive_to_end() == b"goodbye"
            client.close()
        assert await draining
        await kit.server.drain(LONG_S)
        assert sorted(notes.calls[3:6]) == [("drain", 1), ("drain", 2), ("drain", 3)]
        assert sorted(call[:2] for call in notes.calls[6:]) == [("disconnect", number) for number in (1, 2, 3)]

    with Serving(notes.app(kind, on_drain=on_drain)) as kit:
        kit.run(main(kit))


def test_on_drain_passes_over_connections_that_are_closed_already() -> None:
    """They only linger. A hook that sends would raise for each, and be logged as one that fails."""
    notes = Notes()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.close()
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        await turns()
        client.close()
        assert await draining
        assert "drain" not in notes.names

    with Serving(notes.app(), limits=Limits(linger_s=LONG_S)) as kit:
        kit.run(main(kit))


def test_on_drain_that_raises_ends_its_connection_and_no_other() -> None:
    def on_drain(conn: Connection) -> None:
        if conn.id == 2:
            raise LookupError
        conn.write(b"goodbye")

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        draining = asyncio.ensure_future(kit.server.drain(LONG_S))
        assert [await client.receive_to_end() for client in clients] == [b"goodbye", b"", b"goodbye"]
        for client in clients:
            client.close()
        assert await draining
        assert kit.closed() == {"DRAIN": 2, "ERROR": 1}

    with Serving(Notes().app(on_drain=on_drain)) as kit:
        kit.run(main(kit))


@KINDS
def test_drain_that_cuts_has_told_of_every_end_when_it_is_over(kind: Kind) -> None:
    """What comes next is the end of the lifespan, which takes away what the hooks need."""
    notes = Notes()
    lost: list[object] = []

    async def waits(*args: Any) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            if lost:
                return
            lost.append(args)

    function = waits if kind in (Kind.CONN, Kind.STREAMS) else ECHOES[kind]

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.pause()
        client.put(b"unread")
        await until(lambda: conn.unread_in_kernel())
        tasks = set(kit.server._handlers)
        assert not await kit.server.drain(0.001)
        assert notes.names == ["connect", "drain", "disconnect"]
        for task in tasks:  # It has ignored the first.
            task.cancel()
            await task

    with Serving(App(function, kind=kind, **_hooks(notes)), limits=Limits(linger_s=0.001)) as kit:
        kit.run(main(kit))


def _hooks(notes: Notes) -> Any:
    return {name: getattr(notes, name) for name in ("on_connect", "on_disconnect", "on_drain")}


def test_drain_cancels_handlers_that_have_outlived_their_connection() -> None:
    """They once were left to the end of the process; but first comes the end of the lifespan, and they would have gone
    on without what it takes away."""
    cancelled: list[bool] = []

    async def handler(conn: Connection) -> None:
        conn.abort()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main(kit: Serving) -> None:
        kit.connect()
        await until(lambda: kit.closed() and kit.server.handlers)
        assert not await kit.server.drain(0.001)
        assert cancelled == [True]
        assert kit.server.handlers == 0

    with Serving(handler) as kit:
        kit.run(main(kit))
