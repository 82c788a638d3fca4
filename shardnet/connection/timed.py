"""Connections that tell who holds the loop: asyncio's debug mode, for what asyncio does not call itself.

It times its own callbacks. What the arrival of bytes calls directly, a handler that goes on after its read, an
`on_data`, a protocol, is nested in a poll to it. Nothing here is paid for unless the loop is in debug mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shardnet.connection.connection import Connection

__all__ = ["timed"]


def timed(base: type[Connection], tell: Callable[[Connection, float], None]) -> type[Connection]:
    """A class like `base` that calls `tell(conn, took_s)` after each arrival, of bytes or of the end, that was dealt
    with."""

    def on_received(self: Connection, start: int, size: int) -> None:
        begun_s = time.monotonic()
        base.on_received(self, start, size)
        tell(self, time.monotonic() - begun_s)

    def on_end(self: Connection) -> None:
        begun_s = time.monotonic()
        base.on_end(self)
        tell(self, time.monotonic() - begun_s)

    return type(f"Timed{base.__name__}", (base,), {"__slots__": (), "on_received": on_received, "on_end": on_end})
