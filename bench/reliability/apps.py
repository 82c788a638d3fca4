"""One page for every server, each in its own form. It takes 2 ms, so that there is something in flight to be lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from shardnet.connection import Connection

PAGE: Final = b"here\n"
TAKES_S: Final = 0.002
HEAD_MAX_BYTES: Final = 4096
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(PAGE), PAGE)


async def handler(conn: Connection) -> None:
    """For shardnet, which leaves HTTP to its handlers."""
    await conn.read_until(b"\r\n\r\n", limit=HEAD_MAX_BYTES)
    await asyncio.sleep(TAKES_S)
    await conn.send(ANSWER)


async def asgi(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await asyncio.sleep(TAKES_S)
    headers = [(b"content-length", b"%d" % len(PAGE)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE})


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    time.sleep(TAKES_S)
    start_response("200 OK", [("Content-Length", str(len(PAGE)))])
    return [PAGE]
