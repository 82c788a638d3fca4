"""The lifespan of an app, which surrounds its serving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shardnet.app import App
from shardnet.connection import Connection, Shard
from shardnet.errors import AppError
from tests.hook_kit import conn_echo
from tests.serving import Serving, until

# The lifespan.


def test_lifespan_surrounds_serving_and_shares_its_state() -> None:
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(shard: Shard) -> AsyncIterator[None]:
        order.append(f"begin {shard.id} of {shard.count}")
        shard.state.greeting = b"from the lifespan"
        yield
        order.append("end")

    async def handler(conn: Connection) -> None:
        order.append("handler")
        await conn.send(conn.shard.state.greeting)

    async def main(kit: Serving) -> None:
        async with kit.server.lifespan():
            assert order == ["begin 0 of 1"]
            client = kit.connect()
            assert await client.receive_to_end() == b"from the lifespan"
            client.close()
            await until(lambda: not kit.active())
        assert order == ["begin 0 of 1", "handler", "end"]

    with Serving(App(handler, lifespan=lifespan)) as kit:
        kit.run(main(kit))


def test_lifespan_may_hold_a_task_group() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(shard: Shard) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            queue: asyncio.Queue[int] = asyncio.Queue(1)
            shard.state.queue = queue
            filling = tasks.create_task(fill(queue))
            yield
            filling.cancel()

    async def fill(queue: asyncio.Queue[int]) -> None:
        for number in range(1000):
            await queue.put(number)

    async def handler(conn: Connection) -> None:
        await conn.send(b"%d" % await conn.shard.state.queue.get())

    async def main(kit: Serving) -> None:
        async with kit.server.lifespan():
            for number in range(5):
                client = kit.connect()
                assert await client.receive_to_end() == b"%d" % number
                client.close()

    with Serving(App(handler, lifespan=lifespan)) as kit:
        kit.run(main(kit))


@contextlib.asynccontextmanager
async def raises_first(shard: Shard) -> AsyncIterator[None]:
    raise LookupError("no database\nsecond line")
    yield


@contextlib.asynccontextmanager
async def exits(shard: Shard) -> AsyncIterator[None]:
    raise SystemExit("no database")
    yield


@contextlib.asynccontextmanager
async def never_yields(shard: Shard) -> AsyncIterator[None]:
    if shard is None:
        yield


async def returns_none(shard: Shard) -> None: ...
@contextlib.contextmanager
def plain_manager(shard: Shard) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("lifespan", "what"),
    [
        (raises_first, "the lifespan raised LookupError: no database"),
        (exits, "the lifespan raised SystemExit: no database"),
        (never_yields, "the lifespan raised RuntimeError: generator didn't yield"),
        (lambda shard: 1 / 0, "the lifespan raised ZeroDivisionError: division by zero"),
        (lambda shard: 5, "lifespan(shard) returned an int, which is no async context manager"),
        (lambda shard: returns_none(shard), "lifespan(shard) returned a coroutine, which is no async context manager"),
        (
            lambda shard: plain_manager(shard),
            "lifespan(shard) returned a _GeneratorContextManager, which is no async context manager",
        ),
    ],
    ids=["raises", "exits", "never_yields", "raises_when_called", "number", "coroutine", "plain_manager"],
)
def test_lifespan_that_does_not_begin_is_told_in_one_line(lifespan: Any, what: str) -> None:
    async def main(kit: Serving) -> None:
        with pytest.raises(AppError) as caught:
            async with kit.server.lifespan():
                raise AssertionError("it began")
        assert str(caught.value) == f"handler: {what}"

    with Serving(App(conn_echo, lifespan=lifespan)) as kit:
        kit.run(main(kit))


def test_lifespan_is_left_when_the_factory_of_protocols_fails() -> None:
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(shard: Shard) -> AsyncIterator[None]:
        order.append("begin")
        try:
            yield
        finally:
            order.append("end")

    async def main(kit: Serving) -> None:
        with pytest.raises(AppError, match=r"handler makes None, no asyncio\.Protocol"):
            async with kit.server.lifespan():
                raise AssertionError("it began")
        assert order == ["begin", "end"]

    with Serving(App(lambda: None, lifespan=lifespan)) as kit:
        kit.run(main(kit))
