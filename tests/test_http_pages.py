"""HTTP as the pages speak it, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import http
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from shardnet.exporter.http_pages import HttpPages, Request, Response, Stage
from tests.page_server import PageServer, serving

SLOW_S = 0.05  # What is too slow, where the test is about slowness.


def echo(request: Request) -> Response:
    """Says what was asked."""
    lines = [request.path, *(f"{name}: {value}" for name, value in request.headers.items())]
    return Response(http.HTTPStatus.OK, "text/plain", "\n".join(lines).encode())


def run(test: Callable[[PageServer], Coroutine[Any, Any, None]], pages: HttpPages | None = None) -> None:
    """Runs the test against a server of these pages."""

    async def main() -> None:
        async with serving(pages or HttpPages(echo)) as server:
            await test(server)

    asyncio.run(main())


async def converse(server: PageServer, *sent: bytes, eof: bool = False) -> bytes:
    """Everything that the server says, until it closes, to a client that sends these pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.closing(writer):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        if eof:
            writer.write_eof()
        return await reader.read()


def receive_all(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


def test_pages_answer_a_get() -> None:
    async def test(server: PageServer) -> None:
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{server.url}/some/page?with=query")
        assert response.status_code == 200
        assert response.text.startswith("/some/page\n")
        assert response.headers["content-type"] == "text/plain"
        assert int(response.headers["content-length"]) == len(response.content)
        assert email.utils.parsedate_to_datetime(response.headers["date"])

    run(test)


def test_pages_answer_a_head_like_a_get_without_its_body() -> None:
    async def test(server: PageServer) -> None:
        async with httpx.AsyncClient() as client:
            head = await client.head(f"{server.url}/page")
            get = await client.get(f"{server.url}/page")
        assert head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"]
        assert server.connections == 1

    run(test)


def test_pages_serve_many_requests_of_one_client() -> None:
    async def test(server: PageServer) -> None:
        async with httpx.AsyncClient() as client:
            for n in range(50):
                assert (await client.get(f"{server.url}/{n}")).text.startswith(f"/{n}\n")
        assert server.connections == 1

    run(test)


def test_pages_answer_pipelined_requests_in_order() -> None:
    async def test(server: PageServer) -> None:
        requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(10))
        answer = await converse(server, requests, eof=True)
        bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
        assert bodies == [b"/%d\nhost: a" % n for n in range(10)]

    run(test)


def test_pages_take_a_request_that_comes_byte_by_byte() -> None:
    async def test(server: PageServer) -> None:
        request = b"GET /slowly HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = await converse(server, *(bytes([byte]) for byte in request))
        assert b"/slowly\n" in answer

    run(test)


@pytest.mark.parametrize(
    "ending",
    [b"HTTP/1.0\r\n\r\n", b"HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"],
)
def test_pages_close_when_the_client_wants_no_more(ending: bytes) -> None:
    async def test(server: PageServer) -> None:
        answer = await converse(server, b"GET / " + ending)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in answer.lower()

    run(test)


def test_pages_give_headers_by_lower_case_name_and_joined() -> None:
    async def test(server: PageServer) -> None:
        request = b"GET http://a/page HTTP/1.1\r\nHost: a\r\nAccept: x\r\nACCEPT: y\r\nConnection: close\r\n\r\n"
        answer = await converse(server, request)
        assert answer.endswith(b"/page\nhost: a\naccept: x, y\nconnection: close")

    run(test)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000, 431),
        (b"GET http://[a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:", 400),
    ],
)
def test_pages_refuse_what_they_do_not_serve(request_bytes: bytes, status: int) -> None:
    async def test(server: PageServer) -> None:
        answer = await converse(server, request_bytes, eof=True)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert body == b"" if request_bytes.startswith(b"HEAD") else body.endswith(b"\n")
        assert await server.ended.get() is None

    run(test)


def test_pages_go_on_after_a_method_that_they_do_not_serve() -> None:
    async def test(server: PageServer) -> None:
        async with httpx.AsyncClient() as client:
            response = await client.delete(server.url)
            assert response.status_code == 405
            assert response.headers["allow"] == "GET, HEAD"
            assert (await client.get(server.url)).status_code == 200
        assert server.connections == 1

    run(test)


def test_pages_say_when_each_answer_has_been_sent() -> None:
    happened: list[str] = []

    def respond(request: Request) -> Response:
        happened.append(request.path)
        return echo(request)

    async def test(server: PageServer) -> None:
        request = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
        await converse(server, request % 1, request % 2, eof=True)
        assert happened == ["/1", "sent", "/2", "sent"]

    run(test, HttpPages(respond, lambda: happened.append("sent")))


def test_pages_let_an_error_of_their_maker_through() -> None:
    def fail(request: Request) -> Response:
        raise OSError("ours, not the client's")

    async def test(server: PageServer) -> None:
        assert await converse(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        assert str(await server.ended.get()) == "ours, not the client's"

    run(test, HttpPages(fail))


# Clients that are slow, gone, or too many.


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_pages_cut_a_client_whose_request_does_not_arrive(begun: bytes) -> None:
    async def test(server: PageServer) -> None:
        assert await converse(server, begun) == b""

    run(test, HttpPages(echo, deadline_s=SLOW_S))


def test_pages_cut_a_client_whose_second_request_does_not_arrive() -> None:
    async def test(server: PageServer) -> None:
        answer = await converse(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP")
        assert answer.count(b"HTTP/1.1 ") == 1

    run(test, HttpPages(echo, deadline_s=SLOW_S))


def test_pages_end_with_a_client_that_stays_without_asking() -> None:
    async def test(server: PageServer) -> None:
        answer = await converse(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.count(b"HTTP/1.1 200") == 1

    run(test, HttpPages(echo, idle_max_s=SLOW_S))


def test_pages_cut_a_client_that_does_not_read() -> None:
    body = b"x" * 64 * 1024 * 1024  # More than both ends' kernels hold.

    async def test(server: PageServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await server.ended.get() is None
            with pytest.raises(ConnectionResetError):
                receive_all(client)

    run(test, HttpPages(lambda _: Response(http.HTTPStatus.OK, "text/plain", body), deadline_s=SLOW_S))


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_pages_shrug_at_a_client_that_resets(begun: bytes) -> None:
    async def test(server: PageServer) -> None:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.send(begun)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert await server.ended.get() is None

    run(test)


def test_pages_tell_how_far_a_client_is() -> None:
    async def test(server: PageServer) -> None:
        await converse(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", eof=True)
        assert server.stages == [Stage.ASKING, Stage.FETCHING, Stage.IDLE]

    run(test)
