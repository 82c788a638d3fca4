"""The reference servers in Python: `python -m bench.reference asyncio|uvloop protocol|streams`.

Prints "listening 127.0.0.1:PORT" and serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from bench.handlers import READ_BYTES, EchoProtocol, streams

__all__ = ["main"]

BACKLOG: Final = 4096  # As shardnet's default.


async def serve(kind: str) -> None:
    loop = asyncio.get_running_loop()
    if kind == "protocol":
        server: asyncio.AbstractServer = await loop.create_server(EchoProtocol, "127.0.0.1", 0, backlog=BACKLOG)
    else:
        server = await asyncio.start_server(streams, "127.0.0.1", 0, backlog=BACKLOG, limit=READ_BYTES)
    host, port = server.sockets[0].getsockname()  # type: ignore[attr-defined]  # both loops' servers have them
    print(f"listening {host}:{port}", flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)  # Nothing is ever sent: it becomes readable at its end.
    await over.wait()


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("asyncio", "uvloop") or sys.argv[2] not in ("protocol", "streams"):
        sys.exit("usage: python -m bench.reference asyncio|uvloop protocol|streams")
    if sys.argv[1] == "uvloop":
        import uvloop  # the other loop does not pay for it

        uvloop.run(serve(sys.argv[2]))
    else:
        asyncio.run(serve(sys.argv[2]))


if __name__ == "__main__":
    main()
