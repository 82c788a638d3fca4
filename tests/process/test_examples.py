"""The examples, each on the real server; those that are plain asyncio on asyncio alone as well."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from examples import protocol, streams
from tests.harness.client import Client
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

Address = tuple[str, int]


async def on_asyncio_alone(server: asyncio.Server, talk: Callable[[Address], None]) -> None:
    async with server:
        await asyncio.to_thread(talk, server.sockets[0].getsockname())


def use_the_store(address: Address) -> None:
    with Client(address) as client, Client(address) as other:
        assert client.ask(b"GET color") == b"(none)"
        assert client.ask(b"SET color dark blue") == b"OK"
        assert other.ask(b"GET color") == b"dark blue"
        assert other.ask(b"DEL color") == b"OK"
        assert client.ask(b"DEL color") == b"(none)"
        assert client.ask(b"what?").startswith(b"ERROR write SET")
        client.send(b"SET size 7\nGET size")  # The last line without its end: the client ends its side instead.
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"OK\n7\n"
        assert other.ask(b"DEL size") == b"OK"


def test_streams_example_keeps_keys_and_values() -> None:
    with ShardedServer("examples.streams:handle", workers=1) as server:
        use_the_store(server.address)


def test_streams_example_runs_on_asyncio_alone() -> None:
    async def main() -> None:
        await on_asyncio_alone(await asyncio.start_server(streams.handle, "127.0.0.1", 0), use_the_store)

    asyncio.run(main())


def reverse_frames(address: Address) -> None:
    with Client(address) as client:
        client.send(protocol.frame(b"abc"))
        assert client.exactly(7) == protocol.frame(b"cba")
        pieces = protocol.frame(b"first") + protocol.frame(b"") + protocol.frame(b"12" * 50_000)
        for cut in range(0, len(pieces), 9_999):
            client.send(pieces[cut : cut + 9_999])
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == protocol.frame(b"tsrif") + protocol.frame(b"") + protocol.frame(b"21" * 50_000)
    with Client(address) as client:
        client.send((protocol.FRAME_MAX_BYTES + 1).to_bytes(protocol.HEADER_BYTES, "big"))
        with contextlib.suppress(ConnectionResetError):  # What an abort looks like, where it is not just an end.
            assert client.rest() == b""


def test_protocol_example_reverses_frames() -> None:
    with ShardedServer("examples.protocol:Reverse", workers=2) as server:
        reverse_frames(server.address)


def test_protocol_example_runs_on_asyncio_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await on_asyncio_alone(await loop.create_server(protocol.Reverse, "127.0.0.1", 0), reverse_frames)

    asyncio.run(main())


def test_protocol_example_holds_back_a_client_that_does_not_read() -> None:
    """All of it comes back in the end, though the client first sends everything it can."""
    frames = 400
    with (
        ShardedServer("examples.protocol:Reverse", workers=1) as server,
        Client(server.address, receive_buffer_bytes=16 * 1024) as client,
    ):
        data = b"".join(protocol.frame(bytes([number % 256]) * 50_000) for number in range(frames))
        client.sock.setblocking(False)
        sent = 0
        while sent < len(data):
            try:
                sent += client.sock.send(data[sent : sent + 65536])
            except BlockingIOError:
                break
        assert sent < len(data), "the server took everything without being read"
        client.sock.settimeout(10.0)
        received = 0
        while received < len(data):
            if sent < len(data):
                sent += client.sock.send(data[sent : sent + 16 * 1024])
            chunk = client.exactly(min(16 * 1024, len(data) - received))
            assert chunk == data[received : received + len(chunk)]
            received += len(chunk)


def test_lifespan_example_hands_out_tickets_and_says_goodbye() -> None:
    with ShardedServer("examples.lifespan:app", workers=2) as server, ExitStack() as stack:
        server.wait_serving()
        clients = [stack.enter_context(Client(server.address)) for _ in range(8)]
        tickets = set()
        for client in clients:
            assert client.line() == b"welcome"
            tickets |= {client.ask(b"please") for _ in range(3)}
        assert len(tickets) == 24, tickets
        assert all(ticket.startswith((b"ticket 0-", b"ticket 1-")) for ticket in tickets)
        clients.pop().close()
        server.output.wait(r'event="visitor left" .* peer=127.0.0.1', 10.0)
        server.signal(signal.SIGTERM)
        for client in clients:
            assert client.rest() == b"we are closing\n"
        said = r'event="office closed" shard=%d .* visitors=(\d+)'
        assert sum(int(server.output.wait(said % shard, 10.0)[1]) for shard in (0, 1)) == 8


def enter_room(client: Client, name: bytes) -> None:
    assert client.line() == b"who are you?"
    assert client.ask(name) == b"* " + name + b" comes"


def test_line_chat_example_passes_lines_on() -> None:
    with ShardedServer("examples.line_chat:app", workers=1) as server, ExitStack() as stack:
        ann, bob, eve, shy = (stack.enter_context(Client(server.address)) for _ in range(4))
        enter_room(ann, b"ann")
        enter_room(bob, b"bob")
        assert ann.line() == b"* bob comes"
        enter_room(eve, b"eve")
        assert ann.line() == bob.line() == b"* eve comes"
        ann.send(b"hello\nwho is here?\n")
        for other in (bob, eve):
            assert [other.line(), other.line()] == [b"ann: hello", b"ann: who is here?"]
        bob.send(b"me\n")
        assert ann.line() == eve.line() == b"bob: me"
        bob.close()
        assert ann.line() == eve.line() == b"* bob goes"
        eve.send(b"x" * 2000)  # A line without an end.
        assert eve.rest() == b""
        assert ann.line() == b"* eve goes"
        assert shy.line() == b"who are you?"  # Who has no name reads nothing of all that.
        server.signal(signal.SIGTERM)
        assert ann.rest() == shy.rest() == b"* the server is going down\n"
