"""Push: every connection of every shard gets the time each second.

    shardnet run examples.push:handler
    nc 127.0.0.1 9000

Each worker has one ticker for all its connections, started by the first of them.
"""

import asyncio
import time

from shardnet import Connection, Shard

_ticker: asyncio.Task[None] | None = None


async def _tick(shard: Shard) -> None:
    told_s = int(time.time())
    while True:
        # Not simply "a second later": the sleep may end a little early, and the same second would come twice.
        told_s = max(told_s + 1, int(time.time()))
        await asyncio.sleep(told_s - time.time())
        line = time.strftime("%H:%M:%S\n", time.localtime(told_s)).encode()
        for conn in shard.connections:
            conn.write(line)


async def handler(conn: Connection) -> None:
    """Take part until the peer leaves; what it says is ignored."""
    global _ticker
    if _ticker is None:
        _ticker = asyncio.create_task(_tick(conn.shard))
    async for _ in conn:
        pass
