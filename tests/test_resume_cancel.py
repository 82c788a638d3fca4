"""Direct resumption: cancelling, timeouts, and asyncio's ways to wait for several things.

The laws: a cancelled read loses no byte, a cancellation is thrown once and never from inside `cancel`, and what `read`
returns may be handed to anything that takes an awaitable.
"""

from __future__ import annotations

import asyncio

import pytest

from shardnet.connection import Connection
from tests.serving import MODES, Serving, the_task, this_task, until

pytestmark = pytest.mark.parametrize("mode", MODES)


def test_timeout_of_a_parked_read_loses_nothing(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        try:
            async with asyncio.timeout(0.01):
                await conn.read()
        except TimeoutError:
            seen.append("timeout")
        seen.append(this_task().cancelling())
        seen.append(await conn.read())
        async with asyncio.timeout(60):
            seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        await until(lambda: seen)
        client.put(b"a")
        await until(lambda: len(seen) == 3)
        client.put(b"b")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["timeout", 0, b"a", b"b"]


def test_cancel_of_a_parked_read_carries_its_message_and_can_be_undone(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> int:
        try:
            await conn.read()
        except asyncio.CancelledError as error:
            seen.append(error.args)
            this_task().uncancel()
        seen.append(await conn.read())
        return 7

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        assert task.cancel("why")
        assert seen == []  # Never inline.
        await until(lambda: seen)
        client.put(b"z")
        assert await task == 7

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == [("why",), b"z"]


def test_cancel_twice_throws_once(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        for _ in range(2):
            try:
                seen.append(await conn.read())
            except asyncio.CancelledError:
                seen.append("cancelled")

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        task.cancel()
        task.cancel()
        await until(lambda: seen)
        client.put(b"z")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["cancelled", b"z"]


def test_cancel_that_nobody_catches_ends_the_task_and_its_connection(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        assert task.cancel()
        assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert await client.receive() == b""
        assert kit.handler_exceptions == 0

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("swap_size_bytes", [1, 65536], ids=["before its bytes are reaped", "after"])
def test_cancel_by_an_earlier_completion_of_the_batch_keeps_the_bytes(mode: str, swap_size_bytes: int) -> None:
    """Two connections get bytes at once; whoever is resumed first cancels the other."""
    seen: list[object] = []
    tasks: list[asyncio.Task[object]] = []

    async def handler(conn: Connection) -> None:
        tasks.append(this_task())
        try:
            seen.append(await conn.read())
            [other] = [task for task in tasks if task is not this_task()]
            other.cancel()
        except asyncio.CancelledError:
            seen.append("cancelled")
            this_task().uncancel()
            seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        for client in clients:
            client.put(b"x")
        await asyncio.wait(tasks)

    with Serving(handler, mode=mode, swap_size_bytes=swap_size_bytes) as kit:
        kit.run(main(kit))
    assert seen == [b"x", "cancelled", b"x"]


def test_cancel_after_a_deferred_completion_is_thrown_once(mode: str) -> None:
    """Closing by running code completes the read in the next turn; a cancel that comes before that one wins."""
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        try:
            seen.append(await conn.read())
        except asyncio.CancelledError:
            seen.append("cancelled")
            this_task().uncancel()
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        task = the_task(conn)
        conn.close()
        task.cancel()
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["cancelled", b""]


def test_close_after_a_cancel_resumes_once(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        try:
            seen.append(await conn.read())
        except asyncio.CancelledError:
            seen.append("cancelled")
            this_task().uncancel()
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        task = the_task(conn)
        task.cancel()
        conn.close()
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["cancelled", b""]


def test_task_that_cancelled_itself_is_thrown_at_when_it_parks(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        seen.append(await conn.read())
        this_task().cancel()
        try:
            await conn.read()
        except asyncio.CancelledError:
            seen.append("cancelled")
            this_task().uncancel()
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"1")
        await until(lambda: len(seen) == 2)
        client.put(b"2")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == [b"1", "cancelled", b"2"]


# Combinators.


def test_task_group_cancels_a_parked_read(mode: str) -> None:
    seen: list[object] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def read(conn: Connection) -> None:
        await conn.read()

    async def handler(conn: Connection) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read(conn))
                group.create_task(fail())
        except* LookupError:
            seen.append("failed")
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        await until(lambda: seen)
        client.put(b"x")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["failed", b"x"]


def test_combinators_take_what_read_returns(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        seen.append(await asyncio.gather(conn.read(), asyncio.sleep(0, "slept")))
        for timeout_s in (0.01, 0):
            try:
                await asyncio.wait_for(conn.read(), timeout_s)
            except TimeoutError:
                seen.append("timeout")
        seen.append(await asyncio.wait_for(conn.read(), 60))
        shielded = asyncio.ensure_future(conn.read())
        try:
            await asyncio.wait_for(asyncio.shield(shielded), 0.01)
        except TimeoutError:
            seen.append("shielded")
        seen.append(await shielded)
        done, pending = await asyncio.wait([asyncio.ensure_future(conn.read())], timeout=0.01)
        seen.append((len(done), len(pending)))
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        for data, heard in ((b"a", 0), (b"b", 3), (b"c", 5), (b"d", 7)):
            await until(lambda heard=heard: len(seen) == heard)  # type: ignore[misc]
            client.put(data)
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == [[b"a", "slept"], "timeout", "timeout", b"b", "shielded", b"c", (0, 1), b"d"]


def test_combinators_take_the_parked_task(mode: str) -> None:
    async def handler(conn: Connection) -> bytes:
        return await conn.read()

    async def main(kit: Serving) -> None:
        opened = [await kit.open() for _ in range(3)]
        tasks = [the_task(conn) for _, conn in opened]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(tasks[0]), 0.01)
        _, pending = await asyncio.wait(tasks, timeout=0.01)
        assert len(pending) == 3
        for client, _ in opened:
            client.put(b"x")
        assert await asyncio.gather(*tasks) == [b"x"] * 3

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))


def test_second_reader_is_refused_and_takes_nothing(mode: str) -> None:
    """Bytes that a framing call has gathered are not another reader's either, though no wait is needed for them."""
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        first = asyncio.create_task(conn.read_exactly(6))
        while not conn._buffered():
            await asyncio.sleep(0)
        for read in (conn.read(), conn.read(0), conn.read_exactly(1), conn.read_until(b"\n"), anext(aiter(conn))):
            try:
                await read
            except RuntimeError as error:
                seen.append(str(error))
        seen.append(await first)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"ab\n")
        await until(lambda: len(seen) == 5)
        client.put(b"cd\n")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == ["read: another task is reading from this connection"] * 5 + [b"ab\ncd\n"]
