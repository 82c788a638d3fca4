"""Connections of the callback kind."""

from __future__ import annotations

import asyncio
import contextvars
import os
import random

import pytest

from shardnet.connection import Connection, Limits
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES
from tests.serving import Serving, until

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)
SMALL_BUFFER_BYTES = 4096
MUCH = random.Random(1).randbytes(1 << 20)


def echo(conn: Connection, data: bytes) -> None:
    conn.write(data)


def test_callback_gets_every_chunk_in_order() -> None:
    """Also a chunk that fills its read exactly: more may wait behind it, and the kernel says nothing about it again."""
    sizes = []

    def on_data(conn: Connection, data: bytes) -> None:
        sizes.append(len(data))
        conn.write(data)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        received = asyncio.create_task(client.receive_exactly(len(MUCH)))
        await client.send(MUCH)
        assert await received == MUCH
        client.put(b"last")
        assert await client.receive() == b"last"

    with Serving(on_data) as kit:
        kit.run(main(kit))
    assert max(sizes) <= CHUNK_MAX_BYTES


def test_callback_that_is_flooded_reads_on_after_a_full_chunk() -> None:
    got = []

    def on_data(conn: Connection, data: bytes) -> None:
        got.append(len(data))

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.pause()
        await client.send(bytes(CHUNK_MAX_BYTES + 1))
        await until(lambda: conn.unread_in_kernel() == CHUNK_MAX_BYTES + 1)
        conn.resume()
        await until(lambda: len(got) == 2)

    with Serving(on_data) as kit:
        kit.run(main(kit))
    assert got == [CHUNK_MAX_BYTES, 1]


def test_callback_runs_in_the_context_of_its_connection_and_in_no_task() -> None:
    seen = []

    def on_data(conn: Connection, data: bytes) -> None:
        seen.append((conn.id, NUMBER.get(), asyncio.current_task()))
        NUMBER.set(conn.id)
        conn.write(data)

    async def main(kit: Serving) -> None:
        NUMBER.set(7)
        clients = [(await kit.open())[0] for _ in range(2)]
        for _ in range(2):
            for client in clients:
                client.put(b"x")
                assert await client.receive() == b"x"
        assert NUMBER.get() == 7

    with Serving(on_data) as kit:
        kit.run(main(kit))
    assert seen == [(1, 0, None), (2, 0, None), (1, 1, None), (2, 2, None)]


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_exception_of_a_callback_ends_its_connection_only(error: type[BaseException]) -> None:
    def on_data(conn: Connection, data: bytes) -> None:
        conn.write(data)
        if data == b"bad":
            raise error("bad")

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        for client, data in zip(clients, (b"bad", b"ok", b"ok"), strict=True):
            client.put(data)
        assert await clients[0].receive_to_end() == b"bad"
        clients[0].close()
        for client in clients[1:]:
            assert await client.receive() == b"ok"
        await until(lambda: kit.closed() == {"ERROR": 1})
        [(event, fields, logged)] = kit.logged
        assert event == "handler raised"
        assert fields["connection"] == 1
        assert isinstance(logged, error)

    with Serving(on_data) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 1


def test_peer_that_does_not_listen_is_not_heard() -> None:
    """An echo of a peer that never reads holds a bounded number of bytes; the rest waits with the peer."""
    limits = Limits(write_high_bytes=20_000, write_low_bytes=5_000, write_hard_bytes=100_000)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.create_task(client.send(MUCH))
        await until(lambda: conn.unsent_bytes > limits.write_high_bytes)
        await until(lambda: conn.unread_in_kernel())
        assert not conn.reading
        assert conn.unsent_bytes <= limits.write_high_bytes + CHUNK_MAX_BYTES
        assert await client.receive_exactly(len(MUCH)) == MUCH
        await sending

    with Serving(echo, limits=limits, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_resume_does_not_go_round_the_backpressure() -> None:
    """A callback that pauses and resumes for each chunk used to be given the next one however much was unsent."""
    limits = Limits(write_high_bytes=20_000, write_low_bytes=5_000, write_hard_bytes=100_000)

    def on_data(conn: Connection, data: bytes) -> None:
        conn.pause()
        conn.write(data)
        conn.resume()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.create_task(client.send(MUCH))
        await until(lambda: conn.unsent_bytes > limits.write_high_bytes)
        await until(lambda: conn.unread_in_kernel())
        assert not conn.reading
        assert await client.receive_exactly(len(MUCH)) == MUCH
        await sending

    with Serving(on_data, limits=limits, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_pause_leaves_bytes_in_the_kernel_until_resume() -> None:
    got = []

    def on_data(conn: Connection, data: bytes) -> None:
        got.append(data)
        conn.pause()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"a")
        await until(lambda: got)
        for data in (b"b", b"c"):
            client.put(data)
            await until(lambda: conn.readable)
            assert conn.unread_in_kernel() == 1
            conn.resume()
            await until(lambda data=data: got[-1] == data)  # type: ignore[misc]
            assert not conn.reading

    with Serving(on_data) as kit:
        kit.run(main(kit))
    assert got == [b"a", b"b", b"c"]


def test_pause_by_another_connection_in_the_same_batch_keeps_the_chunk() -> None:
    """It was received already: it is delivered, once, when the connection is resumed, before anything newer."""
    got: list[tuple[int, bytes]] = []

    def on_data(conn: Connection, data: bytes) -> None:
        if not got:
            for other in conn.shard.connections:
                if other is not conn:
                    other.pause()
        got.append((conn.id, data))

    async def main(kit: Serving) -> None:
        opened = [await kit.open() for _ in range(2)]
        for client, _ in opened:
            client.put(b"1")
        await until(lambda: got)
        await asyncio.sleep(0)
        assert len(got) == 1
        [(client, conn)] = [(client, conn) for client, conn in opened if conn.id != got[0][0]]
        client.put(b"2")
        conn.resume()
        conn.pause()
        conn.resume()
        await until(lambda: len(got) == 3)
        assert got[1:] == [(conn.id, b"1"), (conn.id, b"2")]

    with Serving(on_data) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("end", ["close", "abort"])
def test_callback_may_end_its_connection(end: str) -> None:
    """It is not called again, and the descriptor is closed once."""
    calls = []

    def on_data(conn: Connection, data: bytes) -> None:
        calls.append(conn.fd)
        conn.write(b"bye")
        for _ in range(2):
            getattr(conn, end)()

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"x")
        if end == "close":
            assert await client.receive_to_end() == b"bye"
            client.put(b"more")
            client.close()
        await until(lambda: kit.closed() == {"LOCAL": 1})
        successors = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
        await asyncio.sleep(0)
        for successor in successors:
            os.close(successor)  # An error if somebody else has closed it.

    with Serving(on_data) as kit:
        kit.run(main(kit))
    assert len(calls) == 1


def test_end_of_the_peers_stream_flushes_and_closes() -> None:
    async def main(kit: Serving) -> None:
        client, _ = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.create_task(client.send(MUCH[:200_000]))
        received = asyncio.create_task(client.receive_exactly(200_000))
        await sending
        client.end()
        assert await received == MUCH[:200_000]
        assert await client.receive() == b""
        await until(lambda: kit.closed() == {"EOF": 1})

    with Serving(echo, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_reset_of_the_peer_is_counted_and_calls_nobody() -> None:
    calls = []

    def on_data(conn: Connection, data: bytes) -> None:
        calls.append(data)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.reset()
        early = kit.connect()
        early.reset()  # Before it is accepted.
        await until(lambda: kit.closed() == {"RESET": 2})
        assert kit.completions(Op.READ, Outcome.RESET) == 2

    with Serving(on_data) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 0
    assert calls == []


def test_callback_connection_needs_no_task() -> None:
    async def main(kit: Serving) -> None:
        before = len(asyncio.all_tasks())
        opened = [await kit.open() for _ in range(5)]
        assert len(asyncio.all_tasks()) == before
        assert all(conn.task is None for _, conn in opened)

    with Serving(echo) as kit:
        kit.run(main(kit))
