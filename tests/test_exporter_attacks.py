"""The exporter under clients that mean harm: it answers all the same, and has no more files open than it may."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from shardnet.exporter.options import ExporterOptions, TlsFiles
from shardnet.exporter.reception import CLIENTS_MAX
from tests.exporter_kit import Answer, Authority, RunningExporter, authority, exchange, exporting

__all__ = ["authority"]  # A fixture.

MANY: Final = 100
SLACK_FILES: Final = 4  # One client more for a moment, and what is opened of /proc or certificates while it is read.
GET: Final = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 501  # A ClientHello, as it begins.
RESET_ON_CLOSE: Final = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass(frozen=True, slots=True)
class Target:
    """An exporter, in plain or over TLS."""

    exporter: RunningExporter
    context: ssl.SSLContext | None
    files_before: int

    def connect(self) -> socket.socket:
        return self.exporter.connect(self.context)

    def check(self) -> None:
        """A scrape is answered, and the files are bounded."""
        answer = self.exporter.get("/metrics", context=self.context)
        assert answer.status == 200
        assert b"shardnet_shards_configured" in answer.body
        self.check_files()

    def check_files(self) -> None:
        assert self.exporter.open_files() <= self.files_before + CLIENTS_MAX + SLACK_FILES


@pytest.fixture(params=["plain", "tls"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    options, context = ExporterOptions(), None
    if request.param == "tls":
        trusted: Authority = request.getfixturevalue("authority")
        options, context = ExporterOptions(tls=TlsFiles(*trusted.issue("attacked"))), trusted.context()
    with exporting(tmp_path, options, shards=8, level="debug") as exporter:
        assert exporter.get("/livez", context=context).status == 200
        yield Target(exporter, context, exporter.open_files())
        if not exporter.log:
            return
        assert "Traceback" not in exporter.log
        assert "handler raised" not in exporter.log


def gone(client: socket.socket) -> bool:
    """Whether the server has closed or reset."""
    try:
        return client.recv(65536) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        return True


def test_exporter_answers_while_a_hundred_clients_send_a_byte_now_and_then(target: Target) -> None:
    """Slow loris: each byte is a sign of life, none is a request. A scrape is between any two rounds."""
    slow = [target.exporter.connect() for _ in range(MANY)]
    request = GET if target.context is None else HELLO
    for client in slow:
        client.setblocking(False)
    position = 0
    while slow:
        for client in list(slow):
            try:
                client.send(request[position : position + 1])
            except OSError:
                slow.remove(client)
                client.close()
                continue
            if gone(client):
                slow.remove(client)
                client.close()
        if position < 40:
            position += 1  # Never to the end of a request's head.
        target.check()


def test_exporter_answers_while_a_hundred_clients_are_idle(target: Target) -> None:
    idle = []
    for _ in range(MANY):
        client = target.connect()
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        idle.append(client)
        target.check_files()
    for _ in range(5):
        target.check()
    for client in idle:
        client.close()


def test_exporter_answers_while_clients_do_not_read(target: Target) -> None:
    """Each asks for far more than its connection holds, and reads nothing: it has a second, then it is reset."""
    deaf = []
    for _ in range(CLIENTS_MAX + 4):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(target.exporter.address)
        if target.context is not None:
            client = target.context.wrap_socket(client, server_hostname="localhost")
        client.sendall(GET * 40)
        deaf.append(client)
        target.check_files()
    for _ in range(5):
        target.check()
    poll = select.poll()
    for client in deaf:
        poll.register(client, 0)  # Of a reset it tells all the same.
    while deaf:
        told = {fd for fd, _ in poll.poll(20_000)}
        assert told, f"{len(deaf)} clients were not reset"
        for client in [one for one in deaf if one.fileno() in told]:
            poll.unregister(client)
            deaf.remove(client)
            client.close()
    target.check()


def test_exporter_refuses_headers_that_are_too_large(target: Target) -> None:
    for head in (
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
    ):
        with target.connect() as client:
            assert Answer.parse(exchange(client, head)).status == 431
    target.check()


def test_exporter_is_not_filled_by_a_header_without_end(target: Target) -> None:
    before = resident_bytes(target.exporter.pid)
    for _ in range(4):
        with target.connect() as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
                for _ in range(1000):
                    client.sendall(b"X: " + b"y" * 16384)
    target.check()
    assert resident_bytes(target.exporter.pid) < before + 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 413),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
        ("GET /metrics HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        ("GET /%00/../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics HTP/1.1\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
    ],
)
def test_exporter_refuses_what_is_no_get(target: Target, request_head: str, status: int) -> None:
    line, _, rest = request_head.partition("\r\n")
    data = f"{line}\r\nHost: localhost\r\nConnection: close\r\n{rest}".encode()
    with target.connect() as client:
        answer = Answer.parse(exchange(client, data))
    assert answer.status == status
    if line.startswith("HEAD"):
        assert answer.body == b""
        assert int(answer.header("Content-Length") or 0) > 1000
    target.check()


def test_exporter_answers_requests_that_come_all_at_once_in_their_order(target: Target) -> None:
    pages = [("/livez", 200), ("/nowhere", 404), ("/readyz", 200)] * 30
    requests = "".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path, _ in pages)
    last = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with target.connect() as client:
        answers = exchange(client, (requests + last).encode())
    statuses = [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [*(status for _, status in pages), 200]
    target.check()


def test_exporter_shrugs_at_clients_that_reset(target: Target) -> None:
    for number in range(300):
        client = socket.create_connection(target.exporter.address, timeout=20)
        with contextlib.suppress(ConnectionError):
            client.sendall(GET[: number % len(GET)])
        client.setsockopt(*RESET_ON_CLOSE)
        client.close()
    target.check()


def test_exporter_shrugs_at_noise(target: Target) -> None:
    for number in range(60):
        with target.exporter.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(os.urandom(1 + 50 * number))
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    target.check()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
