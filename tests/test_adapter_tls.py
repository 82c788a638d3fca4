"""TLS, as apps start it themselves: `loop.start_tls` on a connection's transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest

from shardnet.app import Kind
from tests.adapter_kit import MUCH, Made, Recorder, certificate, client_tls, echo, open_narrow, server_tls
from tests.serving import PATIENCE_S, Serving, until

__all__ = ["certificate", "client_tls", "server_tls"]  # Fixtures.


RESET_ON_CLOSE: Final = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Upgrading(Recorder):
    """Says a word, hears one, and goes on in TLS."""

    def __init__(
        self,
        context: ssl.SSLContext,
        on_call: Callable[[Recorder, str], object] | None,
        handshake_timeout_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(on_call)
        self._context = context
        self._handshake_timeout_s = handshake_timeout_s
        self.upgrade: asyncio.Task[None] | None = None
        self.plain: Any = None
        self.failed_by: BaseException | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.plain = transport
        transport.write(b"ready\n")

    def data_received(self, data: bytes) -> None:
        if self.upgrade is None:
            assert data == b"STARTTLS\n"
            self.transport.write(b"go ahead\n")
            self.upgrade = asyncio.ensure_future(self._upgrade())
        else:
            super().data_received(data)

    async def _upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.transport = await loop.start_tls(
                self.plain,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._handshake_timeout_s,
            )
        except (OSError, ConnectionError) as error:
            self.failed_by = error


def serving(
    context: ssl.SSLContext, on_call: Callable[[Recorder, str], object] | None = None, **options: Any
) -> tuple[Made[Upgrading], Serving]:
    factory = Made(lambda: Upgrading(context, on_call, **options))
    return factory, Serving(factory, kind=Kind.PROTOCOL)


async def upgraded(
    kit: Serving, client_tls: ssl.SSLContext, protocol: Callable[[], Upgrading]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client on asyncio's own streams, past its STARTTLS."""
    reader, writer = await plain(kit)
    await writer.start_tls(client_tls, server_hostname="localhost")
    await until(lambda: protocol().transport is not protocol().plain)
    return reader, writer


async def plain(kit: Serving) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that was told to go ahead with TLS."""
    reader, writer = await asyncio.open_connection(*kit.listeners[0].getsockname())
    assert await reader.readline() == b"ready\n"
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go ahead\n"
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_upgrade_in_the_middle_carries_much_both_ways(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    factory, kit = serving(server_tls, echo)

    async def main() -> None:
        reader, writer = await upgraded(kit, client_tls, lambda: factory.made[0])
        info = factory.made[0].transport.get_extra_info
        assert info("sslcontext") is server_tls
        assert info("cipher")
        assert info("peername") == writer.get_extra_info("sockname")
        writer.write(b"small")
        assert await reader.readexactly(5) == b"small"
        writer.write(MUCH * 3)
        assert await reader.readexactly(len(MUCH) * 3) == MUCH * 3
        await close(writer)
        await until(lambda: factory.made[0].lost_by)
        assert factory.made[0].lost_by == [None]
        assert factory.made[0].calls[-2:] == ["eof", "lost"]
        await until(lambda: not kit.active())

    with kit:
        kit.run(main())


def test_close_over_tls_sends_what_is_queued_and_says_goodbye(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == "data":
            protocol.transport.write(MUCH)
            protocol.transport.close()

    factory, kit = serving(server_tls, on_call)

    async def main() -> None:
        reader, writer = await upgraded(kit, client_tls, lambda: factory.made[0])
        writer.write(b"?")
        assert await reader.read() == MUCH  # To the end that TLS itself announces: a cut would raise.
        await close(writer)
        await until(lambda: factory.made[0].lost_by == [None])
        await until(lambda: not kit.active())

    with kit:
        kit.run(main())


def test_flow_control_reaches_through_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    factory, kit = serving(server_tls)

    async def main() -> None:
        reader, writer = await upgraded(kit, client_tls, lambda: factory.made[0])
        [protocol] = factory.made
        writes = 0
        while protocol.calls[-1] != "pause":
            protocol.transport.write(MUCH)
            writes += 1
        assert await reader.readexactly(len(MUCH) * writes) == MUCH * writes
        await until(lambda: protocol.calls[-1] == "resume")
        protocol.transport.pause_reading()
        writer.write(b"later")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not protocol.data
        protocol.transport.resume_reading()
        await until(lambda: protocol.data == b"later")
        await close(writer)

    with kit:
        kit.run(main())


@pytest.mark.parametrize("how", ["abort", "reset"])
def test_connection_under_tls_that_is_cut_tells_the_protocol(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, how: str
) -> None:
    factory, kit = serving(server_tls)

    async def main() -> None:
        _, writer = await upgraded(kit, client_tls, lambda: factory.made[0])
        [protocol] = factory.made
        if how == "abort":
            protocol.transport.abort()
            await until(lambda: protocol.lost_by == [None])
        else:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(*RESET_ON_CLOSE)
            writer.transport.abort()
            await until(lambda: protocol.lost_by)
            assert isinstance(protocol.lost_by[0], ConnectionError)
        await until(lambda: not kit.active())
        await close(writer)

    with kit:
        kit.run(main())


def test_handshake_that_fails_ends_the_connection(server_tls: ssl.SSLContext) -> None:
    """asyncio's TLS forces the transport to close by a method that only its own transports had: an AttributeError, and
    the connection stayed."""
    factory, kit = serving(server_tls)

    async def main() -> None:
        reader, writer = await plain(kit)
        writer.write(b"this is no hello of TLS\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        [protocol] = factory.made
        await until(lambda: protocol.failed_by)
        assert isinstance(protocol.failed_by, ssl.SSLError)
        await until(lambda: not kit.active())
        assert kit.closed() == {"ERROR": 1}
        await close(writer)

    with kit:
        kit.run(main())


def test_handshake_that_does_not_come_is_given_up(server_tls: ssl.SSLContext) -> None:
    factory, kit = serving(server_tls, handshake_timeout_s=0.01)

    async def main() -> None:
        reader, writer = await plain(kit)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until(lambda: factory.made[0].failed_by)
        assert isinstance(factory.made[0].failed_by, ConnectionAbortedError)
        await until(lambda: not kit.active())
        await close(writer)

    with kit:
        kit.run(main())


def test_peer_that_leaves_in_the_handshake_is_told(server_tls: ssl.SSLContext) -> None:
    factory, kit = serving(server_tls)

    async def main() -> None:
        _, writer = await plain(kit)
        await close(writer)
        await until(lambda: factory.made[0].failed_by)
        await until(lambda: not kit.active())

    with kit:
        kit.run(main())


def test_drain_ends_an_idle_connection_under_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    factory, kit = serving(server_tls, echo)

    async def main() -> None:
        reader, writer = await upgraded(kit, client_tls, lambda: factory.made[0])
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        draining = asyncio.ensure_future(kit.server.drain(60.0))
        assert await reader.read() == b""
        await close(writer)
        assert await draining
        assert factory.made[0].calls[-2:] == ["eof", "lost"]

    with kit:
        kit.run(main())


def test_tls_on_a_streams_handler_says_what_to_write_instead(server_tls: ssl.SSLContext) -> None:
    refusals: list[BaseException] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await writer.start_tls(server_tls)
        except NotImplementedError as error:
            refusals.append(error)
        try:
            writer.transport.set_protocol(asyncio.Protocol())
        except NotImplementedError as error:
            refusals.append(error)
        await reader.read(1)
        writer.write(b"still here")

    async def main(kit: Serving) -> None:
        client, _ = await open_narrow(kit)
        client.put(b"x")
        assert await client.receive() == b"still here"

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert len(refusals) == 2
    for refusal in refusals:
        assert str(refusal).endswith(": serve lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), handler)")


def test_what_is_to_be_written_instead_works(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready\n")
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(server_tls)
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    async def main(kit: Serving) -> None:
        reader, writer = await plain(kit)
        await writer.start_tls(client_tls, server_hostname="localhost")
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        await close(writer)
        await until(lambda: not kit.active())

    with Serving(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), handler), kind=Kind.PROTOCOL) as kit:
        kit.run(main(kit))
