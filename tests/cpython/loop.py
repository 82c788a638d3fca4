"""An event loop as asyncio's tests want it, whose servers are shardnet's.

Everything of asyncio's own `create_server` stands: names are resolved, sockets bound, and its `Server` returned. What
is replaced is the one step below, in which an event loop begins to accept on a socket: here a shardnet `Server` does,
so that each accepted connection is a `ProtocolConnection` or a `StreamsConnection`. Of a loop of `BothEnds` those that
it connects are as well.

Lives here: the loop, and the engine's life with it. Must not live here: which tests run on it (see `cases`).
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import socket
import sys
from asyncio import sslproto
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, cast

from shardnet.adapters import ProtocolConnection, StreamsConnection
from shardnet.app import Handler, Kind
from shardnet.connection import Connection, Limits
from shardnet.log import Log
from shardnet.loop import EngineSelector
from shardnet.server import Server, private_cells
from shardnet.watcher.engine import Engine

__all__ = ["BothEnds", "ServingLoop", "ServingPolicy", "StreamsApp"]

CONNECTIONS_MAX: Final = 10_000

# asyncio's close does not linger. Tests that go on sending to a transport that has closed expect an error, and send
# less than we would take in before there is one.
LIMITS: Final = Limits(linger_bytes=16 * 1024)

_SSL_PROTOCOL: Final[Any] = sslproto.SSLProtocol  # Its types are those of Python 3.10 in typeshed.

# What asyncio says of a handler or a protocol that raises.
RAISED_MESSAGES: Final = {
    Kind.STREAMS: "Unhandled exception in client_connected_cb",
    Kind.PROTOCOL: "Fatal error: protocol call failed.",
}


@dataclass(frozen=True)
class StreamsApp:
    """In the place of a protocol factory: an `async def handler(reader, writer)`."""

    handler: Callable[..., Any]
    limit: int


class ServingLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on an engine of its own, which is closed with it.

    Over all loops, `accepted_total` counts the connections that shardnet has accepted, and `raised` keeps what it has
    caught of handlers and protocols.
    """

    accepted_total = 0
    raised: ClassVar[list[BaseException | None]] = []

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        if selector is not None:
            selector.close()  # A test has chosen one; ours is used instead.
        counts, self.cells = private_cells(1)
        self.engine = Engine(65536, counts)
        self.feeders: list[socket.socket] = []  # Closed with the loop.
        self._servers: dict[socket.socket, Server] = {}
        super().__init__(EngineSelector(self.engine))

    def close(self) -> None:
        if not self.is_closed():
            super().close()
            self.engine.close()
            for feeder in self.feeders:
                feeder.close()

    def serve(self, app: Handler, attached_to: Any = None) -> Server:
        """A server for `app`. What it logs of handlers that raise is told to the loop's exception handler."""
        logger = logging.Logger("cpython")
        logger.addHandler(_ToLoop(self, app.kind))
        log = Log(logger, {})
        if attached_to is not None:
            return _AttachingServer(self, app, log, attached_to)
        return Server(self.engine, self, app, self.cells, log, connections_max=CONNECTIONS_MAX, limits=LIMITS)

    def adopt(self, sock: socket.socket, handler: Callable[..., Any], limit: int) -> None:
        """Take a connected socket over, as if it had been accepted, for a streams handler."""
        peer, unix = sock.getpeername(), sock.family == socket.AF_UNIX
        server = self.serve(Handler(Kind.STREAMS, handler, limit=limit))
        server._on_accept(self.cells.traffic[0], unix, sock.detach(), peer)

    # What `asyncio.Server` calls.

    def _start_serving(
        self,
        protocol_factory: Any,
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        *timeouts_s: float,
    ) -> None:
        kind, function, limit = Kind.PROTOCOL, protocol_factory, 2**16
        if isinstance(protocol_factory, StreamsApp):
            kind, function, limit = Kind.STREAMS, protocol_factory.handler, protocol_factory.limit
        if sslcontext is not None:
            function = _TlsFactory(self, function, sslcontext, timeouts_s)
        self._servers[sock] = self.serve(Handler(kind, function, limit=limit), server)
        self._servers[sock].listen(sock)

    def _stop_serving(self, sock: socket.socket) -> None:
        if (server := self._servers.pop(sock, None)) is not None:
            server.stop_accepting()
        super()._stop_serving(sock)  # type: ignore[misc]  # private, and in every asyncio since 3.4


class BothEnds(ServingLoop):
    """Connections that the loop makes itself are `ProtocolConnection`s, too."""

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        super().__init__(selector)
        self._made: deque[Any] = deque()
        self._connected: list[Connection] = []
        self._sockets: dict[Connection, socket.socket] = {}  # The tests may hold them, too.
        app = Handler(
            Kind.PROTOCOL,
            lambda: self._made.popleft(),
            on_connect=self._connected.append,
            on_disconnect=lambda conn, _: self._sockets.pop(conn).detach(),
        )
        self._clients = self.serve(app)

    def close(self) -> None:
        super().close()
        for sock in self._sockets.values():
            sock.detach()  # The engine has closed it.

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: Any = None,
        server: Any = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(sock)  # type: ignore[attr-defined]  # private, and in every asyncio since 3.7
        self._made.append(protocol)
        peer, unix = sock.getpeername(), sock.family == socket.AF_UNIX
        self._clients._on_accept(self.cells.traffic[0], unix, sock.fileno(), peer)
        conn: Any = self._connected.pop()
        self._sockets[conn] = sock
        transport: asyncio.Transport = conn._transport
        if waiter is not None:
            waiter.set_result(None)
        return transport

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: Any,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        **timeouts_s: Any,
    ) -> asyncio.Transport:
        tls: Any = _SSL_PROTOCOL(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts_s)
        self._make_socket_transport(rawsock, tls)
        transport: asyncio.Transport = tls._app_transport
        return transport


class ServingPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes loops of one class."""

    def __init__(self, loop_class: type[ServingLoop]) -> None:
        super().__init__()
        self._loop_class = loop_class

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop_class()


class _AttachingServer(Server):
    """Tells an `asyncio.Server` of its connections, for `wait_closed` and, from 3.13 on, `close_clients`.

    As asyncio's transports do it: when they are made, and right after their protocol's `connection_lost`.
    """

    def __init__(self, loop: ServingLoop, app: Handler, log: Log, attached_to: Any) -> None:
        self._attached_to = attached_to
        self._attached: set[Connection] = set()
        app = replace(app, on_connect=self._attach)
        super().__init__(loop.engine, loop, app, loop.cells, log, connections_max=CONNECTIONS_MAX, limits=LIMITS)
        self._connection_class = _AttachedStreams if app.kind is Kind.STREAMS else _AttachedProtocol

    def _attach(self, conn: Connection) -> None:
        ServingLoop.accepted_total += 1
        if self._attached_to.sockets:  # Or it is closed, and this one was still in the queue.
            self._attached.add(conn)
            self._attached_to._attach(*self._which(conn))

    def detach_soon(self, conn: Connection) -> None:
        self.loop.call_soon(self._detach, conn)

    def _detach(self, conn: Connection) -> None:
        if conn in self._attached:
            self._attached.discard(conn)
            self._attached_to._detach(*self._which(conn))

    def _which(self, conn: Connection) -> tuple[Connection, ...]:
        return (conn,) if sys.version_info >= (3, 13) else ()


class _AttachedProtocol(ProtocolConnection):
    __slots__ = ()

    def _on_sending_over(self) -> None:
        super()._on_sending_over()
        cast("_AttachingServer", self._host).detach_soon(self)


class _AttachedStreams(StreamsConnection):
    __slots__ = ()

    def _on_sending_over(self) -> None:
        super()._on_sending_over()
        cast("_AttachingServer", self._host).detach_soon(self)


class _TlsFactory:
    """Makes protocols that speak TLS to the network, in front of the app's."""

    def __init__(
        self, loop: ServingLoop, factory: Callable[[], Any], context: Any, timeouts_s: tuple[float, ...]
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._context = context
        self._timeouts_s = dict(zip(("ssl_handshake_timeout", "ssl_shutdown_timeout"), timeouts_s, strict=True))

    def __call__(self) -> asyncio.BaseProtocol:
        waiter = self._loop.create_future()
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
        app_protocol = self._factory()
        made: asyncio.BaseProtocol = _SSL_PROTOCOL(
            self._loop, app_protocol, self._context, waiter, server_side=True, **self._timeouts_s
        )
        return made


class _ToLoop(logging.Handler):
    """Tells a loop of what raised, so that tests that expect it, or forbid it, get to know."""

    def __init__(self, loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
        super().__init__()
        self._loop = loop
        self._message = RAISED_MESSAGES[kind]

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        ServingLoop.raised.append(error)
        self._loop.call_exception_handler({"message": self._message, "exception": error})
