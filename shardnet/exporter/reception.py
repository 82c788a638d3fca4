"""Who is let in to the pages, for how long, and who has to go when somebody new comes.

The exporter may be reached by others than those whom it is for. So that they cannot lock these out, nobody waits for
a place: when all are taken, whoever can be spared best gives theirs up. First those who have their answer and are only
being seen off, then those who stay for another request, then those whose request has not arrived yet, last those who
fetch an answer; of several, who has been at it longest. A scraper that asks as soon as it is connected is answered,
whatever the others do; one whose idle connection is gone opens another, as every HTTP client does.

Lives here: one connection, from accept to close, and the comparison with the others. Must not live here: HTTP, pages,
deadlines of requests.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from typing import TYPE_CHECKING, Final

from shardnet.exporter.http_pages import DEADLINE_S, HttpPages, Stage
from shardnet.exporter.renewed import Renewed
from shardnet.exporter.tls import TlsClient
from shardnet.log import Log

if TYPE_CHECKING:
    from shardnet.connection import Connection

__all__ = ["CLIENTS_MAX", "Reception"]

CLIENTS_MAX: Final = 16  # That are served at a time.

# To a client that has not heard of TLS, which others can read it as well as it can.
SPEAK_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this address speaks TLS: ask with https\n"
)


class Reception:
    """Leads clients to the pages, through TLS where there are certificates.

    `serve` and `on_connect` are an app's handler and hook; each connection's `state` is used.
    """

    def __init__(self, pages: HttpPages, certificates: Renewed[ssl.SSLContext] | None, log: Log) -> None:
        self._pages = pages
        self._certificates = certificates
        self._log = log
        self._moves = itertools.count()

    def on_connect(self, conn: Connection) -> None:
        """Make room for one more, if there is none."""
        others = [other for other in conn.shard.connections if other is not conn]
        self._move(conn, Stage.ASKING)
        surplus = max(0, len(others) + 1 - CLIENTS_MAX)
        for spared in sorted(others, key=lambda other: other.state)[:surplus]:
            spared.break_off(None)

    async def serve(self, conn: Connection) -> None:
        """Talk to one client."""
        try:
            if self._certificates is None:
                await self._pages.serve(conn, lambda stage: self._move(conn, stage))
            else:
                await self._serve_tls(conn, self._certificates.value())
        finally:
            self._move(conn, Stage.LEAVING)

    async def _serve_tls(self, conn: Connection, context: ssl.SSLContext | None) -> None:
        if context is None:
            return  # The log has said why.
        client = TlsClient(conn, context)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await client.handshake()
        except OSError as error:
            self._log.debug("no TLS", peer=conn.peer, why=error)
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                conn.write(SPEAK_TLS)
            return
        await self._pages.serve(client, lambda stage: self._move(conn, stage), certified=client.certified)
        client.end()

    def _move(self, conn: Connection, stage: Stage) -> None:
        conn.state = (stage, next(self._moves))
