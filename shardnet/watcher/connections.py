"""Whose connections a watcher has: which object of the user's stands for which endpoint.

The user's object (a socket that was taken over, or a `Channel`) is held weakly. When nobody else holds it and nothing
is pending, the connection is closed. An operation that is pending holds it.

Lives here: taking over, giving back, and the end of what nobody holds. Must not live here: operations.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

from shardnet.errors import ConnectionFreed
from shardnet.watcher import _sys
from shardnet.watcher.channel import Channel
from shardnet.watcher.engine import Engine
from shardnet.watcher.operations import Error, Outbox
from shardnet.watcher.owner import Owner
from shardnet.watcher.queued import QueuedEndpoint, closed_by_user

Conn = socket.socket | Channel

FLOW_MAX: Final = 2**20 - 1
SCOPE_MAX: Final = 2**32 - 1
UNIX_PATH_MAX_BYTES: Final = 107  # On Linux; others have a little less, and say so when they are asked to connect.


class Connections:
    """The connections of one watcher."""

    def __init__(self, engine: Engine, outbox: Outbox, owner: Owner) -> None:
        self.dropped = 0  # Closed because nobody held them.
        self._engine = engine
        self._outbox = outbox
        self._owner = owner
        # By the identity of the user's object, for as long as that lives.
        self._endpoints: dict[int, tuple[weakref.ref[Any], QueuedEndpoint]] = {}
        self._left_behind: deque[QueuedEndpoint] = deque()  # Dropped where it could not be closed.

    def __iter__(self) -> Iterator[QueuedEndpoint]:
        """Every connection that is open."""
        return (endpoint for _, endpoint in list(self._endpoints.values()) if endpoint.fd >= 0)

    def find_or_adopt(self, conn: Conn) -> QueuedEndpoint | None:
        """The endpoint that `conn` stands for; a socket that stands for none yet is taken over.

        None when there is nothing to take over: its user has closed it. Raises `TypeError` for what is no stream
        socket, and `ValueError` for a listener and for a channel of another watcher.
        """
        entry = self._endpoints.get(id(conn))
        if entry is not None:
            return entry[1]
        if isinstance(conn, Channel):
            raise ValueError(f"{conn!r} belongs to another watcher")
        check_stream(conn)
        if _listens(conn):
            raise ValueError(f"{conn!r} is a listener: it takes accepts, and stays yours")
        timeout_s = conn.gettimeout()
        fd = conn.detach()
        try:
            os.set_blocking(fd, False)
        except OSError:  # Closed by its user, through the object or by the number.
            return None
        endpoint = QueuedEndpoint(self._engine, self._outbox, fd, timeout_s)
        self._register(conn, endpoint)
        return endpoint

    def open(self, fd: int, peer: Any) -> Channel:
        """What the user gets to hold of a connection that was accepted."""
        return self._make(
            QueuedEndpoint(self._engine, self._outbox, fd, socket.getdefaulttimeout()), _sys.address_of(peer)
        )

    def begin(self, family: int, address: Any) -> QueuedEndpoint | OSError:
        """The endpoint of a socket that is to be connected; or why there is none: no descriptor, say."""
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            return error.with_traceback(None)
        timeout_s = sock.gettimeout()
        sock.setblocking(False)
        endpoint = QueuedEndpoint(self._engine, self._outbox, sock.detach(), timeout_s)
        endpoint.on_connected = partial(self._make, endpoint, address)
        return endpoint

    def free(self, conn: Conn) -> None:
        """Close `conn`, whatever it is, if it is open. But a socket that listens stays its user's."""
        if isinstance(conn, socket.socket) and _listens(conn):
            return
        try:
            endpoint = self.find_or_adopt(conn)
        except TypeError:
            if not isinstance(conn, socket.socket):
                raise
            conn.close()  # Of a kind that is never taken over.
        else:
            if endpoint is not None:
                self._engine.free(endpoint)

    def detach(self, conn: Conn) -> socket.socket:
        """A socket object for the descriptor, which is no more the watcher's."""
        endpoint = self.find_or_adopt(conn)
        if endpoint is None or endpoint.released:
            raise closed_by_user()
        if endpoint.fd < 0:
            raise ConnectionFreed("detach of a connection that was freed")
        if endpoint.pending:
            raise ValueError(f"detach: operations are pending on {conn!r}")
        endpoint.released = True
        sock = socket.socket(fileno=self._engine.release(endpoint))
        sock.settimeout(endpoint.timeout_s)
        return sock

    def bury(self) -> None:
        """Close what was dropped in another thread, or in the middle of a call."""
        while self._left_behind:
            self._close_dropped(self._left_behind.popleft())

    def close(self, error: Callable[[], Error]) -> None:
        """Complete what waits with an error, and close every connection."""
        self.bury()
        for endpoint in cast("list[QueuedEndpoint]", self._engine.endpoints()):
            endpoint.cancel(error)  # One that is connecting is known to the engine alone.
        for endpoint in self:
            endpoint.cancel(error)
            self._engine.free(endpoint)

    # Inside.

    def _make(self, endpoint: QueuedEndpoint, peer: Any) -> Channel:
        channel = Channel(endpoint, peer)
        self._register(channel, endpoint)
        return channel

    def _register(self, conn: Conn, endpoint: QueuedEndpoint) -> None:
        self._endpoints[id(conn)] = (weakref.ref(conn, partial(self._on_dropped, id(conn))), endpoint)

    def _on_dropped(self, key: int, _ref: weakref.ref[Any]) -> None:
        """The user's object is gone. Called wherever that happens: in the middle of anything, and in any thread."""
        _, endpoint = self._endpoints.pop(key)
        if endpoint.fd < 0:
            return  # Freed, as it should be.
        if self._owner.forked:
            self._engine.disown()
            self._engine.free(endpoint)
        elif self._owner.here and not self._owner.busy:
            self._close_dropped(endpoint)
        else:
            self._left_behind.append(endpoint)
            self._engine.wake()

    def _close_dropped(self, endpoint: QueuedEndpoint) -> None:
        fd = endpoint.fd
        self.dropped += 1
        self._engine.free(endpoint)
        warnings.warn(f"a connection (descriptor {fd}) was dropped: free() it", ResourceWarning, stacklevel=2)


def check_stream(sock: object) -> None:
    """Raise `TypeError` for what is no stream socket, or would not be one in other hands."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"a connection is a socket.socket or a Channel, not {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM:
        raise TypeError(f"{sock!r} is no stream socket")
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"{sock!r}: its TLS would be lost, since only the descriptor is taken over")


def check_address(address: Any) -> tuple[int, Any]:
    """The family to connect to `address` with, and the address as the kernel is to be given it.

    Raises `TypeError` and `ValueError`. Never looks a name up, and leaves nothing that would have to be.
    """
    if isinstance(address, str | bytes):
        path = os.fsencode(address)
        if len(path) > UNIX_PATH_MAX_BYTES:
            raise ValueError(f"connect: {address!r} is too long: a unix socket's path has {UNIX_PATH_MAX_BYTES} bytes")
        if b"\0" in path and not path.startswith(b"\0"):  # Which begins a name in the abstract namespace.
            raise ValueError(f"connect: {address!r} is no path: it holds a zero byte")
        return socket.AF_UNIX, path
    if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
        raise TypeError(f"connect: {address!r} is neither (host, port) nor the path of a unix socket")
    host, port, *more = address
    ipv4 = _is_ip(socket.AF_INET, host)
    if len(more) > (0 if ipv4 else 2) or not all(isinstance(number, int) for number in more):
        raise TypeError(f"connect: {address!r} is neither (host, port) nor (host, port, flow, scope) of IPv6")
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError(f"connect: {port!r} is no port: it takes a number from 1 to 65535")
    if ipv4:
        return socket.AF_INET, (host, port)
    host, _, scope = host.partition("%")
    if not _is_ip(socket.AF_INET6, host):
        raise ValueError(f"connect: {address!r} is no IP address: look the name up before, with socket.getaddrinfo")
    flow, number = (*more, 0, 0)[:2]
    if scope:
        try:
            number = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
        except OSError as error:
            raise ValueError(f"connect: {address!r}: there is no interface {scope!r}") from error
    if not 0 <= flow <= FLOW_MAX or not 0 <= number <= SCOPE_MAX:
        raise ValueError(f"connect: {address!r}: no such flow or scope")
    return socket.AF_INET6, (host, port, flow, number)


def _is_ip(family: int, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):  # ValueError: a zero byte, or what is no text.
        return False
    return True


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # It is closed.
        return False
