"""Peers that flood, and a modest one beside them: what is done for the flood before the modest one's completion.

A turn's budget is one posted read of each connection that is ready, and `RECEIVES_PER_TURN_MAX` receives that running
handlers do at once. Whatever comes while a turn is under way is found by the next poll, and is completed in the turn
after it. So the flood may take the rest of this turn, and at most one budget more.

Counted in chunks and bytes, not in seconds: the floods wait in the kernel before anything starts, so that the handlers
never come to an end of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import pytest

from shardnet.app import Kind
from shardnet.connection import Connection
from shardnet.watcher.counters import LOOP_TURNS
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, RECEIVES_PER_TURN_MAX
from tests.serving import Client, Serving, until

READ_BYTES: Final = 4096
RECORD_BYTES: Final = 10
# The modest peer speaks up at different places of a turn.
SPEAKS_AT: Final = range(1, 2 * (RECEIVES_PER_TURN_MAX + 1))

WORD: Final = b"!"  # What the modest peer says; the flood is of zeros.


class Scene:
    """Counts what is received until the modest peer is heard, who speaks up at the flood's chunk number `speaks_at`."""

    def __init__(self, speaks_at: int) -> None:
        self.modest: Client
        self.kit: Serving
        self.heard = False
        self.bytes_between = 0
        self.spoke_in_turn = 0
        self.heard_in_turn = 0
        self._until_it_speaks = speaks_at

    def received(self, data: bytes) -> None:
        if data == WORD:
            self.heard = True
            self.heard_in_turn = self.kit.engine.cells[LOOP_TURNS]
        elif self._until_it_speaks > 0:
            self._until_it_speaks -= 1
            if self._until_it_speaks == 0:
                self.modest.put(WORD)
                self.spoke_in_turn = self.kit.engine.cells[LOOP_TURNS]
        elif not self.heard:
            self.bytes_between += len(data)


def on_data(scene: Scene) -> Callable[[Connection, bytes], None]:
    return lambda conn, data: scene.received(data)


def protocol(scene: Scene) -> Callable[[], asyncio.Protocol]:
    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            scene.received(data)

    return Receiver


def conn_reading(scene: Scene) -> Callable[[Connection], Any]:
    async def handler(conn: Connection) -> None:
        while data := await conn.read(READ_BYTES):
            scene.received(data)

    return handler


def conn_of_chunks(scene: Scene) -> Callable[[Connection], Any]:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            scene.received(data)

    return handler


def conn_of_records(scene: Scene) -> Callable[[Connection], Any]:
    async def handler(conn: Connection) -> None:
        first = await conn.read(1)
        scene.received(first)
        while first != WORD:
            scene.received(await conn.read_exactly(RECORD_BYTES))

    return handler


def streams_reading(scene: Scene) -> Callable[..., Any]:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            scene.received(data)

    return handler


# How the handler is made, of which kind, whether it receives by itself while it runs, and the most of one receive.
HANDLERS: Final = [
    pytest.param(on_data, Kind.CALLBACK, 0, CHUNK_MAX_BYTES, id="callback"),
    pytest.param(protocol, Kind.PROTOCOL, 0, CHUNK_MAX_BYTES, id="protocol"),
    pytest.param(conn_reading, Kind.CONN, RECEIVES_PER_TURN_MAX, READ_BYTES, id="conn"),
    pytest.param(conn_of_chunks, Kind.CONN, RECEIVES_PER_TURN_MAX, CHUNK_MAX_BYTES, id="conn-chunks"),
    pytest.param(conn_of_records, Kind.CONN, RECEIVES_PER_TURN_MAX, RECORD_BYTES, id="conn-records"),
    pytest.param(streams_reading, Kind.STREAMS, RECEIVES_PER_TURN_MAX, CHUNK_MAX_BYTES, id="streams"),
]


async def flood(kit: Serving, count: int) -> list[Connection]:
    """Connections that receive nothing yet, with all that the kernel holds waiting for them."""
    flooded = []
    for _ in range(count):
        client, conn = await kit.open()
        conn.pause()
        with contextlib.suppress(BlockingIOError):
            while True:
                client.sock.send(bytes(CHUNK_MAX_BYTES))
        flooded.append(conn)
    return flooded


@pytest.mark.parametrize("flooding", [1, 5])
@pytest.mark.parametrize(("make_handler", "kind", "receives_at_once", "receive_max_bytes"), HANDLERS)
def test_flood_delays_the_others_by_one_turns_budget_at_most(
    make_handler: Callable[[Scene], Any], kind: Kind, receives_at_once: int, receive_max_bytes: int, flooding: int
) -> None:
    budget_bytes = (flooding + receives_at_once) * receive_max_bytes

    async def main(kit: Serving, scene: Scene) -> None:
        scene.kit = kit
        flooded = await flood(kit, flooding)
        scene.modest, _ = await kit.open()
        for conn in flooded:
            conn.resume()
        await until(lambda: scene.heard)
        assert scene.heard_in_turn <= scene.spoke_in_turn + 1
        assert scene.bytes_between <= 2 * budget_bytes, "the rest of the turn under way, and a whole one"
        assert any(conn.unread_in_kernel() for conn in flooded), "the flood was no flood: it is at its end"

    for speaks_at in SPEAKS_AT:
        scene = Scene(speaks_at)
        with Serving(make_handler(scene), kind=kind) as kit:
            kit.run(main(kit, scene))
