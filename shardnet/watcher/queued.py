"""Queued endpoints: operations in two queues, each answered by a completion.

An operation is tried at once when no older one of its direction waits, and again when a poll tells that it may go on.
So nothing has to be remembered of a poll that tells of what nobody asked for: the next operation looks for itself.
(A hook endpoint does remember, because its owner waits for bytes nearly always, and a look would mostly be in vain.)

Lives here: trying, and what the outcome means for those that wait behind. Must not live here: whose the connection is.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from shardnet.errors import ConnectionBroken, ConnectionFreed, DeadlineExceeded
from shardnet.watcher import _sockets, _sys
from shardnet.watcher.counters import Op
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, Endpoint
from shardnet.watcher.operations import Error, Operation, OperationQueue, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardnet.watcher.channel import Channel
    from shardnet.watcher.engine import Engine

# System calls for one direction of one connection, before others get the turn: 1 MiB at most.
CALLS_PER_TURN_MAX: Final = 16
# At a deadline, how often that share is given to one operation: for more than a kernel holds of one connection by
# default (6 MiB), and not for as long as a peer may go on.
LAST_TRIES_MAX: Final = 8
# Errors that are not the connection's end. EPIPE tells of our own direction alone.
PASSING_ERRNOS: Final = frozenset({errno.EPIPE, errno.ENOBUFS, errno.ENOMEM, errno.EINTR})


class QueuedEndpoint(Endpoint):
    """An endpoint whose reads and writes wait in queues."""

    __slots__ = (
        "_broken",
        "_ended",
        "_engine",
        "_failure",
        "_inward",
        "_outbox",
        "_outward",
        "_registered",
        "on_connected",
        "reads",
        "released",
        "timeout_s",
        "writes",
    )

    def __init__(self, engine: Engine, outbox: Outbox, fd: int, timeout_s: float | None) -> None:
        """Take over `fd`. `timeout_s` is what its socket object had, or would have, for whom it is given back to."""
        super().__init__(engine.agenda, fd)
        self.reads = OperationQueue()
        self.writes = OperationQueue()  # CONNECT is the first of a connection that has nothing else yet.
        self.timeout_s = timeout_s
        self.released = False  # Given back, as opposed to closed.
        self.on_connected: Callable[[], Channel] | None = None
        self._engine = engine
        self._outbox = outbox
        self._registered = False
        self._inward = False  # What a poll, or a share that was used up, left to be tried.
        self._outward = False
        self._ended = False  # The peer has ended its stream.
        self._failure: int | None = None  # What the kernel has told once: from then on it says that the stream is over.
        self._broken = False  # A write has stopped in its middle: what follows would be taken for the rest of it.

    @property
    def pending(self) -> bool:
        """Whether an operation waits."""
        return self.reads.first is not None or self.writes.first is not None

    def submit(self, asked: Operation) -> None:
        """Take an operation on, and try it when it is the oldest."""
        if self.fd < 0:
            self._outbox.complete(asked, self._gone())
            return
        queue = self.reads if asked.op is Op.READ else self.writes
        queue.append(asked)
        if queue.first is asked:
            self._advance(queue)
        if not asked.done and asked.op is Op.WRITE and self._outbox.swap.owns(asked.rest):
            asked.rest = memoryview(bytes(asked.rest))  # Else it would be overwritten before it is sent.

    def expire(self, asked: Operation) -> None:
        """The deadline has passed: a last try, for what is there already wins over it."""
        queue = self.reads if asked.op is Op.READ else self.writes
        tries_left = LAST_TRIES_MAX
        while not asked.done and tries_left:
            oldest = queue.first
            if not self._advance(queue):
                break
            tries_left = tries_left - 1 if queue.first is oldest else LAST_TRIES_MAX
        if asked.done:
            return
        self._outbox.complete(asked, DeadlineExceeded(f"{asked.op.name.lower()}: not complete before its deadline"))
        if asked.op is Op.CONNECT:
            self._engine.free(self)
        elif asked.op is Op.WRITE and asked.moved:
            self._break()

    def cancel(self, error: Callable[[], Error]) -> None:
        """Complete everything that waits, reads first, with an error."""
        self._outbox.cancel_all(self.reads, error)
        self._outbox.cancel_all(self.writes, error)

    # What the engine calls.

    def note_events(self, events: int) -> None:
        if events & ~_sys.EVENT_OUT and self.reads.first is not None:
            self._inward = True
            self._ask_proceed()
        if events & _sys.EVENT_OUTWARD and self.writes.first is not None:
            self._outward = True
            self._ask_proceed()

    def proceed(self) -> None:
        self._proceed_due = False
        inward, outward = self._inward, self._outward
        self._inward = self._outward = False
        if inward:
            self._advance(self.reads)
        if outward:
            self._advance(self.writes)

    def abandon(self) -> int:
        fd = Endpoint.abandon(self)
        self.on_connected = None
        self.cancel(lambda: ConnectionFreed("the connection was freed while the operation waited"))
        return fd

    # Inside: trying.

    def _advance(self, queue: OperationQueue) -> bool:
        """Try the operations of one direction in their order: whether there may be more to do at once."""
        attempt = self._read if queue is self.reads else self._write
        for _ in range(CALLS_PER_TURN_MAX):
            asked = queue.first
            if asked is None:
                return False
            try:
                moved = attempt(asked)
            except OSError as error:
                self._fail(asked, error)
                continue
            if not moved:
                self._wait(asked)
                return False
        if queue.first is None:
            return False
        self._inward = self._inward or queue is self.reads
        self._outward = self._outward or queue is self.writes
        self._ask_proceed()
        return True

    def _read(self, asked: Operation) -> bool:
        """One system call for the oldest read: False for "not now"."""
        rest = asked.rest
        if self._ended:
            size = 0  # Not asked again: behind the end of the stream, an error may stand.
        elif rest is None:
            size = self._outbox.swap.receive(self.fd)
        else:
            size = _sys.receive_into(self.fd, rest[:CHUNK_MAX_BYTES])
        if size < 0:
            return False
        if size == 0:
            if self._failure and not self._ended:
                raise OSError(self._failure, os.strerror(self._failure))
            self._ended = True
            self._outbox.complete(asked, EOFError("the peer has ended the stream"))
            return True
        self._count_received(size)
        asked.moved += size
        if rest is None:
            asked.buffer = self._outbox.swap.take(size)
        elif asked.full and size < len(rest):
            asked.rest = rest[size:]
            return True
        self._outbox.complete(asked)
        return True

    def _write(self, asked: Operation) -> bool:
        """One system call for the oldest write, or the connect: False for "not now"."""
        if asked.op is Op.CONNECT:
            return self._connect(asked)
        if self._broken:
            self._outbox.complete(asked, _broken())
            return True
        rest = asked.rest
        sent = _sys.send(self.fd, rest[:CHUNK_MAX_BYTES])
        if sent < 0:
            raise _sys.error_of(-sent)
        if sent == 0:
            return False
        self._count_sent(sent)
        asked.moved += sent
        if sent < len(rest):
            asked.rest = rest[sent:]
        else:
            self._outbox.complete(asked)
        return True

    def _connect(self, asked: Operation) -> bool:
        if not _sockets.connect(self.fd, asked.rest):
            return False
        assert self.on_connected is not None
        self._outbox.complete(asked, conn=self.on_connected())
        self.on_connected = None  # It refers to us.
        return True

    def _wait(self, asked: Operation) -> None:
        """Nothing can be done for the oldest operation of a direction: have the poller tell when it can."""
        if self._registered:
            self._rearm(_sys.EVENT_IN if asked.op is Op.READ else _sys.EVENT_OUT)
            return
        try:
            self._engine.add(self)
        except OSError as error:  # No memory, or too many descriptors polled by this user.
            self._fail(asked, error)
        else:
            self._registered = True

    def _fail(self, asked: Operation, error: OSError) -> None:
        if error.errno not in PASSING_ERRNOS:
            self._failure = error.errno
        self._outbox.complete(asked, error.with_traceback(None))  # Its frames refer to the connection.
        if asked.op is Op.CONNECT:
            self._engine.free(self)
        elif asked.op is Op.WRITE and asked.moved:
            self._break()

    def _break(self) -> None:
        """A write has stopped in its middle: those behind it fail, in their order."""
        self._broken = True
        self._outbox.cancel_all(self.writes, _broken)

    def _gone(self) -> Error:
        return closed_by_user() if self.released else ConnectionFreed("the connection was freed")


def closed_by_user() -> OSError:
    """There is no descriptor any more, and it was not the watcher that closed it."""
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def _broken() -> ConnectionBroken:
    return ConnectionBroken("an earlier write stopped in its middle")
