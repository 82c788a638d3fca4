"""Where a server listens: IPv4 and IPv6, several addresses, ports that the kernel chooses."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.procs import listening_ports
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

SHARDS: Final = 4


def has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
        return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback on this machine")


@needs_ipv6
def test_several_addresses_are_served_by_every_shard() -> None:
    binds = ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"]
    with ShardedServer("examples.echo:handler", workers=SHARDS, binds=binds) as server, ExitStack() as stack:
        server.wait_serving()
        assert [host for host, _ in server.addresses] == ["127.0.0.1", "::1", "127.0.0.1"]
        ports = [port for _, port in server.addresses]
        assert len(set(ports)) == 3
        assert set(ports) <= listening_ports()
        for address in server.addresses:
            for number in range(64):
                client = stack.enter_context(Client(address))
                assert client.ask(b"%d" % number) == b"%d" % number
        samples = server.scrape()
        accepted = samples.matching("connections_accepted_total")
        assert len(accepted) == SHARDS * len(binds)
        assert all(accepted.values()), accepted
        assert set(samples.by("listener", "connections_accepted_total").values()) == {64}
        assert samples.total("connections_active") == 3 * 64


@needs_ipv6
def test_every_address_of_ipv6_is_no_address_of_ipv4() -> None:
    """`[::]` means IPv6: the same port of IPv4 stays free for a bind of its own."""
    with ShardedServer("examples.echo:handler", binds=["[::]:0"]) as server:
        port = server.address[1]
        with Client(("::1", port)) as client:
            assert client.ask(b"six") == b"six"
        with pytest.raises(ConnectionRefusedError):
            Client(("127.0.0.1", port))


def test_port_that_was_served_can_be_served_again_at_once() -> None:
    """Connections that the server closed first leave TIME_WAIT behind, which must not keep the next one away."""
    with ShardedServer("tests.process.apps:which") as first, Client(first.address) as client:
        assert client.line()
        assert first.stop() == 0
        assert client.rest() == b""
    host, port = first.address
    with (
        ShardedServer("tests.process.apps:which", binds=[f"{host}:{port}"]) as second,
        Client(second.address) as client,
    ):
        assert second.address == first.address
        assert client.line()
