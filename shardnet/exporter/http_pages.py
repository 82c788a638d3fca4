"""HTTP/1.1, as far as pages that are only read need it: GET and HEAD, no bodies, keep-alive.

The pages are for machines that come back every few seconds, on an address that others may reach too. So a client
costs little, and not for long: a request has a second to arrive, its answer a second to leave.

Lives here: one connection's conversation and its bounds. Must not live here: what the pages say, sockets, and how
many connections there may be (see `reception`).
"""

from __future__ import annotations

import asyncio
import email.utils
import enum
import http
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import h11

__all__ = ["Client", "HttpPages", "Request", "Response", "Stage", "plain"]

HEADER_MAX_BYTES: Final = 8192
DEADLINE_S: Final = 1.0  # For a request to arrive, whole; then for its answer to be with the kernel.
IDLE_MAX_S: Final = 75.0  # Longer than the usual minute between two scrapes.


class Stage(enum.IntEnum):
    """How far a client is. The higher, the worse it can be spared."""

    LEAVING = 0  # It has had its answers.
    IDLE = 1  # It may ask for more.
    ASKING = 2  # Its request, or what has to come before, is on the way.
    FETCHING = 3  # Its answer is.


class Client(Protocol):
    """The connection to a client, as much of it as is needed here."""

    def read(self) -> Awaitable[bytes]:
        """Some bytes; b"" when the client has said all it will."""
        ...

    def send(self, data: bytes, /) -> Awaitable[None]:
        """Returns when every byte is with the kernel."""
        ...

    def abort(self) -> None:
        """Closes at once, whatever is still to be sent."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants to read."""

    path: str
    headers: Mapping[str, str]  # Names in lower case; of a repeated one, the values with commas between.
    certified: bool = False  # The client has proved a certificate that we trust.


@dataclass(frozen=True, slots=True)
class Response:
    """What it is told."""

    status: http.HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class HttpPages:
    """Answers requests with what `respond` makes of them. GET and HEAD are all the same to it. `afterwards` is called
    when an answer is with the kernel, or nobody wants it any more.

    `serve` is for any number of connections at a time, in one thread.
    """

    def __init__(
        self,
        respond: Callable[[Request], Response],
        afterwards: Callable[[], object] = lambda: None,
        *,
        deadline_s: float = DEADLINE_S,
        idle_max_s: float = IDLE_MAX_S,
    ) -> None:
        self._respond = respond
        self._afterwards = afterwards
        self._deadline_s = deadline_s
        self._idle_max_s = idle_max_s

    async def serve(
        self, client: Client, on_stage: Callable[[Stage], object] = lambda stage: None, *, certified: bool = False
    ) -> None:
        """Talks to one client until either side has had enough; the caller then closes the connection.

        `on_stage` is told how far it is; `certified`, what its requests are to say of it.
        """
        conversation = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_MAX_BYTES)
        while await self._exchange(conversation, client, on_stage, certified):
            conversation.start_next_cycle()
            on_stage(Stage.IDLE)
            if not await self._another(conversation, client):
                break

    async def _exchange(
        self, conversation: h11.Connection, client: Client, on_stage: Callable[[Stage], object], certified: bool
    ) -> bool:
        """One request and its answer; False when the connection is done with."""
        head_only = False
        on_stage(Stage.ASKING)
        try:
            event = await self._receive(conversation, client)
            if event is None:
                return False
            head_only = event.method == b"HEAD"
            response = self._answer(conversation, event, certified)
        except h11.RemoteProtocolError as exc:
            response = plain(http.HTTPStatus(exc.error_status_hint), str(exc), ("Connection", "close"))
        answer = _render(conversation, response, head_only)
        on_stage(Stage.FETCHING)
        try:
            async with asyncio.timeout(self._deadline_s):
                await client.send(answer)
        except OSError:
            client.abort()  # Closed politely, it would keep the answer in memory until the client has read it.
            return False
        finally:
            self._afterwards()
        return conversation.our_state is h11.DONE and conversation.their_state is h11.DONE

    async def _receive(self, conversation: h11.Connection, client: Client) -> h11.Request | None:
        """The next request; None when the client has closed, is gone, or is too slow."""
        try:
            async with asyncio.timeout(self._deadline_s):
                while (event := conversation.next_event()) is h11.NEED_DATA:
                    conversation.receive_data(await client.read())
        except OSError:
            return None
        return event if isinstance(event, h11.Request) else None

    async def _another(self, conversation: h11.Connection, client: Client) -> bool:
        """Waits for the next request to begin; False when none does."""
        if conversation.trailing_data[0]:
            return True  # It has come on the heels of the last.
        try:
            async with asyncio.timeout(self._idle_max_s):
                data = await client.read()
        except OSError:
            return False
        conversation.receive_data(data)
        return data != b""

    def _answer(self, conversation: h11.Connection, event: h11.Request, certified: bool) -> Response:
        # The parser minds this limit only while it waits for more, not when a longer header arrives in one piece.
        if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > HEADER_MAX_BYTES:
            raise h11.RemoteProtocolError(f"a request header has at most {HEADER_MAX_BYTES} bytes", 431)
        if not isinstance(conversation.next_event(), h11.EndOfMessage):
            raise h11.RemoteProtocolError("a request has no body here", 413)
        if event.method not in (b"GET", b"HEAD"):
            return plain(http.HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", ("Allow", "GET, HEAD"))
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        try:
            path = urllib.parse.urlsplit(event.target.decode("ascii")).path
        except ValueError as exc:
            raise h11.RemoteProtocolError(f"no such address can be: {exc}") from exc
        return self._respond(Request(path, headers, certified))


def _render(conversation: h11.Connection, response: Response, head_only: bool) -> bytes:
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Cache-Control", "no-store"),
        ("Date", email.utils.formatdate(usegmt=True)),
        *response.headers,
    ]
    head = h11.Response(status_code=response.status, reason=response.status.phrase, headers=headers)
    parts = [conversation.send(head)]
    if not head_only:
        parts.append(conversation.send(h11.Data(data=response.body)))
    parts.append(conversation.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)


def plain(status: http.HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    """A line of text."""
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)
