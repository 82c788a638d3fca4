"""Echo, in each way that a server in Python can be written, and in the least code that it takes.

The streams handler and the protocol are the very same objects on asyncio, on uvloop and on shardnet. Nothing of
shardnet is imported: the reference servers' memory is measured as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from shardnet import Connection

__all__ = ["EchoProtocol", "async_for", "on_data", "read_send", "streams"]

READ_BYTES: Final = 65536


class EchoProtocol(asyncio.Protocol):
    """For asyncio, uvloop and shardnet alike."""

    __slots__ = ("_transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """For asyncio, uvloop and shardnet alike."""
    # The load generator resets its connections when it has done; that is no error here.
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


def on_data(conn: Connection, data: bytes) -> None:
    conn.write(data)


async def read_send(conn: Connection) -> None:
    while data := await conn.read():
        await conn.send(data)


async def async_for(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)
