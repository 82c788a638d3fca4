"""The event loop of a worker, where asyncio's tests make one.

It comes from `shardnet.loop.new_loop`, on an engine of its own that is closed with it. Its transports and servers are
asyncio's: for those of shardnet see `loop`.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any, ClassVar, Final
from unittest import mock

from shardnet.loop import new_loop
from shardnet.watcher.counters import LOOP_TURNS
from shardnet.watcher.engine import Engine

__all__ = ["WorkerLoop", "WorkerPolicy"]

_STOCK: Final = asyncio.SelectorEventLoop


class _IsStock(type):
    """A test may ask of what class its loop is."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _STOCK)


class WorkerLoop(metaclass=_IsStock):
    """In the place of `asyncio.SelectorEventLoop`: calling it makes a worker's loop.

    `turns_total` is how many turns the engines of all loops that were closed have made.
    """

    turns_total: ClassVar[int] = 0

    def __new__(cls, selector: selectors.BaseSelector | None = None) -> Any:
        if selector is not None:
            selector.close()  # A test has chosen one; ours is used instead.
        engine = Engine()
        with mock.patch.object(asyncio, "SelectorEventLoop", _STOCK):
            loop: Any = new_loop(engine)
        close_alone = loop.close

        def close() -> None:
            close_alone()
            if not engine.closed:
                WorkerLoop.turns_total += engine.cells[LOOP_TURNS]
                engine.close()

        loop.close = close
        return loop


class WorkerPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes workers' loops."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = WorkerLoop()
        return loop
