"""What a transport tells of itself, and the socket that it lends."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_kit import (
    Recorder,
    echo,
    recorders,
    serving,
    turns,
)
from tests.serving import Serving, until

# What it tells of itself.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_extra_info_before_and_after_the_end(host: str) -> None:
    factory = recorders(echo)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        [protocol] = factory.made
        info = protocol.transport.get_extra_info
        sock = info("socket")
        assert info("socket") is sock
        assert sock.fileno() == conn.fd
        assert sock.family == client.sock.family
        assert sock.getpeername() == client.sock.getsockname()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        addresses = client.sock.getsockname(), client.sock.getpeername()
        for _ in range(2):
            assert (info("peername"), info("sockname")) == addresses
            assert info("shardnet.connection") is conn
            assert info("sslcontext") is None
            assert info("what else", "nothing") == "nothing"
            client.close()
            await until(lambda: not kit.active() and protocol.lost_by)
        assert info("socket").fileno() == -1

    with serving(factory, host=host) as kit:
        kit.run(main(kit))


def test_sockname_can_be_asked_for_first_when_all_is_over() -> None:
    """In `connection_lost`, say, to log it."""
    names: list[Any] = []

    def on_call(protocol: Recorder, name: str) -> None:
        if name == "lost":
            names.append(protocol.transport.get_extra_info("sockname"))
            names.append(protocol.transport.get_extra_info("socket", "none"))

    factory = recorders(on_call)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        address = client.sock.getpeername()
        client.reset()
        await until(lambda: names)
        assert names == [address, "none"]

    with serving(factory) as kit:
        kit.run(main(kit))


def test_extra_info_of_a_unix_socket(tmp_path: Path) -> None:
    factory = recorders(echo)
    path = str(tmp_path / "sock")

    async def main(kit: Serving, listener: socket.socket) -> None:
        listener.setblocking(False)
        kit.server._listeners.pop()
        kit.server.listen(listener)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        info = factory.made[0].transport.get_extra_info
        assert info("peername") == ""
        assert info("sockname") == path
        assert info("socket").family == socket.AF_UNIX
        writer.close()
        await writer.wait_closed()
        await until(lambda: factory.made[0].lost_by)
        kit.server.stop_accepting()

    with socket.socket(socket.AF_UNIX) as listener, serving(factory) as kit:
        listener.bind(path)
        listener.listen()
        kit.run(main(kit, listener))


def test_lent_socket_never_closes_the_descriptor() -> None:
    """Not when it is collected, and not when the connection's number belongs to somebody else by then."""
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        [protocol] = factory.made
        fd = conn.fd
        sock = protocol.transport.get_extra_info("socket")
        inode = os.fstat(fd).st_ino
        del sock
        gc.collect()
        assert os.fstat(fd).st_ino == inode
        sock = protocol.transport.get_extra_info("socket")
        protocol.transport.abort()
        assert conn.fd == -1
        taken = os.dup2(os.open("/dev/null", os.O_RDONLY), fd)  # The next to get that number.
        assert sock.fileno() == -1
        with pytest.raises(OSError):
            sock.getpeername()
        factory.made.clear()
        del sock, protocol, conn
        await turns()
        gc.collect()
        os.fstat(taken)
        os.close(taken)
        client.close()

    with serving(factory) as kit:
        kit.run(main(kit))


def test_lent_socket_closes_nothing_when_the_whole_server_is_dropped() -> None:
    factory = recorders()

    async def main(kit: Serving) -> Any:
        _, conn = await kit.open()
        return conn.fd, factory.made[0].transport.get_extra_info("socket")

    kit = serving(factory)
    fd, sock = kit.run(main(kit))
    kit.close()
    taken = os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    factory.made.clear()
    del kit, sock
    gc.collect()
    os.fstat(taken)
    os.close(taken)


def test_transport_may_be_kept_by_name_and_referred_to_weakly() -> None:
    """asyncio's own are ordinary objects: apps put attributes on them, and keep them in weak sets."""
    factory = recorders()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        transport = factory.made[0].transport
        transport.name = "bob"
        kept = weakref.WeakSet([transport])
        assert [one.name for one in kept] == ["bob"]
        assert transport.get_protocol() is factory.made[0]
        assert isinstance(transport, asyncio.Transport)
        assert str(client.sock.getsockname()) in repr(transport)
        transport.close()
        await until(lambda: factory.made[0].lost_by)
        assert transport.get_protocol() is None
        transport.set_protocol(factory.made[0])
        for call in (transport.close, transport.abort, transport.write_eof, transport.pause_reading):
            call()
        transport.write(b"dropped")
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_size() == 0
        client.close()

    with serving(factory) as kit:
        kit.run(main(kit))
