"""Echo, both ways to write it.

shardnet run examples.echo:handler
shardnet run examples.echo:on_data
"""

from shardnet import Connection


async def handler(conn: Connection) -> None:
    """A coroutine for each connection."""
    async for data in conn:
        await conn.send(data)


def on_data(conn: Connection, data: bytes) -> None:
    """A callback for each chunk: no task, less memory. While much is unsent, the connection is not read."""
    conn.write(data)
