"""`shardnet.testing.serve`: a real server in a loop that somebody else has made."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
import socket
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from shardnet import App
from shardnet.connection import Connection, Limits
from shardnet.errors import AppError, UsageError
from shardnet.loop import new_loop
from shardnet.testing import serve
from shardnet.testing.lending import SERVERS_MAX, LentSelector
from shardnet.watcher.engine import Engine
from tests.serving import until

Main = Callable[[], Awaitable[None]]


async def echo(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


def echo_callback(conn: Connection, data: bytes) -> None:
    conn.write(data)


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


HANDLERS = [echo, echo_streams, echo_callback, EchoProtocol, App(echo)]


def descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # That of the listing itself.
            found[entry.name] = str(entry.readlink())
    return found


@pytest.fixture(autouse=True)
def _leaks_nothing() -> Any:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


async def ask(server: Any, data: bytes = b"hello") -> bytes:
    reader, writer = await server.connect()
    writer.write(data)
    return bytes(await reader.readexactly(len(data)))


# Whichever loop, whichever kind.


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("handler", HANDLERS, ids=["conn", "streams", "callback", "protocol", "app"])
def test_serve_serves_every_kind_of_handler(handler: Any, debug: bool) -> None:
    async def main() -> None:
        async with serve(handler) as server:
            assert await ask(server) == b"hello"

    asyncio.run(main(), debug=debug)


def test_serve_gives_the_loop_its_own_selector_back() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        own = loop._selector
        reader, writer = os.pipe()
        heard: list[bytes] = []
        loop.add_reader(reader, lambda: heard.append(os.read(reader, 10)))
        async with serve(echo) as server:
            assert isinstance(loop._selector, LentSelector)
            os.write(writer, b"within")
            await until(lambda: heard == [b"within"])
            assert await ask(server) == b"hello"
        assert loop._selector is own
        assert isinstance(own, selectors.BaseSelector)
        os.write(writer, b"after")
        await until(lambda: heard == [b"within", b"after"])
        assert await loop.run_in_executor(None, lambda: 7) == 7
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


def test_serve_survives_a_descriptor_that_was_closed_while_registered() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        loop.add_reader(reader, lambda: None)
        os.close(reader)
        os.close(writer)
        async with serve(echo) as server:
            assert await ask(server) == b"hello"
        assert not loop.remove_reader(reader)

    asyncio.run(main())


@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_serve_shares_a_loop_with_other_servers(order: str) -> None:
    """One that ends leaves the connections of the other alone, in whatever order they end."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as outer, contextlib.AsyncExitStack() as inner:
            first = await (inner if order == "crossed" else outer).enter_async_context(serve(echo))
            second = await (outer if order == "crossed" else inner).enter_async_context(serve(echo_callback))
            clients = {server: await server.connect() for server in (first, second)}
            for reader, writer in clients.values():
                writer.write(b"?")
                assert await reader.readexactly(1) == b"?"
            assert len(first.shard.connections) == len(second.shard.connections) == 1
            await inner.aclose()
            reader, writer = clients[second if order == "crossed" else first]
            writer.write(b"!")
            assert await reader.readexactly(1) == b"!"

    asyncio.run(main())


def test_serve_refuses_more_servers_than_it_has_cells_for() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(SERVERS_MAX):
                await stack.enter_async_context(serve(echo))
            with pytest.raises(UsageError, match="64 servers"):
                await stack.enter_async_context(serve(echo))

    asyncio.run(main())


class TestUnittest(unittest.IsolatedAsyncioTestCase):
    """A server that lives from set-up to tear-down."""

    async def asyncSetUp(self) -> None:
        self.server = await self.enterAsyncContext(serve(echo))

    async def test_serve_lives_in_a_unittest(self) -> None:
        assert await ask(self.server) == b"hello"


def test_serve_lives_under_anyio() -> None:
    async def main() -> None:
        with anyio.fail_after(30):
            async with serve(echo) as server, await anyio.connect_tcp(server.host, server.port) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"

    anyio.run(main)


def test_serve_says_in_one_line_that_a_loop_has_no_selector(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        own = loop._selector
        loop._selector = None  # As in uvloop.
        try:
            with pytest.raises(UsageError, match="has no selector of asyncio's that could be exchanged: run the test"):
                async with serve(echo):
                    raise AssertionError("entered")
        finally:
            loop._selector = own

    asyncio.run(main())


def test_serve_refuses_a_loop_of_shardnets_own() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="selector"):
            async with serve(echo):
                raise AssertionError("entered")

    engine = Engine()
    loop = new_loop(engine)
    loop.run_until_complete(main())
    loop.close()
    engine.close()


def test_serve_is_left_by_a_task_that_a_connection_has_resumed() -> None:
    """Such a task runs inside `select()`, and must not take the selector away from under itself."""

    async def stand_by(conn: Connection) -> None:
        await conn.wait_closed()

    async def main() -> None:
        async with serve(stand_by, drain_timeout_s=0.0) as server:
            _, writer = await server.connect()
            await until(lambda: server.shard.connections)
            [conn] = server.shard.connections
            asyncio.get_running_loop().call_soon(writer.write, b"x")
            assert await conn.read() == b"x"

    asyncio.run(main())


# Where it listens.


def test_serve_listens_on_ipv6() -> None:
    async def main() -> None:
        async with serve(echo, host="::1") as server:
            assert server.address == (server.host, server.port) == ("::1", server.port)
            assert await ask(server) == b"hello"

    asyncio.run(main())


def test_serve_listens_on_the_port_it_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def main() -> None:
        async with serve(echo, port=port) as server:
            assert server.address == ("127.0.0.1", port)

    asyncio.run(main())


def test_serve_listens_on_a_unix_socket_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        async with serve(echo, unix=path) as server:
            assert server.address == str(path)
            assert await ask(server) == b"hello"
            with pytest.raises(UsageError, match="unix socket"):
                assert server.port
        assert not path.exists()

    asyncio.run(main())


def test_serve_leaves_nothing_behind_when_the_address_is_taken() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
            async with serve(echo, port=taken.getsockname()[1]):
                raise AssertionError("entered")

    asyncio.run(main())


def test_serve_passes_limits_on() -> None:
    def flood(conn: Connection, data: bytes) -> None:
        conn.write(bytes(10_000_000))
        conn.write(b"more")

    async def main() -> None:
        async with serve(flood, limits=Limits(write_hard_bytes=1000)) as server:
            reader, writer = await server.connect()
            writer.write(b"?")
            with pytest.raises(ConnectionResetError):
                await reader.read()

    asyncio.run(main())


def test_serve_says_what_is_wrong_with_a_handler() -> None:
    async def main() -> None:
        with pytest.raises(AppError, match="handler"):
            async with serve(7):
                raise AssertionError("entered")

    asyncio.run(main())


def test_serve_takes_the_kind_where_it_cannot_be_seen() -> None:
    def hidden(*args: Any) -> Any:
        return echo_callback(*args)

    async def main() -> None:
        async with serve(hidden, kind="callback") as server:
            assert await ask(server) == b"hello"
        async with serve(App(hidden), kind="callback") as server:
            assert await ask(server) == b"hello"

    asyncio.run(main())


# Its life.


def test_serve_enters_and_leaves_the_lifespan() -> None:
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(shard: Any) -> AsyncIterator[None]:
        shard.state.answer = b"from the lifespan"
        async with asyncio.TaskGroup():  # Which wants to be left by the task that entered it.
            yield
        told.append("left")

    async def handler(conn: Connection) -> None:
        await conn.send(conn.shard.state.answer)

    async def main() -> None:
        serving = serve(App(handler, lifespan=lifespan))
        server = await asyncio.create_task(serving.__aenter__())
        reader, _ = await server.connect()
        assert await reader.read() == b"from the lifespan"
        assert told == []
        await asyncio.create_task(serving.__aexit__(None, None, None))
        assert told == ["left"]

    asyncio.run(main())


def test_serve_raises_what_a_lifespan_raises() -> None:
    @contextlib.asynccontextmanager
    async def begins_badly(shard: Any) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    @contextlib.asynccontextmanager
    async def ends_badly(shard: Any) -> AsyncIterator[None]:
        yield
        raise LookupError("no goodbye")

    async def main() -> None:
        with pytest.raises(AppError, match="no database"):
            async with serve(App(echo, lifespan=begins_badly)):
                raise AssertionError("entered")
        with pytest.raises(LookupError, match="no goodbye"):
            async with serve(App(echo, lifespan=ends_badly)):
                pass

    asyncio.run(main())


def test_serve_drains_when_asked() -> None:
    drained: list[Connection] = []

    async def main() -> None:
        async with serve(App(echo, on_drain=drained.append)) as server:
            reader, writer = await server.connect()
            await until(lambda: server.shard.connections)
            draining = asyncio.create_task(server.drain(30.0))
            assert await reader.read() == b""
            writer.close()
            assert await draining
            assert server.shard.draining
        assert len(drained) == 1

    asyncio.run(main())


@pytest.mark.parametrize("handler", HANDLERS, ids=["conn", "streams", "callback", "protocol", "app"])
def test_serve_ends_with_clients_that_stay_connected(handler: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            async with serve(handler) as server:
                await loop.sock_connect(client, server.address)
                await loop.sock_sendall(client, b"?")
                assert await loop.sock_recv(client, 10) == b"?"
            assert await loop.sock_recv(client, 10) == b""

    asyncio.run(main())


def test_serve_cancels_a_handler_that_does_not_come_to_its_end() -> None:
    told: list[str] = []

    async def handler(conn: Connection) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    async def main() -> None:
        async with serve(handler, drain_timeout_s=0.0) as server:
            await server.connect()
            await until(lambda: server.shard.connections)
        assert told == ["cancelled"]

    asyncio.run(main())


def test_serve_is_cancelled_while_a_lifespan_begins() -> None:
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(shard: Any) -> AsyncIterator[None]:
        told.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("cancelled")
        yield

    async def enter() -> None:
        async with serve(App(echo, lifespan=lifespan)):
            raise AssertionError("entered")

    async def main() -> None:
        task = asyncio.create_task(enter())
        await until(lambda: told)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told == ["begun", "cancelled"]

    asyncio.run(main())


def test_serve_is_cut_short_when_its_end_is_cancelled() -> None:
    async def deaf(conn: Connection) -> None:
        await asyncio.Event().wait()

    async def stay() -> None:
        async with serve(deaf) as server:
            await server.connect()
            await until(lambda: server.shard.connections)
            asyncio.current_task().cancel()  # type: ignore[union-attr]  # At the next await, which is the end's.
        raise AssertionError("left as if nothing had been")

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        own = loop._selector
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(stay())
        assert loop._selector is own

    asyncio.run(main())


# Handlers that raise.


def _raises_at_once(conn: Connection, data: bytes) -> None:
    raise LookupError("nothing there")


async def _raises_when_asked(conn: Connection) -> None:
    await conn.read()
    raise LookupError("nothing there")


class _RaisingProtocol(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        raise LookupError("nothing there")


@pytest.mark.parametrize("handler", [_raises_at_once, _raises_when_asked, _RaisingProtocol])
def test_serve_raises_what_its_handlers_raised(handler: Any) -> None:
    async def main(expect_errors: bool) -> None:
        async with serve(handler, expect_errors=expect_errors) as server:
            for count in (1, 2):
                reader, writer = await server.connect()
                writer.write(b"?")
                assert await reader.read() == b""
                await until(lambda count=count: len(server.errors) == count)  # type: ignore[misc]
            assert [str(error) for error in server.errors] == ["nothing there"] * 2

    with pytest.raises(ExceptionGroup, match="handlers raised") as caught:
        asyncio.run(main(expect_errors=False))
    assert [type(error) for error in caught.value.exceptions] == [LookupError, LookupError]
    asyncio.run(main(expect_errors=True))


def test_serve_raises_what_its_hooks_raised() -> None:
    def on_disconnect(conn: Connection, error: BaseException | None) -> None:
        raise LookupError("in a hook")

    async def main() -> None:
        async with serve(App(echo, on_disconnect=on_disconnect)) as server:
            assert await ask(server) == b"hello"

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [str(error) for error in caught.value.exceptions] == ["in a hook"]


def test_serve_lets_the_tests_own_failure_through_and_tells_of_the_handlers() -> None:
    async def main() -> None:
        async with serve(_raises_when_asked) as server:
            reader, writer = await server.connect()
            writer.write(b"?")
            await reader.readexactly(5)

    with pytest.raises(asyncio.IncompleteReadError) as caught:
        asyncio.run(main())
    [note] = caught.value.__notes__
    assert "LookupError: nothing there" in note
    assert "_raises_when_asked" in note


def test_serve_does_not_mind_a_handler_whose_peer_vanished() -> None:
    async def main() -> None:
        async with serve(echo) as server:
            _, writer = await server.connect()
            await until(lambda: server.shard.connections)
            writer.transport.abort()
            await until(lambda: not server.shard.connections)
        assert server.errors == []

    asyncio.run(main())
