"""Borrowed listeners: the accepts that wait on listening sockets of the user's.

A listener is polled only while an accept waits. When the machine is out of something (descriptors, memory) the oldest
accept completes with the error, and the listener rests for a moment: whoever asks again at once would otherwise get the
same answer as fast as he can ask.

Lives here: accepts and their order. Must not live here: what an accepted connection becomes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from shardnet.errors import DeadlineExceeded
from shardnet.watcher.engine import Engine
from shardnet.watcher.listener import ACCEPTS_PER_TURN_MAX, EXHAUSTED_PAUSE_S
from shardnet.watcher.operations import Error, Operation, OperationQueue, Outbox
from shardnet.watcher.queued import LAST_TRIES_MAX


class BorrowedListener:
    """One listening socket of the user's, while an accept waits on it or it rests.

    `on_idle()` is called when neither is so any more; the socket is then no longer held.
    """

    def __init__(
        self,
        engine: Engine,
        outbox: Outbox,
        sock: socket.socket,
        open_connection: Callable[[int, Any], Any],
        on_idle: Callable[[], object],
    ) -> None:
        self.accepts = OperationQueue()
        self._engine = engine
        self._outbox = outbox
        self._open_connection = open_connection
        self._on_idle = on_idle
        self._resting = False
        self._paused = True
        sock.setblocking(False)
        self._listener = engine.listen(sock, self._on_accept, self._on_exhausted, paused=True)

    def submit(self, asked: Operation) -> None:
        oldest = self.accepts.first is None
        self.accepts.append(asked)
        if oldest:
            self._pause(False)
            self._listener.accept_queued(ACCEPTS_PER_TURN_MAX)

    def expire(self, asked: Operation) -> None:
        """The deadline has passed: a last try, for what is there already wins over it."""
        tries_left = LAST_TRIES_MAX
        while not asked.done and tries_left and not self._resting:
            oldest = self.accepts.first
            if self._listener.accept_queued(ACCEPTS_PER_TURN_MAX):
                break
            tries_left = tries_left - 1 if self.accepts.first is oldest else LAST_TRIES_MAX
        if not asked.done:
            self._outbox.complete(asked, DeadlineExceeded("accept: not complete before its deadline"))
            self._settle()

    def end(self, error: Callable[[], Error]) -> None:
        """Complete everything that waits with an error, and let go of the socket."""
        self._outbox.cancel_all(self.accepts, error)
        self._let_go()

    def _on_accept(self, fd: int, peer: Any) -> None:
        asked = self.accepts.first
        assert asked is not None  # Without one the listener is paused.
        self._outbox.complete(asked, conn=self._open_connection(fd, peer))
        self._settle()

    def _on_exhausted(self, error: OSError) -> None:
        self._resting = True
        self._engine.after(EXHAUSTED_PAUSE_S, self._rested)
        asked = self.accepts.first
        assert asked is not None
        self._outbox.complete(asked, error.with_traceback(None))
        self._settle()

    def _rested(self) -> None:
        self._resting = False
        self._settle()

    def _settle(self) -> None:
        if self.accepts.first is None:
            self._pause(True)
            if not self._resting:
                self._let_go()

    def _let_go(self) -> None:
        if self._listener.fd >= 0:
            self._engine.unlisten(self._listener)
            self._on_idle()

    def _pause(self, paused: bool) -> None:
        if paused == self._paused:
            return
        self._paused = paused
        if paused:
            self._listener.pause()
        else:
            self._listener.resume()
