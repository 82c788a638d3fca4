"""The worker's loop: asyncio's, with an engine for its selector."""

from __future__ import annotations

import asyncio
import socket
import time
from array import array

import pytest

from shardnet.app import Kind
from shardnet.connection import Connection
from shardnet.loop import HEARTBEAT_S, new_loop
from shardnet.watcher.engine import Engine
from tests.serving import Serving, until


def test_low_level_socket_calls_work() -> None:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            await conn.send(data)

    async def main(kit: Serving) -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            await kit.loop.sock_connect(sock, kit.listeners[0].getsockname())
            sending = asyncio.create_task(kit.loop.sock_sendall(sock, bytes(1 << 20)))
            received = 0
            buffer = bytearray(65536)
            while received < 1 << 20:
                received += await kit.loop.sock_recv_into(sock, buffer)
            await sending

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepting = asyncio.create_task(kit.loop.sock_accept(listener))
            with socket.create_connection(listener.getsockname()) as client:
                accepted, address = await accepting
                assert address == client.getsockname()
                accepted.close()

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_timers_are_on_time_although_completions_flow() -> None:
    """A handler that always has something to do must not keep the clock from the others."""

    async def handler(conn: Connection) -> None:
        async for data in conn:
            await conn.send(data)

    async def main(kit: Serving) -> None:
        async def chatter() -> None:
            client = kit.connect()
            while True:
                client.put(b"x")
                await client.receive()

        flows = [asyncio.create_task(chatter()) for _ in range(5)]
        late_s = []
        for _ in range(10):
            start_s = time.monotonic()
            fired = kit.loop.create_future()
            kit.loop.call_later(0.01, fired.set_result, None)
            await fired
            late_s.append(time.monotonic() - start_s - 0.01)
        for flow in flows:
            flow.cancel()
        assert min(late_s) < 0.05
        assert kit.received_bytes() > 10

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_timer_armed_by_a_completion_fires() -> None:
    def on_data(conn: Connection, data: bytes) -> None:
        asyncio.get_running_loop().call_later(0.01, conn.write, b"late")

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"x")
        assert await client.receive() == b"late"

    with Serving(on_data) as kit:
        kit.run(main(kit))


def test_heartbeat_is_given_at_every_turn_and_soon_when_idle() -> None:
    cells = memoryview(array("Q", [0]))
    engine = Engine()
    loop = new_loop(engine, cells)
    before_ns = time.monotonic_ns()
    loop.run_until_complete(asyncio.sleep(0))
    assert before_ns <= cells[0] <= time.monotonic_ns()
    loop.close()
    engine.close()
    assert HEARTBEAT_S <= 5.0  # What the supervisor's patience is measured by.


def test_loop_closes_before_its_watcher_and_leaves_it_usable() -> None:
    engine = Engine()
    loop = new_loop(engine)
    loop.close()
    assert not engine.closed
    engine.turn(0)
    engine.close()


def test_asyncio_servers_and_clients_share_the_loop_with_connections() -> None:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            await conn.send(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async def main(kit: Serving) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        for address in (server.sockets[0].getsockname(), kit.listeners[0].getsockname()):
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(3):
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await until(lambda: not kit.active())

    with Serving(handler) as kit:
        kit.run(main(kit))


# Descriptors of connections beside those of asyncio.


def test_number_that_became_a_connection_is_not_taken_from_it() -> None:
    """A client library that closes its socket before it removes its reader used to disconnect whoever had got the
    number meanwhile: no event of that connection arrived any more."""

    async def handler(conn: Connection) -> None:
        async for data in conn:
            await conn.send(data)

    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(2)]
        ours, theirs = socket.socketpair()
        numbers = {ours.fileno(), theirs.fileno()}
        for sock in (ours, theirs):
            sock.setblocking(False)
            kit.loop.add_reader(sock, lambda: None)
            sock.close()
        conns = [await kit.accepted(client) for client in clients]
        assert {conn.fd for conn in conns} == numbers
        for sock in (ours, theirs):
            assert kit.loop.remove_reader(sock)
        for client in clients:
            client.put(b"x")
            assert await client.receive() == b"x"

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_descriptor_of_a_connection_cannot_be_watched_and_loses_nothing_by_the_attempt() -> None:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            await conn.send(data)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        with pytest.raises(FileExistsError):
            kit.loop.add_reader(conn.fd, lambda: None)
        client.put(b"x")
        assert await client.receive() == b"x"

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_loop_stays_in_its_poll_while_only_connections_have_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message used to cost a pass of asyncio's loop when they came one at a time."""
    passes = 0

    def ping(address: tuple[str, int], count: int) -> None:
        with socket.create_connection(address) as sock:
            for _ in range(count):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"

    async def main(kit: Serving) -> None:
        select = kit.loop._selector.select  # type: ignore[attr-defined]

        def counting(timeout: float | None = None) -> object:
            nonlocal passes
            passes += 1
            return select(timeout)

        monkeypatch.setattr(kit.loop._selector, "select", counting)  # type: ignore[attr-defined]
        await asyncio.to_thread(ping, kit.listeners[0].getsockname(), 300)

    with Serving(lambda conn, data: conn.write(data), kind=Kind.CALLBACK) as kit:
        kit.run(main(kit))
    assert passes < 30
