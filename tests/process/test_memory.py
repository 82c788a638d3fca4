"""What a worker gives back when a wave of connections is over.

Compared is with what the first waves left, not with a worker that has not served yet. They make what stays: pages that
were the supervisor's until somebody wrote to them, and the hash tables of 15,000.

Looked at is what Python's allocator has handed out, which is exact: it comes out the same to the block. And what the
process holds, which is not: Python returns memory by the arena, once nothing in it is in use, and one small object that
came to be during a wave keeps a whole one. So what is left goes up and down with the waves, by several. Hence the least
of several waves, and some arenas beside the ten percent: to be seen there is a leak outside of Python's allocator, of
150 bytes and more for each connection.
"""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from shardnet.filelimit import raise_file_limit
from tests.harness.client import Client
from tests.harness.procs import private_bytes
from tests.harness.server import ShardedServer

pytestmark = [pytest.mark.process, pytest.mark.slow]

CONNECTIONS: Final = 15_000
FIRST_WAVES: Final = 2
LATER_WAVES: Final = 3
MESSAGE: Final = b"0123456789abcdef" * 4
ARENA_BYTES: Final = 1 << 20  # Of CPython's allocator since 3.10: Include/internal/pycore_obmalloc.h, ARENA_BITS.
ARENAS_MAX: Final = 4
BLOCKS_MAX: Final = 100  # That later waves may leave, of 45,000 connections.
IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h: the port is chosen at connect, which may then take one in use.


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = raise_file_limit()
    if limit < CONNECTIONS + 200:
        pytest.skip(f"the limit of open files is {limit}, and this opens {CONNECTIONS} connections")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("kind", ["conn", "streams", "callback", "Protocol"])
def test_memory_of_connections_that_are_over_is_returned(kind: str) -> None:
    with ShardedServer(f"tests.process.kind_apps:{kind}", workers=1) as server:
        (worker,) = server.wait_serving().values()
        held, blocks = [], []
        for wave in range(FIRST_WAVES + LATER_WAVES):
            peak = use_connections(server, worker, source=f"127.0.1.{wave + 1}")
            with Client(server.address) as client:
                blocks.append(int(client.ask(b"blocks")))
                held.append(private_bytes(worker))
            assert peak > held[-1] + CONNECTIONS * 100, "the connections are not in what is measured"
        assert blocks[-1] <= blocks[FIRST_WAVES - 1] + BLOCKS_MAX, blocks
        assert min(held[FIRST_WAVES:]) <= min(held[:FIRST_WAVES]) * 1.1 + ARENAS_MAX * ARENA_BYTES, held


def use_connections(server: ShardedServer, worker: int, *, source: str) -> int:
    """Open all from the address `source`, have each say something and hear it back, and close them in good order; the
    worker's memory at the height of it. Each wave's own source, as closed ports rest for a minute."""
    clients = []
    try:
        for _ in range(CONNECTIONS):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind((source, 0))
            connect(client, server.address)
            client.sendall(MESSAGE)
        for client in clients:
            assert client.recv(len(MESSAGE), socket.MSG_WAITALL) == MESSAGE
        peak = private_bytes(worker)
    finally:
        for client in clients:
            client.close()
    server.wait_metrics(lambda now: now.total("connections_active") == 0)
    return peak


def connect(client: socket.socket, address: tuple[str, int]) -> None:
    client.settimeout(30.0)
    try:
        client.connect(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            pytest.skip(f"the system has not enough ports for {CONNECTIONS} connections from one address")
        raise
