"""What an idle connection consists of: our objects, counted; no dict, no buffer, and a task only for a coroutine."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import pytest

from bench.handlers import EchoProtocol, async_for, on_data, read_send
from shardnet.app import Kind
from shardnet.compiled import ENGINE
from shardnet.connection import Connection
from tests.serving import Serving

COUNT: Final = 50
WORD: Final = b"0123456789\n"
SCOPE: Final = "__pyx_scope"  # The frame of a coroutine that is compiled.
EMPTY_BYTES: Final = sys.getsizeof(bytearray()) + 1  # The reader has one, as any `asyncio.StreamReader`.
CONTAINERS: Final = (bytes, bytearray, list, deque, dict)


async def lines_of_conn(conn: Connection) -> None:
    while True:
        await conn.send(await conn.read_until(b"\n"))


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.readline():
        writer.write(data)
        await writer.drain()


HANDLERS: Final = [
    pytest.param(on_data, Kind.CALLBACK, {"CallbackConnection"}, id="callback"),
    pytest.param(EchoProtocol, Kind.PROTOCOL, {"ProtocolConnection", "ConnectionTransport"}, id="protocol"),
    pytest.param(read_send, Kind.CONN, {"Connection", "Waiter", "Read"}, id="conn"),
    pytest.param(async_for, Kind.CONN, {"Connection", "Waiter", "Chunk"}, id="conn-chunks"),
    pytest.param(lines_of_conn, Kind.CONN, {"Connection", "Waiter", "Fill"}, id="conn-lines"),
    pytest.param(
        streams,
        Kind.STREAMS,
        {"StreamsConnection", "Waiter", "Reader", "Writer", "Held", "ReaderFill"},
        id="streams",
    ),
]


def ours() -> Counter[str]:
    """How many objects of our classes there are, by class."""
    gc.collect()
    classes = Counter(type(thing) for thing in gc.get_objects())
    return Counter({kind.__qualname__: count for kind, count in classes.items() if _is_ours(kind)})


def _is_ours(kind: type) -> bool:
    module = kind.__module__
    return isinstance(module, str) and module.startswith("shardnet.") and not kind.__name__.startswith(SCOPE)


@pytest.mark.parametrize(("handler", "kind", "classes"), HANDLERS)
def test_idle_connection_is_few_objects_without_dict_or_buffer(
    handler: Callable[..., Any], kind: Kind, classes: set[str]
) -> None:
    async def main(kit: Serving) -> None:
        async def exchange() -> None:
            client, _ = await kit.open()
            client.put(WORD)
            assert await client.receive() == WORD

        await exchange()
        before, tasks_before = ours(), len(asyncio.all_tasks())
        for _ in range(COUNT):
            await exchange()
        coroutines = COUNT if kind in (Kind.CONN, Kind.STREAMS) else 0
        more = ours() - before
        if coroutines and ENGINE == "compiled":  # What stands in for a generator, which is there in both engines.
            assert more.pop("Driver") == coroutines
        assert more == Counter(dict.fromkeys(classes, COUNT))
        assert len(asyncio.all_tasks()) - tasks_before == coroutines
        for conn in kit.connections:
            assert not hasattr(conn, "__dict__")
            assert not [
                held
                for held in gc.get_referents(conn)
                if isinstance(held, CONTAINERS) and sys.getsizeof(held) > EMPTY_BYTES
            ]

    with Serving(handler, kind=kind) as kit:
        kit.run(main(kit))
