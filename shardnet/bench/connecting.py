"""Getting the connections of a load process up: non-blocking, so many at once and no more.

Lives here: sockets until they are connected. Must not live here: what is said over them.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from shardnet.bench.clients import kind_of
from shardnet.bench.options import Target
from shardnet.bench.sheet import Kind
from shardnet.watcher.engine import Engine

# Fewer than any server's queue of connections has room for: beyond that, Linux drops the first packet of a TCP
# connection, and tries it again only after a second.
CONNECTING_MAX: Final = 64
FULL_AGAIN_S: Final = 0.005  # A unix socket's queue is full (EAGAIN), and nothing tells when it has room.
WRITABLE: Final = select.POLLOUT

# What each attempt says that comes to nothing.
Failed = Callable[[Kind, str], object]


class Connecting:
    """`count` connections to `target`. `on_up` gets each socket, `on_failed` each failure, then `on_done` is called.

    When as many as may be under way have failed and not one is up, the others are not tried.
    """

    def __init__(
        self, engine: Engine, target: Target, count: int, timeout_s: float,
        on_up: Callable[[socket.socket], object], on_failed: Failed, on_done: Callable[[], object],
    ) -> None:  # fmt: skip
        self._engine = engine
        self._target = target
        self._left = count
        self._timeout_s = timeout_s
        self._on_up = on_up
        self._on_failed = on_failed
        self._on_done = on_done
        self._under_way: dict[int, tuple[socket.socket, float]] = {}  # By descriptor; since when.
        self._failed = 0
        self._any_up = False
        self._full_since_s: float | None = None
        self._again_due = False  # A timer is set to go on.
        self._over = False

    def begin(self) -> None:
        """Start as many as may be under way."""
        budget = CONNECTING_MAX  # Those that are up at once do not stay under way: without it, all in one pass.
        while self._left and not self._over and len(self._under_way) < CONNECTING_MAX:
            if not budget:
                self._engine.defer(self.begin)
                return
            budget -= 1
            self._left -= 1
            if not self._start_one():
                return
        self._check_done()

    def sweep(self) -> None:
        """Give up those that have taken too long; to be called now and then."""
        late_s = time.monotonic() - self._timeout_s
        for fd, (sock, since_s) in list(self._under_way.items()):
            if since_s < late_s:
                self._engine.unwatch(fd)
                del self._under_way[fd]
                self._fail(sock, Kind.TIMEOUT, f"no connection within {self._timeout_s:g} s")
                self.begin()

    def close(self) -> None:
        """Give up all that are under way, without a word. Idempotent."""
        self._over = True
        for fd, (sock, _) in self._under_way.items():
            self._engine.unwatch(fd)
            sock.close()
        self._under_way.clear()

    def _start_one(self) -> bool:
        """False when the next is to wait."""
        try:
            sock = socket.socket(self._target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._failed_with(None, error)
            return True
        number = sock.connect_ex(self._target.address)
        if number == errno.EAGAIN and self._target.is_unix:
            return self._queue_full(sock)
        if number == errno.EINPROGRESS:
            self._engine.watch(sock.fileno(), WRITABLE, lambda: self._settle(sock))
            self._under_way[sock.fileno()] = (sock, time.monotonic())
        elif number:
            self._failed_with(sock, OSError(number, os.strerror(number)))
        else:
            self._up(sock)
        return True

    def _queue_full(self, sock: socket.socket) -> bool:
        now_s = time.monotonic()
        if self._full_since_s is None:
            self._full_since_s = now_s
        if now_s - self._full_since_s > self._timeout_s:
            self._fail(sock, Kind.TIMEOUT, f"the server's queue of connections was full for {self._timeout_s:g} s")
            return True
        sock.close()
        self._left += 1
        if not self._again_due:
            self._again_due = True
            self._engine.after(FULL_AGAIN_S, self._again)
        return False

    def _again(self) -> None:
        self._again_due = False
        self.begin()

    def _settle(self, sock: socket.socket) -> None:
        """It is writable: connected, or failed."""
        fd = sock.fileno()
        if fd < 0 or self._under_way.pop(fd, None) is None:
            return  # Given up earlier in this turn.
        self._engine.unwatch(fd)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._failed_with(sock, OSError(number, os.strerror(number)))
        else:
            self._up(sock)
        self.begin()

    def _up(self, sock: socket.socket) -> None:
        self._any_up = True
        self._full_since_s = None
        if not self._target.is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._on_up(sock)

    def _failed_with(self, sock: socket.socket | None, error: OSError) -> None:
        detail = error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL and not self._target.is_unix:
            detail += ": no local port is left for this address, give fewer --connections"
        self._fail(sock, kind_of(error), detail)

    def _fail(self, sock: socket.socket | None, kind: Kind, detail: str) -> None:
        if sock is not None:
            sock.close()
        self._on_failed(kind, detail)
        self._failed += 1
        if self._failed >= CONNECTING_MAX and not self._any_up:
            self._left = 0

    def _check_done(self) -> None:
        if not self._left and not self._under_way and not self._over:
            self._over = True
            self._on_done()
