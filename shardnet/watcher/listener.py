"""Listeners: listening sockets that an engine accepts on, borrowed from their owner.

Level-triggered, so that connections which a bounded burst left in the backlog announce themselves again.

Where several processes accept on one listener, the kernel would wake them all for each connection, and whoever runs
first would take the whole backlog. So such a listener is *exclusive*: the kernel wakes one of those who wait, and a
wake accepts one connection. Of those who wait it wakes the first in line, always the same one on a quiet server; so
whoever has accepted goes to the end of the line, by registering anew.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Final

from shardnet.watcher import _sys
from shardnet.watcher._sys import Poller
from shardnet.watcher.counters import ACCEPT_ERROR, ACCEPT_OK

ACCEPTS_PER_TURN_MAX: Final = 16  # New connections from one listener, before others get the turn.
EXHAUSTED_PAUSE_S: Final = 0.1

# The connection died between the handshake and the accept: the next in the queue may be well. accept(2) passes on what
# the network said of it. Not every system knows all of them.
RETRY_ERRNOS: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EPERM",
        "EPROTO",
    )
    if hasattr(errno, name)
)


def _nobody(*_: Any) -> None:
    """Whom a listener tells that has stopped."""


class Listener:
    """One listening socket, never closed or shut down here.

    `on_accept(fd, address)` owns the new descriptor. `on_exhausted(error)` is called when the process or the machine is
    out of something (descriptors, memory) and accepting pauses for a moment.
    """

    __slots__ = (
        "_after",
        "_cells",
        "_events",
        "_fd",
        "_pauses",
        "_poller",
        "_sock",
        "accepts_per_turn",
        "exclusive",
        "on_accept",
        "on_exhausted",
    )

    def __init__(
        self,
        poller: Poller,
        cells: memoryview,
        after: Callable[[float, Callable[[], object]], object],
        sock: socket.socket,
        on_accept: Callable[[int, Any], None],
        on_exhausted: Callable[[OSError], None],
        exclusive: bool,
    ) -> None:
        self._poller = poller
        self._cells = cells
        self._after = after
        self._sock = sock
        self._fd = sock.fileno()
        self._pauses = 1
        self._events = _sys.EVENT_IN | _sys.EVENT_EXCLUSIVE if exclusive else _sys.EVENT_IN
        self.exclusive = exclusive
        self.accepts_per_turn = 1 if exclusive else ACCEPTS_PER_TURN_MAX
        self.on_accept = on_accept
        self.on_exhausted = on_exhausted

    @property
    def fd(self) -> int:
        """The descriptor; -1 once stopped."""
        return self._fd

    def start(self) -> None:
        """End the pause in which it begins. Raises `OSError` when the kernel refuses: `resume` would try again."""
        self._poller.add(self._fd, self._events)
        self._pauses = 0

    def pause(self) -> None:
        """Leave new connections in the backlog until a matching `resume`."""
        self._pauses += 1
        if self._pauses == 1 and self._open:
            self._poller.remove(self._fd)

    def resume(self) -> None:
        self._pauses -= 1
        if self._pauses == 0 and self._open:
            try:
                self._poller.add(self._fd, self._events)
            except OSError as error:  # No memory, or too many descriptors polled by this user: try again later.
                self.rest(error)

    def rest(self, error: OSError) -> None:
        """Leave new connections in the backlog for a moment: something ran out, as `error` says."""
        self.pause()
        self._after(EXHAUSTED_PAUSE_S, self.resume)
        self.on_exhausted(error)

    def stop(self) -> None:
        """Accept no more, for good."""
        if self._pauses == 0 and self._open:
            self._poller.remove(self._fd)
        self._fd = -1
        self.on_accept = self.on_exhausted = _nobody  # Who asked refers to us.

    @property
    def _open(self) -> bool:
        """Whether the descriptor is the socket's: once its owner has closed it, the number may be anybody's."""
        return self._fd >= 0 and self._sock.fileno() == self._fd

    def accept_turn(self) -> None:
        """Accept what a turn may, then let others have theirs."""
        self.accept_queued(self.accepts_per_turn)
        if self.exclusive:
            # To the end of the line. What is queued meanwhile is not missed: registering looks.
            self.pause()
            self.resume()

    def accept_queued(self, attempts_max: int) -> bool:
        """Accept what is queued, in at most `attempts_max` attempts: True when the queue was seen empty."""
        for _ in range(attempts_max):
            if self._fd < 0 or self._pauses:
                return False
            try:
                accepted = _sys.accept(self._sock)
            except OSError as error:
                self._cells[ACCEPT_ERROR] += 1
                if error.errno in RETRY_ERRNOS:
                    continue
                # EMFILE and friends mean "the machine is full", not "we are broken": the connection stays in the
                # backlog, so that polling at once would spin. Pause, let closes free descriptors.
                self.rest(error)
                return False
            if accepted is None:
                return True
            self._cells[ACCEPT_OK] += 1
            self.on_accept(*accepted)
        return False
