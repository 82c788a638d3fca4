"""Hosts: what the connections of one place share, and whom they tell of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shardnet.connection.stages import CloseReason
from shardnet.watcher.engine import Engine


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost."""

    write_high_bytes: int = 256 * 1024  # More than this unsent: `drain` waits, and a callback connection is not read.
    write_low_bytes: int = 64 * 1024  # Until no more than this is unsent.
    write_hard_bytes: int = 4 * 1024 * 1024  # More than this unsent: the connection is reset.
    write_stall_s: float = 30.0  # No unsent byte accepted by the kernel for so long: the connection is reset.
    linger_s: float = 2.0  # After our end of stream, how long to wait for the peer's.
    linger_bytes: int = 1024 * 1024  # And how much of what it still sends to throw away.
    line_max_bytes: int = 65536  # What a streams handler's `readline` looks through at most.


class Host:
    """What connections share, and tell of themselves. To be subclassed.

    `handler` is what they are served by: called as their kind is.
    """

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, limits: Limits, handler: Callable[..., Any]
    ) -> None:
        self.engine = engine
        self.swap = engine.swap
        self.loop = loop
        self.limits = limits
        self.handler = handler
        self.finished: asyncio.Future[None] = loop.create_future()  # One for every wake-up: see `resume`.
        self.finished.set_result(None)

    def closed(self, conn: Any, reason: CloseReason, error: BaseException | None) -> None:
        """`conn` has ended."""

    def lingered_out(self, conn: Any) -> None:
        """The peer of `conn`, which we have closed, did not end its stream in time."""

    def keep(self, task: asyncio.Task[Any], conn: Any) -> None:
        """Keep `task`, in which the handler of `conn` runs, and when it is done, call `conn.end_with(task)`."""

    def handler_raised(self, conn: Any, error: BaseException) -> None:
        """What `conn` calls has let `error` through."""
