"""Frames with their length in front, as an `asyncio.Protocol`: it runs on shardnet as it is.

    shardnet run examples.protocol:Reverse

A frame is four bytes, big-endian, that say how long the rest is; the answer is a frame with the same bytes backwards.
"""

import asyncio
from typing import Final

HEADER_BYTES: Final = 4
FRAME_MAX_BYTES: Final = 1024 * 1024


def frame(body: bytes) -> bytes:
    """A frame around a body."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class Reverse(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= HEADER_BYTES:
            size = int.from_bytes(self.received[:HEADER_BYTES], "big")
            if size > FRAME_MAX_BYTES:
                self.transport.abort()
                return
            end = HEADER_BYTES + size
            if len(self.received) < end:
                return
            body = bytes(self.received[HEADER_BYTES:end])
            del self.received[:end]
            self.transport.write(frame(body[::-1]))

    # A client that does not read its answers gets no more of them: what it sends waits in the kernel.

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main() -> None:
    """The same on asyncio alone."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Reverse, "127.0.0.1", 9000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
