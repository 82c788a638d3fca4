"""Connections: sending, backpressure, and what a peer that does not read may cost."""

from __future__ import annotations

import asyncio
import hashlib
import random
from array import array

import pytest

from shardnet.connection import Connection, Limits
from shardnet.errors import DeadlineExceeded, WriteQueueOverflow
from shardnet.watcher.counters import Op, Outcome
from tests.serving import Client, Serving, the_task, until

SMALL_BUFFER_BYTES = 4096  # For the kernel's buffers, so that little data fills them.
MUCH = random.Random(1).randbytes(1 << 20)
LOW = Limits(write_high_bytes=20_000, write_low_bytes=5_000)


async def wait_in_read(conn: Connection) -> None:
    """A handler that leaves the sending to the test."""
    await conn.read()


async def open_narrow(kit: Serving) -> tuple[Client, Connection]:
    return await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)


def narrow(limits: Limits | None = None) -> Serving:
    return Serving(wait_in_read, limits=limits, send_buffer_bytes=SMALL_BUFFER_BYTES)


@pytest.mark.parametrize(
    "data",
    [b"\1\0\2\0", bytearray(b"\1\0\2\0"), memoryview(b"\1\0\2\0"), memoryview(array("H", [1, 2]))],
    ids=["bytes", "bytearray", "memoryview", "memoryview of numbers"],
)
def test_send_takes_any_contiguous_buffer(data: bytes | bytearray | memoryview) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        await conn.send(data)
        conn.write(data)
        assert await client.receive_exactly(8) == b"\1\0\2\0" * 2

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))
        assert kit.sent_bytes() == 8


@pytest.mark.parametrize("data", ["text", None, 5, memoryview(b"abcdef")[::2]])
def test_send_refuses_what_is_no_contiguous_buffer(data: object) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        for send in (conn.send, conn.write):
            with pytest.raises(TypeError):
                send(data)  # type: ignore[arg-type]
        await conn.send(b"well")
        assert await client.receive() == b"well"

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))


def test_send_of_nothing_is_nothing() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        await conn.send(b"")
        conn.write(b"")
        await conn.send(b"x")
        assert await client.receive() == b"x"

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))
        assert kit.completions(Op.WRITE, Outcome.OK) == 1


@pytest.mark.parametrize("turn", ["send", "write and drain"])
def test_every_byte_arrives_when_the_kernel_takes_a_little_at_a_time(turn: str) -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        received = asyncio.create_task(client.receive_exactly(len(MUCH)))
        for start in range(0, len(MUCH), 50_000):
            piece = MUCH[start : start + 50_000]
            if turn == "send":
                await conn.send(piece)
                assert conn.unsent_bytes == 0
            else:
                conn.write(piece[:100])
                conn.write(piece[100:])
                await conn.drain()
                assert conn.unsent_bytes <= LOW.write_high_bytes
        assert hashlib.sha256(await received).digest() == hashlib.sha256(MUCH).digest()
        assert conn.sent_bytes == len(MUCH) == kit.sent_bytes()
        assert conn._queue is None  # A write queue lives no longer than it is needed.

    with narrow(LOW) as kit:
        kit.run(main(kit))


def test_queued_buffer_is_copied_so_that_the_caller_may_change_it() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        data = bytearray(MUCH)
        conn.write(data)
        conn.write(memoryview(data)[:1000])
        assert conn.unsent_bytes
        data[:] = bytes(len(data))
        assert await client.receive_exactly(len(MUCH) + 1000) == MUCH + MUCH[:1000]

    with narrow() as kit:
        kit.run(main(kit))


def test_sends_that_wait_end_in_order_each_with_its_own_last_byte() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        order = []

        async def send(number: int) -> None:
            await conn.send(MUCH)
            assert conn.sent_bytes >= (number + 1) * len(MUCH)
            order.append(number)

        tasks = [asyncio.create_task(send(number)) for number in range(3)]
        await client.receive_exactly(3 * len(MUCH))
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]

    with narrow() as kit:
        kit.run(main(kit))


def test_cancelled_send_is_sent_all_the_same() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(conn.send(MUCH), 0.01)
        assert await client.receive_exactly(len(MUCH)) == MUCH

    with narrow() as kit:
        kit.run(main(kit))


def test_combinators_take_what_send_returns() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        both = asyncio.gather(conn.send(b"at once"), conn.send(b"at once"), conn.send(MUCH), conn.drain())
        await client.receive_exactly(14 + len(MUCH))
        await both

    with narrow() as kit:
        kit.run(main(kit))


def test_drain_waits_from_the_high_mark_down_to_the_low() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        conn.write(MUCH)
        assert conn.unsent_bytes > LOW.write_high_bytes
        drained = asyncio.ensure_future(conn.drain())
        while not drained.done():
            assert await client.receive(1000)
        assert conn.unsent_bytes <= LOW.write_low_bytes

    with narrow(LOW) as kit:
        kit.run(main(kit))


def test_write_past_the_hard_limit_resets_the_connection() -> None:
    """One write may be as large as it likes; it is the next one that finds too much unsent."""
    errors: list[BaseException] = []

    async def handler(conn: Connection) -> None:
        try:
            await conn.read()
        except OSError as error:
            errors.append(error)
            raise

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        task = the_task(conn)
        conn.write(MUCH)
        assert kit.active() == 1
        waiting = asyncio.ensure_future(conn.drain())
        conn.write(b"x")
        conn.write(b"y")  # Never raises for the network's reasons.
        with pytest.raises(WriteQueueOverflow):
            await waiting
        with pytest.raises(WriteQueueOverflow):
            await task
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()
        assert kit.closed() == {"ERROR": 1}
        assert kit.handler_exceptions == 0  # The peer erred, not the handler.

    with Serving(handler, limits=Limits(write_hard_bytes=100_000), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))
    assert isinstance(errors[0], WriteQueueOverflow)


def test_peer_that_accepts_nothing_is_reset_in_time() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        task = the_task(conn)
        with pytest.raises(DeadlineExceeded, match=r"no byte for 0\.05 s"):
            await conn.send(MUCH)
        with pytest.raises(DeadlineExceeded):
            await task
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()
        assert kit.closed() == {"DEADLINE": 1}

    with narrow(Limits(write_stall_s=0.05)) as kit:
        kit.run(main(kit))


def test_peer_that_accepts_a_little_is_not_stalled() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        conn.write(MUCH)
        for fired in range(3):
            sent = conn.sent_bytes
            while conn.sent_bytes == sent:
                await client.receive()
            await until(lambda fired=fired: kit.completions(Op.TIMER, Outcome.OK) > fired)  # type: ignore[misc]
        assert kit.active() == 1

    with narrow(Limits(write_stall_s=0.3)) as kit:
        kit.run(main(kit))


def test_stall_ends_with_the_last_byte() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        for _ in range(2):
            received = asyncio.create_task(client.receive_exactly(len(MUCH)))
            await conn.send(MUCH)
            await received
        assert kit.completions(Op.TIMER, Outcome.CANCELLED) == 2
        assert kit.completions(Op.TIMER, Outcome.OK) == 0

    with narrow() as kit:
        kit.run(main(kit))


def test_flood_of_one_connection_leaves_turns_to_the_others() -> None:
    """Reads and sends that need no wait still end: a handler that never parks would own the worker."""
    counts: dict[int, int] = {}

    async def handler(conn: Connection) -> None:
        async for data in conn:
            counts[conn.id] = counts.get(conn.id, 0) + 1
            await conn.send(data[:1])

    async def main(kit: Serving) -> None:
        flooding, _ = await kit.open()
        asking, _ = await kit.open()
        flood = asyncio.create_task(flooding.send(bytes(64 << 20)))
        for _ in range(20):
            asking.put(b"?")
            assert await asking.receive() == b"?"
        flood.cancel()
        await asyncio.wait([flood])

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_waits_for_drain_that_were_given_up_are_forgotten() -> None:
    """With a timeout around each `drain()`, a connection that makes little progress kept every wait until its end."""

    async def main(kit: Serving) -> None:
        client, conn = await open_narrow(kit)
        conn.write(MUCH)
        for _ in range(10):
            waiting = asyncio.ensure_future(conn.drain())
            waiting.cancel()
        sent_bytes = conn.sent_bytes
        await client.receive_exactly(100_000)
        await until(lambda: conn.sent_bytes > sent_bytes)
        assert conn.unsent_bytes
        assert conn._aside is not None
        assert conn._aside.senders is None
        conn.abort()

    with narrow() as kit:
        kit.run(main(kit))
