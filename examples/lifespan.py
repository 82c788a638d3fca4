"""A ticket office: what a worker sets up before it serves, and what it does when connections come and go.

    shardnet run examples.lifespan:app
    nc 127.0.0.1 9000

Each line gets a ticket. Send the server TERM: it says goodbye to who is connected, and then writes its last line.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

from shardnet import App, Connection, Shard


async def restock(shard: Shard) -> None:
    """Put tickets out, as fast as they are taken."""
    for number in itertools.count(1):
        await shard.state.tickets.put(f"{shard.id}-{number}")


@contextlib.asynccontextmanager
async def lifespan(shard: Shard) -> AsyncIterator[None]:
    """Once in each worker: before its first connection up to `yield`, after its last one from there on."""
    shard.state.tickets = asyncio.Queue(maxsize=10)
    shard.state.visitors = 0
    restocking = asyncio.create_task(restock(shard))
    yield
    restocking.cancel()
    shard.log.info("office closed", visitors=shard.state.visitors)


def on_connect(conn: Connection) -> None:
    conn.shard.state.visitors += 1
    conn.write(b"welcome\n")


def on_disconnect(conn: Connection, error: BaseException | None) -> None:
    conn.shard.log.info("visitor left", peer=conn.peer[0], error=error)


def on_drain(conn: Connection) -> None:
    conn.write(b"we are closing\n")


async def handler(conn: Connection) -> None:
    """A ticket for each line."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            await conn.read_until(b"\n")
            ticket = await conn.shard.state.tickets.get()
            await conn.send(f"ticket {ticket}\n".encode())


app = App(
    handler,
    lifespan=lifespan,
    on_connect=on_connect,
    on_disconnect=on_disconnect,
    on_drain=on_drain,
)
