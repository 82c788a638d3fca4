"""Direct resumption: a handler must not notice that its reads do not go the usual way of asyncio.

Every law is tested with every implementation of Task, and with asyncio's debug mode.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections.abc import Iterator

import pytest

from shardnet.connection import Connection
from shardnet.watcher import ENGINE
from tests.serving import MODES, Serving, collect_garbage, the_task, this_task, until

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)
CHAIN_LENGTH = 1000

pytestmark = pytest.mark.parametrize("mode", MODES)


def stack() -> list[str]:
    """The names of the functions that are running."""
    names = []
    frame = sys._getframe(1)
    while frame.f_back is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


# What a resumed task sees.


def test_resumed_task_finds_its_context_its_task_and_its_loop(mode: str) -> None:
    seen = []

    async def handler(conn: Connection) -> None:
        NUMBER.set(conn.id)
        task = this_task()
        async for data in conn:
            seen.append((NUMBER.get() == conn.id, this_task() is task, asyncio.get_running_loop() is conn._host.loop))
            await conn.send(data)

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        for turn in (b"1", b"2", b"3"):
            for client in clients:
                client.put(turn)
            for client in clients:
                assert await client.receive() == turn
        assert NUMBER.get() == 0

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == [(True, True, True)] * 9


def test_read_is_resumed_from_inside_select(mode: str) -> None:
    stacks = []

    async def handler(conn: Connection) -> None:
        await conn.read()
        stacks.append(stack())

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"x")
        await until(lambda: stacks)

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert ("select" if ENGINE == "python" else "_run_once") in stacks[0]  # Compiled code has no frames.
    assert "_run" not in stacks[0]  # That of a Handle.


def test_parked_task_shows_where_it_waits(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        task = the_task(conn)
        assert "pending" in repr(task)
        assert "handler" in repr(task)
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["handler"]
        coro = task.get_coro()
        assert coro is not None
        assert getattr(coro, "cr_await", None) is not None

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))


# The batch.


def test_exception_of_one_handler_leaves_the_rest_of_the_batch(mode: str) -> None:
    async def handler(conn: Connection) -> bytes:
        data = await conn.read()
        if data == b"bad":
            raise LookupError("bad")
        return data

    async def main(kit: Serving) -> None:
        opened = [await kit.open() for _ in range(3)]
        tasks = [the_task(conn) for _, conn in opened]
        for (client, _), data in zip(opened, (b"bad", b"ok", b"ok"), strict=True):
            client.put(data)
        bad, *good = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, LookupError)
        assert good == [b"ok", b"ok"]

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_raised_by_a_resumed_handler_ends_its_connection_only(mode: str, error: type[BaseException]) -> None:
    async def handler(conn: Connection) -> None:
        async for data in conn:
            if data == b"bad":
                raise error
            await conn.send(data)

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(3)]
        for client, data in zip(clients, (b"bad", b"ok", b"ok"), strict=True):
            client.put(data)
        assert await clients[0].receive() == b""
        assert await clients[1].receive() == b"ok"
        assert await clients[2].receive() == b"ok"
        clients[0].close()
        await until(lambda: kit.closed() == {"ERROR": 1})

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_raised_by_a_deferred_completion_leaves_the_loop_usable(
    mode: str, error: type[BaseException]
) -> None:
    """It ends the run, as asyncio has it; what else was due happens in the next one."""
    ended = []

    async def handler(conn: Connection) -> None:
        if await conn.read() == b"":
            ended.append(conn.id)
            if len(ended) == 1:
                raise error

    async def main(kit: Serving) -> None:
        conns = [(await kit.open())[1] for _ in range(3)]
        for conn in conns:
            conn.close()
        await until(lambda: len(ended) == 3)

    with Serving(handler, mode=mode) as kit:
        task = kit.loop.create_task(main(kit))
        with pytest.raises(error):
            kit.loop.run_until_complete(task)
        assert len(ended) == 1
        kit.loop.run_until_complete(task)
        assert kit.handler_exceptions == 1


def test_interrupt_raised_before_the_first_wait_ends_its_connection(mode: str) -> None:
    async def handler(conn: Connection) -> None:
        raise SystemExit

    async def main(kit: Serving) -> None:
        assert await kit.connect().receive() == b""

    with Serving(handler, mode=mode) as kit:
        task = kit.loop.create_task(main(kit))
        if mode == "eager task":  # Started from inside select, where an exception would take the whole batch with it.
            kit.loop.run_until_complete(task)
            kit.loop_errors.clear()  # asyncio complains of a task that nobody was given.
        else:
            with pytest.raises(SystemExit):
                kit.loop.run_until_complete(task)
            kit.loop.run_until_complete(task)
        assert kit.handler_exceptions == 1


def test_chain_of_completions_needs_no_stack(mode: str) -> None:
    """Each handler's end of stream makes the next one's."""
    conns: list[Connection] = []
    depths: list[int] = []

    async def handler(conn: Connection) -> None:
        following = len(conns) + 1
        conns.append(conn)
        await conn.read()
        depths.append(len(stack()))
        if following < CHAIN_LENGTH:
            conns[following].close()

    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(CHAIN_LENGTH)]
        await until(lambda: len(conns) == CHAIN_LENGTH)
        clients[0].put(b"x")  # Only one of the handlers is first, whichever client it serves.
        conns[0].close()
        await until(lambda: len(depths) == CHAIN_LENGTH)

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert max(depths) - min(depths) <= 5


def test_bytes_stay_in_the_kernel_while_nobody_reads(mode: str) -> None:
    seen: list[object] = []

    async def handler(conn: Connection) -> None:
        seen.append(await conn.read())
        while conn.unread_in_kernel() < 5:
            await asyncio.sleep(0)
        seen.append(kit.received_bytes())
        conn.read()  # Not awaited: takes nothing.
        seen.append(conn.unread_in_kernel())
        seen.append(await conn.read())

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"1")
        await until(lambda: seen)
        client.put(b"23")
        client.put(b"456")
        await task

    with Serving(handler, mode=mode) as kit:
        kit.run(main(kit))
    assert seen == [b"1", 1, 5, b"23456"]


# The end.


def test_loop_stops_when_a_handler_says_so(mode: str) -> None:
    seen = []

    async def handler(conn: Connection) -> None:
        async for data in conn:
            seen.append(data)
            asyncio.get_running_loop().stop()

    with Serving(handler, mode=mode) as kit:
        client = kit.connect()
        for data in (b"1", b"2"):
            client.put(data)
            kit.loop.run_forever()
            assert seen[-1] == data


@pytest.fixture
def no_collector_surprises() -> Iterator[None]:
    collect_garbage()
    yield
    collect_garbage()  # What goes wrong in a finalizer becomes a warning, and with that an error of this test.


@pytest.mark.usefixtures("no_collector_surprises")
def test_task_may_be_destroyed_while_parked(mode: str) -> None:
    closed = []

    async def handler(conn: Connection) -> None:
        try:
            await conn.read()
        finally:
            closed.append(conn.id)

    async def main(kit: Serving) -> None:
        await kit.open()
        await kit.open()

    kit = Serving(handler, mode=mode)
    kit.run(main(kit))
    kit.close(cancel=False)
    errors = kit.loop_errors
    del kit
    collect_garbage()
    assert sorted(closed) == [1, 2]
    assert {str(context["message"]) for context in errors} <= {"Task was destroyed but it is pending!"}


@pytest.mark.usefixtures("no_collector_surprises")
def test_destroyed_task_may_use_its_connection_once_more(mode: str) -> None:
    """Its `finally` runs when the loop and the engine are closed already: nothing is sent, and nothing raises."""
    raised = []

    async def handler(conn: Connection) -> None:
        try:
            await conn.read()
        finally:
            try:
                conn.write(b"bye")
                conn.pause()
                conn.resume()
                conn.close()
                conn.abort()
            except Exception as error:
                raised.append(error)

    async def main(kit: Serving) -> None:
        await kit.open()

    kit = Serving(handler, mode=mode)
    kit.run(main(kit))
    kit.close(cancel=False)
    del kit
    collect_garbage()
    assert raised == []


def test_connection_needs_no_collector_once_it_has_ended_well(mode: str) -> None:
    """A cycle in each connection would leave thousands a second to the garbage collector."""
    freed = []

    class Canary:
        def __del__(self) -> None:
            freed.append(True)

    async def handler(conn: Connection) -> None:
        conn.state = Canary()
        async for data in conn:
            await conn.send(data)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(b"x")
        assert await client.receive() == b"x"
        client.close()
        await until(lambda: kit.closed() == {"EOF": 1})
        await asyncio.sleep(0)

    with Serving(handler, mode=mode) as kit:
        gc.disable()
        try:
            kit.run(main(kit))
            assert freed == [True]
        finally:
            gc.enable()
