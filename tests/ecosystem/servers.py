"""What a user writes to serve somebody else's protocol, loaded by real workers as `tests.ecosystem.servers:NAME`.

A factory without parameters, where the package has none at hand.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from irc3d import IrcClient, IrcServer  # type: ignore[import-untyped]  # has no types
from telnetlib3 import TelnetServer, telnet_server_shell
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # Self-signed, with its key.

# irc3d: an IRC server.


@functools.cache
def network() -> IrcServer:
    """Made for the first client: it wants the running loop."""
    return IrcServer(includes=["irc3d.plugins.core"])


def irc() -> IrcClient:
    client = IrcClient()
    client.factory = network()
    return client


# telnetlib3: a telnet server, here with the shell that it brings.

telnet = functools.partial(TelnetServer, shell=telnet_server_shell)

# aiosmtpd: a mail server, with STARTTLS.

tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(CERTIFICATE)


class Inbox:
    """Takes mail, and says how much."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        assert isinstance(envelope.content, bytes)
        secure = "secretly" if session.ssl else "openly"
        return f"250 {len(envelope.content)} bytes, {secure}"


def smtp() -> SMTP:
    return SMTP(Inbox(), tls_context=tls)


# uvicorn: HTTP for an ASGI app.

Message = MutableMapping[str, Any]


async def length(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """An ASGI app: answers with the path and the length of the body, chunk by chunk."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b" %d" % size})


config = Config(length, log_config=None)
state = ServerState()


def http() -> H11Protocol:
    return H11Protocol(config, state, app_state={})
