"""The vocabulary of apps: the kinds of handlers, and what goes with one."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

LINE_MAX_BYTES: Final = 65536  # As in asyncio: what `readline` and `readuntil` look through at most.

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class Kind(enum.StrEnum):
    """How a handler is called."""

    CONN = "conn"
    STREAMS = "streams"
    CALLBACK = "callback"
    PROTOCOL = "protocol"


FORMS: Final = {
    Kind.CONN: "async def handler(conn)",
    Kind.STREAMS: "async def handler(reader, writer)",
    Kind.CALLBACK: "def on_data(conn, data)",
    Kind.PROTOCOL: "an asyncio.Protocol class (or a factory)",
}


@dataclass(frozen=True, slots=True)
class App:
    """A handler, and what goes with it. Where a handler's name is asked for, that of an App does as well.

    Args:
        handler: `async def handler(conn)`, `async def handler(reader, writer)`, `def on_data(conn, data)`, or an
            `asyncio.Protocol` class or a factory of them.
        kind: Which of these it is ("conn", "streams", "callback", "protocol"), where that cannot be seen from its
            parameters.
        lifespan: `lifespan(shard)`, an async context manager, is entered in each worker before it serves and left when
            its last connection has ended. What it makes for the handlers, it may put into `shard.state`.
        on_connect: `on_connect(conn)` is called when a connection was accepted, before its handler. If it closes the
            connection, the handler is not called.
        on_disconnect: `on_disconnect(conn, error)` is called once when a connection has ended; `error` is None, or what
            the network or the handler ended it with.
        on_drain: `on_drain(conn)` is called once for each connection when its worker begins to drain: to say goodbye.
        limit: The most bytes that `readline` and `readuntil` of a streams handler look through, as in
            `asyncio.start_server`.

    The three hooks are plain functions, called between other connections' work: they must not block.
    """

    handler: Any
    _: KW_ONLY
    kind: Kind | str | None = None
    lifespan: Lifespan | None = None
    on_connect: Callable[[Any], object] | None = None
    on_disconnect: Callable[[Any, BaseException | None], object] | None = None
    on_drain: Callable[[Any], object] | None = None
    limit: int = LINE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Handler:
    """An app that was found in order: its function, which `kind` says how to call, and its hooks."""

    kind: Kind
    function: Callable[..., Any]
    lifespan: Lifespan | None = None
    on_connect: Callable[[Any], object] | None = None
    on_disconnect: Callable[[Any, BaseException | None], object] | None = None
    on_drain: Callable[[Any], object] | None = None
    limit: int = LINE_MAX_BYTES
    name: str = "handler"  # As errors call it.
