"""Servers from PyPI on real workers, each with a client that knows nothing of shardnet."""

from __future__ import annotations

import asyncio
import signal
import smtplib
import ssl
import sys
from contextlib import ExitStack
from typing import Final

import httpx
import pymysql  # type: ignore[import-untyped]  # has no types
import pytest
import telnetlib3

from tests.ecosystem.servers import CERTIFICATE
from tests.harness.client import Client
from tests.harness.server import ShardedServer

pytestmark = pytest.mark.process

TIMEOUT_S: Final = 10.0
# Telnet's commands.
IAC, DO, WILL, SB, SE = b"\xff", b"\xfd", b"\xfb", b"\xfa", b"\xf0"
TTYPE, SEND = b"\x18", b"\x01"


def irc_line(client: Client, word: bytes) -> bytes:
    """The next line with this word; those that come before it are passed over."""
    while word not in (line := client.line()):
        pass
    return line.rstrip(b"\r")


def test_irc3d_is_a_chat() -> None:
    with ShardedServer("tests.ecosystem.servers:irc", workers=1) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(b"NICK nick%d\r\nUSER user%d host server :A User\r\n" % (number, number))
            assert irc_line(client, b" 001 ").endswith(b"001 nick%d :Welcome" % number)
            client.send(b"JOIN #shards\r\n")
            irc_line(client, b"JOIN #shards")
        ann, bob, eve = clients
        ann.send(b"PRIVMSG #shards :hello, all\r\n")
        for other in (bob, eve):
            said = irc_line(other, b"PRIVMSG")
            assert said.startswith(b":nick0!user0@")
            assert said.endswith(b"PRIVMSG #shards :hello, all")
        bob.send(b"PRIVMSG nick2 :and you\r\n")
        assert irc_line(eve, b"PRIVMSG").endswith(b"PRIVMSG nick2 :and you")
        eve.send(b"QUIT :bye\r\n")
        assert b"QUIT" in irc_line(ann, b"QUIT")
        assert eve.rest() is not None
        bob.send(b"PING 42\r\n")
        assert irc_line(bob, b"PONG").endswith(b"42")


def read_until(client: Client, end: bytes) -> bytes:
    said = b""
    while not said.endswith(end):
        said += client.exactly(1)
    return said


@pytest.mark.skipif(sys.version_info < (3, 13), reason="terminalchate is for Python 3.13 and later")
def test_terminalchate_is_a_chat() -> None:
    app = "terminalchate.server:ChatServer()._handle_client"
    with ShardedServer(app, workers=1) as server, ExitStack() as stack:
        clients = []
        for name in (b"ann", b"bob", b"eve"):
            client = stack.enter_context(Client(server.address))
            read_until(client, b"]: ")
            client.send(name + b"\n")
            assert read_until(client, b"Say hi!\n").endswith(b"You are known as " + name + b". Say hi!\n")
            clients.append(client)
        ann, bob, eve = clients
        assert [ann.line(), ann.line()] == [b"* bob joined *", b"* eve joined *"]
        assert bob.line() == b"* eve joined *"
        ann.send(b"hello\n")
        assert bob.line() == eve.line() == b"[ann] hello"
        eve.send(b"/quit\n")
        assert eve.rest() == b""
        assert ann.line() == bob.line() == b"* eve left (quit) *"


def test_mysql_mimic_answers_queries() -> None:
    app = "mysql_mimic:MysqlServer()._client_connected_cb"
    with ShardedServer(app, workers=2) as server, ExitStack() as stack:
        host, port = server.address
        connections = [
            stack.enter_context(pymysql.connect(host=host, port=port, user="ann", read_timeout=TIMEOUT_S))
            for _ in range(8)
        ]
        for number, connection in enumerate(connections):
            cursor = connection.cursor()
            cursor.execute("SELECT %s + 1, UPPER(%s)", (number, "word"))
            assert cursor.fetchall() == ((number + 1, "WORD"),)
            cursor.execute("SELECT CURRENT_USER(), LOWER(%s)", ("X" * 100_000,))
            assert cursor.fetchone() == ("ann", "x" * 100_000)


@pytest.mark.parametrize("secure", [False, True])
def test_aiosmtpd_takes_mail(secure: bool) -> None:
    """With STARTTLS, which puts a protocol of asyncio's between the transport and aiosmtpd's."""
    with (
        ShardedServer("tests.ecosystem.servers:smtp", workers=2) as server,
        smtplib.SMTP(*server.address, timeout=TIMEOUT_S) as client,
    ):
        if secure:
            client.starttls(context=ssl.create_default_context(cafile=str(CERTIFICATE)))
        client.ehlo()
        for size in (10, 500_000):
            client.mail("ann@example.org")
            client.rcpt("bob@example.org")
            lines = b"x" * 98 + b"\r\n"
            status, answer = client.data(lines * (size // 100) + b"x" * (size % 100))
            assert status == 250
            assert answer.endswith(b" bytes, secretly" if secure else b" bytes, openly")
            assert size <= int(answer.split()[0]) <= size + 2
        assert client.docmd("NONSENSE")[0] == 500


async def use_telnet(host: str, port: int) -> None:
    reader, writer = await telnetlib3.open_connection(host, port, encoding=False, connect_minwait=0.1)
    assert b"Ready." in await reader.readuntil(b"tel:sh> ")
    assert isinstance(writer, telnetlib3.TelnetWriter)
    writer.write(b"help\r")
    assert b"quit, writer" in await reader.readuntil(b"tel:sh> ")
    writer.write(b"quit\r")
    assert b"Goodbye." in await reader.read()


def test_telnetlib3_negotiates_and_opens_its_shell() -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await use_telnet(*server.address)

    with ShardedServer("tests.ecosystem.servers:telnet", workers=2) as server:
        asyncio.run(main())


def test_telnetlib3_needs_nothing_of_ours() -> None:
    """Its protocol class can be called without arguments, and so can be named as it is. It then negotiates."""
    with ShardedServer("telnetlib3:TelnetServer", workers=2) as server, Client(server.address) as client:
        assert client.exactly(3) == IAC + DO + TTYPE
        client.send(IAC + WILL + TTYPE)
        said = b""
        while IAC + SB + TTYPE + SEND + IAC + SE not in said:
            said += client.exactly(1)


def test_uvicorn_serves_an_asgi_app() -> None:
    with ShardedServer("tests.ecosystem.servers:http", workers=2) as server:
        url = "http://{}:{}".format(*server.address)
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:  # One connection, kept alive.
            assert client.get("/one").text == "/one 0"
            assert client.post("/two", content=b"x" * 1_000_000).text == "/two 1000000"
            pieces = (b"piece" for _ in range(100))
            assert client.post("/three", content=pieces).text == "/three 500"
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert samples.total("connections_accepted_total") == 1


@pytest.mark.parametrize(
    ("name", "greeting", "hello"),
    [
        ("irc", b"", b"NICK ann\r\nUSER ann host server :Ann\r\n"),
        ("smtp", b"220 ", b"EHLO ann\r\n"),
        ("telnet", IAC + DO + TTYPE, IAC + WILL + TTYPE),
        ("http", b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ],
)
def test_a_client_with_nothing_to_say_does_not_hold_up_the_end(name: str, greeting: bytes, hello: bytes) -> None:
    """The law: a drain says end of stream to those who wait, also where no line of shardnet's stands in the app."""
    with ShardedServer(f"tests.ecosystem.servers:{name}", workers=1) as server, Client(server.address) as client:
        assert client.exactly(len(greeting)) == greeting
        client.send(hello)
        assert client.exactly(1)
        server.signal(signal.SIGTERM)
        client.rest()
        client.close()
        assert server.wait(TIMEOUT_S) == 0
