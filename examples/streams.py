"""A key-value store as a callback of `asyncio.start_server`: it runs on shardnet as it is.

    shardnet run examples.streams:handle
    nc 127.0.0.1 9000        (and type: SET color blue, GET color, DEL color)

Each worker has its own store: what is set on one shard is not seen on another. With `--workers 1` there is one.
"""

import asyncio

store: dict[bytes, bytes] = {}


def answer(line: bytes) -> bytes:
    """What the store says to a request."""
    match line.split(maxsplit=2):
        case [b"SET", key, value]:
            store[key] = value.rstrip()
            return b"OK"
        case [b"GET", key]:
            return store.get(key, b"(none)")
        case [b"DEL", key]:
            return b"OK" if store.pop(key, None) is not None else b"(none)"
        case _:
            return b"ERROR write SET key value, GET key or DEL key"


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One line, one answer, until the client ends its side."""
    while line := await reader.readline():
        writer.write(answer(line) + b"\n")
        await writer.drain()
    writer.close()


async def main() -> None:
    """The same on asyncio alone."""
    server = await asyncio.start_server(handle, "127.0.0.1", 9000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
