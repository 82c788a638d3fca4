"""HttpPages behind asyncio's own TCP server, so that they are tested with real sockets and nothing else of ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from shardnet.exporter.http_pages import HttpPages, Stage

__all__ = ["PageServer", "serving"]

UNENDED_S: Final = 10.0


class AsyncioClient:
    """A `Client` over a pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # drain() then waits until the kernel has every byte, as `Client.send` promises.
        writer.transport.set_write_buffer_limits(0)

    async def read(self) -> bytes:
        return await self._reader.read(65536)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def abort(self) -> None:
        linger_not = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):  # It may be closed already.
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        self._writer.transport.abort()


@dataclass(slots=True)
class PageServer:
    """A server of pages on a free port of the loopback."""

    port: int = 0
    connections: int = 0  # Ever accepted.
    ended: asyncio.Queue[Exception | None] = field(default_factory=asyncio.Queue)  # What each one ended with.
    stages: list[Stage] = field(default_factory=list)  # Of all of them.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serving(pages: HttpPages) -> AsyncIterator[PageServer]:
    """Serves until the end of the block, by which the clients must have closed."""
    served = PageServer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        error: Exception | None = None
        try:
            await pages.serve(AsyncioClient(reader, writer), served.stages.append)
        except Exception as exc:
            error = exc
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            served.ended.put_nowait(error)

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, backlog=1024)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        yield served
        server.close()
        if tasks:
            _, unended = await asyncio.wait(tasks, timeout=UNENDED_S)
            assert not unended, f"{len(unended)} clients have not closed"
