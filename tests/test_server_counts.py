"""What a server counts besides connections and bytes: how long they lasted, pauses, and deadlines."""

from __future__ import annotations

import errno
from typing import Any

from shardnet.catalogue.families import DEADLINE_KINDS, DURATION_BUCKETS_S, PAUSE_REASONS
from shardnet.connection import Connection, Limits
from tests.serving import Serving, until


async def echo(conn: Connection) -> None:
    while data := await conn.read():
        await conn.send(data)


def counted(kit: Serving, first: int, words: tuple[str, ...]) -> dict[str, int]:
    counts = {word: int(kit.engine.cells[first + at]) for at, word in enumerate(words)}
    return {word: count for word, count in counts.items() if count}


def deadlines(kit: Serving) -> dict[str, int]:
    return counted(kit, kit.cells.deadlines_expired, DEADLINE_KINDS)


def pauses(kit: Serving) -> dict[str, int]:
    return counted(kit, kit.cells.accept_pauses, PAUSE_REASONS)


def test_duration_of_each_connection_is_counted_when_it_is_closed() -> None:
    async def main(kit: Serving) -> None:
        first = kit.cells.connection_duration
        durations = kit.engine.cells[first : first + len(DURATION_BUCKETS_S) + 1]
        for _ in range(3):
            client, _ = await kit.open()
            assert sum(durations) == kit.accepted_total() - 1
            client.close()
            await until(lambda: kit.active() == 0)
        assert sum(durations) == 3
        assert 0 < kit.engine.cells[first + len(DURATION_BUCKETS_S) + 1] < 3 * 60e9

    with Serving(echo) as kit:
        kit.run(main(kit))


def test_pause_at_the_limit_is_counted() -> None:
    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        assert pauses(kit) == {"limit": 1}
        clients[0].close()
        await until(lambda: kit.active() == 1)
        await kit.open()
        assert pauses(kit) == {"limit": 2}

    with Serving(echo, connections_max=2) as kit:
        kit.run(main(kit))


def test_pause_for_want_of_files_is_counted() -> None:
    with Serving(echo) as kit:
        kit.server._on_exhausted(OSError(errno.EMFILE, "Too many open files"))
        kit.server._on_exhausted(OSError(errno.EMFILE, "Too many open files"))
        assert pauses(kit) == {"files": 2}


def test_peer_that_does_not_end_its_stream_is_counted() -> None:
    async def hang_up(conn: Connection) -> None:
        await conn.send(b"bye")

    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive() == b"bye"
        await until(lambda: deadlines(kit) == {"linger": 1})

    with Serving(hang_up, limits=Limits(linger_s=0.01)) as kit:
        kit.run(main(kit))


def test_peer_that_takes_no_byte_is_counted() -> None:
    async def flood(conn: Connection) -> None:
        await conn.send(bytes(1 << 22))

    async def main(kit: Serving) -> None:
        kit.connect(receive_buffer_bytes=4096)
        await until(lambda: deadlines(kit) == {"write_stall": 1})
        assert kit.closed() == {"DEADLINE": 1}

    with Serving(flood, limits=Limits(write_stall_s=0.02), send_buffer_bytes=4096) as kit:
        kit.run(main(kit))


def test_connections_that_a_drain_cuts_are_counted() -> None:
    async def stay(conn: Connection) -> Any:
        await kit.loop.create_future()

    async def main(kit: Serving) -> None:
        for _ in range(3):
            await kit.open()
        assert not await kit.server.drain(0.01)
        assert deadlines(kit) == {"drain": 3}

    with Serving(stay) as kit:
        kit.run(main(kit))
