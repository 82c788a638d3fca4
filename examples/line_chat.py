"""Chat: what one says, the others read.

    shardnet run examples.line_chat:app --workers 1
    nc 127.0.0.1 9000        (twice or more)

One shard, because who is here is known to one process only: `shard.connections` are this worker's. On two shards there
would be two rooms, and chance would decide who is in which.
"""

import asyncio
import contextlib
from typing import Final

from shardnet import App, Connection, Shard

NAME_MAX_BYTES: Final = 20
LINE_MAX_BYTES: Final = 1000
UNREAD_MAX_BYTES: Final = 64 * 1024  # Of somebody who does not read: beyond, he misses lines. Nobody waits for him.


async def line_of(conn: Connection) -> bytes:
    return (await conn.read_until(b"\n", limit=LINE_MAX_BYTES)).strip()


def tell(shard: Shard, line: bytes, *, but: Connection | None = None) -> None:
    """A line for everybody in the room, who has a name by then."""
    for conn in shard.connections:
        if conn is not but and conn.state is not None and conn.unsent_bytes < UNREAD_MAX_BYTES:
            conn.write(line + b"\n")


async def handler(conn: Connection) -> None:
    """Ask for a name, then pass on line by line, until the end of the stream or a line that is too long."""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await conn.send(b"who are you?\n")
        name = (await line_of(conn))[:NAME_MAX_BYTES] or b"nobody"
        conn.state = name
        tell(conn.shard, b"* " + name + b" comes")
        while True:
            tell(conn.shard, name + b": " + await line_of(conn), but=conn)


def on_disconnect(conn: Connection, error: BaseException | None) -> None:
    """Also for who was reset."""
    if conn.state is not None and not conn.shard.draining:
        tell(conn.shard, b"* " + conn.state + b" goes", but=conn)


def on_drain(conn: Connection) -> None:
    conn.write(b"* the server is going down\n")


app = App(handler, on_disconnect=on_disconnect, on_drain=on_drain)
