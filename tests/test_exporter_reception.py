"""Who has to go when more clients come than are served at a time. Deadlines are hours here: time solves nothing."""

from __future__ import annotations

import http
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest

from shardnet.app import App
from shardnet.exporter.http_pages import HttpPages, Request, Response
from shardnet.exporter.options import TlsFiles
from shardnet.exporter.reception import CLIENTS_MAX, Reception
from shardnet.exporter.renewed import Renewed
from shardnet.exporter.tls import load_context
from shardnet.log import get_logger
from tests.exporter_kit import Authority, authority
from tests.serving import Client, Serving, until

__all__ = ["authority"]  # A fixture.

HOURS_S: Final = 3 * 3600.0
BIG: Final = b"x" * (64 * 1024 * 1024)  # More than both ends' kernels hold.
GET: Final = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
GET_BIG: Final = b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n"
BEGUN: Final = b"GET /page HTTP/1.1\r\nHost:"
ANSWERED: Final = b"page"

Main = Callable[[Serving], Coroutine[Any, Any, None]]


def respond(request: Request) -> Response:
    return Response(http.HTTPStatus.OK, "text/plain", BIG if request.path == "/big" else ANSWERED)


def run(main: Main, certificates: Renewed[ssl.SSLContext] | None = None) -> None:
    pages = HttpPages(respond, deadline_s=HOURS_S, idle_max_s=HOURS_S)
    reception = Reception(pages, certificates, get_logger("test"))
    app = App(reception.serve, on_connect=reception.on_connect)
    with Serving(app, connections_max=CLIENTS_MAX + 1) as kit:
        kit.run(main(kit))


async def scrape(client: Client) -> None:
    """Ask, and have the answer; the connection stays."""
    await client.send(GET)
    received = b""
    while not received.endswith(ANSWERED):
        data = await client.receive()
        assert data, "the end of the stream instead of an answer"
        received += data


def is_open(client: Client) -> bool:
    """Whether the server has neither closed nor reset."""
    try:
        return client.sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def open_ones(clients: list[Client]) -> list[int]:
    return [number for number, client in enumerate(clients) if is_open(client)]


async def idle(kit: Serving) -> Client:
    client, _ = await kit.open()
    await scrape(client)
    return client


async def asking(kit: Serving) -> Client:
    client, _ = await kit.open()
    client.put(BEGUN)
    return client


async def silent(kit: Serving) -> Client:
    client, _ = await kit.open()
    return client


async def fetching(kit: Serving) -> Client:
    """It has asked for much, and does not read it."""
    client, conn = await kit.open(receive_buffer_bytes=4096)
    client.put(GET_BIG)
    await until(lambda: conn.unsent_bytes > 0)
    return client


@pytest.mark.parametrize("kind", [silent, asking, idle, fetching], ids=lambda kind: kind.__name__)
def test_client_is_answered_whatever_a_hundred_others_do(
    kind: Callable[[Serving], Coroutine[Any, Any, Client]],
) -> None:
    """Law: nobody waits for a place."""

    async def main(kit: Serving) -> None:
        clients = []
        for _ in range(20 if kind is fetching else 100):
            clients.append(await kind(kit))
            assert kit.server.active <= CLIENTS_MAX
        scraper, _ = await kit.open()
        await scrape(scraper)
        await scrape(scraper)
        assert kit.server.active == CLIENTS_MAX
        assert kit.handler_exceptions == 0

    run(main)


def test_clients_that_come_at_once_are_let_in_one_after_the_other() -> None:
    """They are accepted in one turn, before any handler has run."""

    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(3 * CLIENTS_MAX)]
        for client in clients:
            client.put(GET)
        await until(lambda: kit.accepted_total() == 3 * CLIENTS_MAX)
        await kit.accepted(clients[-1])
        assert (await clients[-1].receive()).endswith(ANSWERED)
        assert kit.server.active == CLIENTS_MAX

    run(main)


def test_idle_clients_go_before_those_that_ask_and_these_before_those_that_fetch() -> None:
    """Law: of those that can be spared alike, who has been at it longest."""

    async def main(kit: Serving) -> None:
        fetchers = [await fetching(kit) for _ in range(2)]
        askers = [await asking(kit) for _ in range(2)]
        idlers = [await idle(kit) for _ in range(CLIENTS_MAX - 4)]
        await scrape(idlers[0])  # Now it has been idle for a shorter time than any other.
        newcomers = []
        for gone in range(1, CLIENTS_MAX - 4):
            newcomers.append(await asking(kit))
            assert open_ones(idlers) == [0, *range(gone + 1, CLIENTS_MAX - 4)]
        newcomers.append(await asking(kit))
        assert open_ones(idlers) == []
        assert open_ones(askers) == [0, 1]
        newcomers.append(await asking(kit))
        assert open_ones(askers) == [1]
        newcomers.append(await asking(kit))
        assert open_ones(askers) == []
        assert open_ones(newcomers) == list(range(len(newcomers)))
        assert len(fetchers) == 2
        assert kit.server.active == CLIENTS_MAX

    run(main)


def test_client_that_is_only_seen_off_goes_first_of_all() -> None:
    async def main(kit: Serving) -> None:
        idlers = [await idle(kit) for _ in range(CLIENTS_MAX - 1)]
        leaver, conn = await kit.open()
        leaver.put(b"GET /page HTTP/1.0\r\n\r\n")
        assert (await leaver.receive_to_end()).endswith(ANSWERED)
        await until(lambda: conn.lingering)
        assert kit.server.active == CLIENTS_MAX
        await asking(kit)
        assert open_ones(idlers) == list(range(CLIENTS_MAX - 1))

    run(main)


def test_client_that_makes_room_has_all_of_its_answer() -> None:
    """Law: with the end of its connection it is not told that what it has got was not all."""

    async def main(kit: Serving) -> None:
        first, _ = await kit.open()
        first.put(GET)
        await until(lambda: kit.sent_bytes() > 0)
        for _ in range(CLIENTS_MAX):
            await idle(kit)
        assert (await first.receive_to_end()).endswith(ANSWERED)

    run(main)


def test_handshakes_make_room_like_requests(authority: Authority) -> None:
    files = TlsFiles(*authority.issue("reception"))

    async def main(kit: Serving) -> None:
        for _ in range(2 * CLIENTS_MAX):
            client, _ = await kit.open()
            client.put(b"\x16\x03\x01\x02\x00\x01\x00")
        assert kit.server.active == CLIENTS_MAX
        client = kit.connect()
        await kit.accepted(client)
        assert kit.server.active == CLIENTS_MAX
        assert is_open(client)

    run(main, Renewed(files.paths, lambda: load_context(files), get_logger("test")))


def test_reception_without_a_certificate_lets_nobody_in(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "crt", tmp_path / "key")

    async def main(kit: Serving) -> None:
        client = kit.connect()
        client.put(GET)
        assert await client.receive_to_end() == b""

    run(main, Renewed(files.paths, lambda: load_context(files), get_logger("test")))
