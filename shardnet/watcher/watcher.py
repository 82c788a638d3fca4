"""The watcher: operations in, completions out.

Lives here: what a user calls, what of it is refused at once, and the wait. Must not live here: how an operation is
carried out (`queued`, `borrowed`), and how the kernel is asked (`engine`).
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from shardnet.errors import ConnectionFreed, WatcherClosed
from shardnet.watcher.borrowed import BorrowedListener
from shardnet.watcher.connections import Conn, Connections, check_address, check_stream
from shardnet.watcher.counters import Op
from shardnet.watcher.engine import Engine
from shardnet.watcher.operations import Completion, Operation, OperationQueue, Outbox
from shardnet.watcher.owner import Owner
from shardnet.watcher.pollers import new_poller
from shardnet.watcher.queued import QueuedEndpoint, closed_by_user
from shardnet.watcher.statistics import Statistics, gather
from shardnet.watcher.swap import Swap
from shardnet.watcher.timers import TimerQueue

DEADLINES_PER_WAIT_MAX: Final = 4096  # As many as there are completions: the others are due the next time.
FOREVER_S: Final = 1e9  # Some thirty years. The kernel's clocks take no more than a few times that.


class Watcher:
    """Submits operations on stream sockets, and hands out their completions: exactly one for each.

    `swap_size` is the size in bytes of the buffer that reads without one of their own share. `poller` is "epoll" or
    "poll"; None takes the better of those that the system has.

    Submitting never blocks, and raises for the caller's errors only: `TypeError`, `ValueError`, `WatcherClosed`. What
    the network has to say comes as the `error` of a completion. Every `timeout` is in seconds from the call, on the
    monotonic clock; 0 tries once, None waits for ever. `ctx` is handed back untouched.

    A `socket.socket` is taken over by its first operation: from then on it is a key, closed by `free` alone.

    A watcher belongs to the thread that made it, and raises `RuntimeError` in another, and after a fork. Only `wake()`
    and `close()` may be called from anywhere.
    """

    _shut_done = True  # Until there is something to close.

    def __init__(self, swap_size: int = 65536, *, poller: str | None = None) -> None:
        if swap_size < 1:
            raise ValueError(f"swap_size is {swap_size}: it takes at least 1 byte")
        self._clock: Callable[[], float] = time.monotonic
        self._owner = Owner()
        self._outbox = Outbox(Swap(swap_size))
        self._engine = Engine(0, poller=new_poller(poller))
        self._connections = Connections(self._engine, self._outbox, self._owner)
        self._listeners: dict[int, BorrowedListener] = {}  # By the identity of the socket, which they hold.
        self._sleeps = OperationQueue()
        self._deadlines = TimerQueue()
        self._woken = False
        self._closing = self._shut_done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._shut_done:
            return
        asked, self._closing = self._closing, True
        self._shut()
        if not asked and not self._owner.forked:
            warnings.warn("a watcher was dropped: close() it", ResourceWarning, stacklevel=2)

    # Operations.

    def read(self, conn: Conn, buffer: Any = None, *, ctx: object = None, timeout: float | None = None) -> None:
        """Read at least one byte, into `buffer` or, without one, into the swap buffer.

        `buffer` is any writable contiguous buffer of at least one byte. It is the watcher's until the completion;
        resizing it meanwhile raises `BufferError`. The end of the stream completes it with `EOFError`.
        """
        self._check_open()
        rest = None if buffer is None else _writable(buffer)
        self._start(conn, Operation(Op.READ, ctx, conn, buffer, rest), timeout)

    def read_full(self, conn: Conn, buffer: Any, *, ctx: object = None, timeout: float | None = None) -> None:
        """Read until `buffer` is full. With an error the completion's `size` says how much of it is."""
        self._check_open()
        self._start(conn, Operation(Op.READ, ctx, conn, buffer, _writable(buffer), full=True), timeout)

    def write(self, conn: Conn, data: Any, *, ctx: object = None, timeout: float | None = None) -> None:
        """Write all of `data`, at least one byte. It is complete when the last byte is with the kernel.

        `data` is the watcher's until then and must not change; only a swap buffer's is copied if it has to wait. A
        write that ends after some of its bytes leaves the stream broken: later ones complete with `ConnectionBroken`.
        """
        self._check_open()
        rest = memoryview(data)
        if not rest.nbytes:
            raise ValueError("write: the data is empty")
        self._start(conn, Operation(Op.WRITE, ctx, conn, data, rest.cast("B")), timeout)

    def accept(self, listener: socket.socket, *, ctx: object = None, timeout: float | None = None) -> None:
        """Accept one connection; the completion's `conn` is its `Channel`.

        The listener is made non-blocking, and otherwise only borrowed: never taken over, closed or shut down. Before
        you close it, `free` it. When the process or the machine is out of descriptors or memory, the completion says
        so, and the listener rests for a moment before it tries the next.
        """
        self._check_open()
        check_stream(listener)
        due_s = self._due_s(timeout)
        asked = Operation(Op.ACCEPT, ctx)
        self._owner.busy = True
        try:
            self._check_closing()
            borrowed = self._borrow(listener)
            if borrowed is None:
                self._outbox.refuse(asked, closed_by_user())
            else:
                self._submit(borrowed, asked, due_s, timeout)
        finally:
            self._owner.busy = False
            self._finish()

    def connect(self, address: Any, *, ctx: object = None, timeout: float | None = None) -> None:
        """Connect to `address`; the completion's `conn` is the new `Channel`.

        `address` is `(host, port)`, where the host is an IPv4 or IPv6 address and no name, since looking a name up
        would block; or the path of a unix socket.
        """
        self._check_open()
        due_s = self._due_s(timeout)
        family, rest = check_address(address)
        asked = Operation(Op.CONNECT, ctx, rest=rest)
        self._owner.busy = True
        try:
            self._check_closing()
            endpoint = self._connections.begin(family, address)
            if isinstance(endpoint, OSError):
                self._outbox.refuse(asked, endpoint)
            else:
                self._submit(endpoint, asked, due_s, timeout)
        finally:
            self._owner.busy = False
            self._finish()

    def sleep(self, seconds: float, *, ctx: object = None) -> None:
        """A TIMER completion in `seconds`, at least 0."""
        self._check_open()
        due_s = self._due_s(seconds)
        if due_s is None:
            raise ValueError(f"sleep({seconds}): it takes seconds, at most {FOREVER_S:.0f}")
        asked = Operation(Op.TIMER, ctx)
        self._owner.busy = True
        try:
            self._check_closing()
            self._outbox.submitted += 1
            self._sleeps.append(asked)
            asked.timer = self._deadlines.add(due_s, partial(self._outbox.complete, asked))
        finally:
            self._owner.busy = False
            self._finish()

    # Connections.

    def free(self, conn: Conn) -> None:
        """Close a connection; what waits on it completes with `ConnectionFreed`, reads first.

        Idempotent, and silent also for a connection that this watcher never saw, which it closes. A listener is given
        back instead, and stays open.
        """
        self._owner.check()
        self._owner.busy = True
        try:
            borrowed = self._listeners.get(id(conn))
            if borrowed is not None:
                borrowed.end(lambda: ConnectionFreed("the listener was freed while the accept waited"))
            else:
                self._connections.free(conn)
        finally:
            self._owner.busy = False
            self._finish()

    def detach(self, conn: Conn) -> socket.socket:
        """Give the descriptor of a connection back: a new socket object, with the timeout that the old one had.

        `conn` stands for nothing from then on. Raises `ValueError` while an operation is pending, `ConnectionFreed`
        when it was freed, and `OSError` when it has no descriptor any more.
        """
        self._check_open()
        self._owner.busy = True
        try:
            self._check_closing()
            return self._connections.detach(conn)
        finally:
            self._owner.busy = False
            self._finish()

    # Completions.

    def wait_io(self, timeout: float | None = None) -> list[Completion]:
        """Wait for completions, at most `timeout` seconds: at least one and at most 4096; none when the time is over,
        or when `wake()` was called.

        Swap buffers of completions that were handed out before are the caller's no more. A closed watcher hands out
        what is left, and then raises `WatcherClosed`.
        """
        self._owner.check()
        until_s = self._due_s(timeout)
        self._owner.busy = True
        try:
            self._outbox.take_back()
            return self._wait(until_s)
        finally:
            self._owner.busy = False
            self._finish()

    def wake(self) -> None:
        """Make a `wait_io` that waits return, or the next one. From any thread, and from a signal handler."""
        self._owner.check_process()
        self._woken = True
        self._engine.wake()

    def statistics(self) -> Statistics:
        """What was counted, and what is so now. Takes time for each connection."""
        self._owner.check()
        return gather(self._engine, self._outbox, self._connections, self._deadlines)

    def set_affinity(self, cpu: int) -> None:
        """Pin the calling thread to one CPU. Raises `ValueError` for one that does not exist, or may not be used."""
        self._owner.check()
        try:
            os.sched_setaffinity(0, {cpu})
        except (OSError, OverflowError, ValueError) as error:
            raise ValueError(f"set_affinity({cpu}): this process cannot run on such a CPU") from error

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def close(self) -> None:
        """Close every connection. What waits completes with `WatcherClosed`; the next `wait_io()` hands that out.

        Idempotent, and from any thread: one that waits in `wait_io` returns. In the child of a fork it closes the
        child's copies, and disturbs nobody.
        """
        self._closing = True
        if self._owner.forked or (self._owner.here and not self._owner.busy):
            self._shut()
        else:
            self._engine.wake()  # The owner's next call carries it out, or the one in the middle of which we are.

    # Inside: the caller.

    def _check_open(self) -> None:
        self._owner.check()
        self._check_closing()

    def _check_closing(self) -> None:
        """To be called when busy, too: until then, a signal handler may close."""
        if self._closing:
            raise WatcherClosed("asked of a watcher that is closed")

    def _due_s(self, timeout: float | None) -> float | None:
        """When a timeout is over; None for never."""
        if timeout is None:
            return None
        if not timeout >= 0.0:
            raise ValueError(f"timeout {timeout}: it takes seconds, 0 or more")
        return self._clock() + timeout if timeout < FOREVER_S else None

    def _finish(self) -> None:
        """At the end of a call: what came in its middle, and had to wait."""
        self._connections.bury()
        if self._closing:
            self._shut()

    # Inside: operations.

    def _start(self, conn: Conn, asked: Operation, timeout: float | None) -> None:
        """Begin a read or a write."""
        due_s = self._due_s(timeout)
        self._owner.busy = True
        try:
            self._check_closing()
            endpoint = self._connections.find_or_adopt(conn)
            if endpoint is None:
                self._outbox.refuse(asked, closed_by_user())
            else:
                self._submit(endpoint, asked, due_s, timeout)
        finally:
            self._owner.busy = False
            self._finish()

    def _submit(
        self, home: QueuedEndpoint | BorrowedListener, asked: Operation, due_s: float | None, timeout: float | None
    ) -> None:
        self._outbox.submitted += 1
        home.submit(asked)
        if asked.done:
            return
        if timeout == 0.0:
            home.expire(asked)
        elif due_s is not None:
            asked.timer = self._deadlines.add(due_s, partial(home.expire, asked))

    def _borrow(self, listener: socket.socket) -> BorrowedListener | None:
        """None when its user has closed it."""
        key = id(listener)
        borrowed = self._listeners.get(key)
        if listener.fileno() < 0:
            if borrowed is not None:  # Closed before it was freed.
                borrowed.end(closed_by_user)
            return None
        if borrowed is None:
            give_back = partial(self._listeners.pop, key, None)
            borrowed = BorrowedListener(self._engine, self._outbox, listener, self._connections.open, give_back)
            self._listeners[key] = borrowed
        return borrowed

    # Inside: the wait.

    def _wait(self, until_s: float | None) -> list[Completion]:
        while True:
            if self._closing:
                self._shut()
                if not self._outbox.done:
                    raise WatcherClosed("wait_io of a watcher that is closed")
            else:
                self._engine.turn(self._wait_s(until_s))
                self._connections.bury()
                self._expire()
            if self._outbox.done:
                self._woken = False
                return self._outbox.hand_out()
            if self._woken:
                self._woken = False
                return []
            if until_s is not None and self._clock() >= until_s and not self._closing:
                return []

    def _wait_s(self, until_s: float | None) -> float | None:
        if self._outbox.done or self._woken:
            return 0.0
        due_s = self._deadlines.next_due_s()
        if due_s is None:
            due_s = until_s
        elif until_s is not None:
            due_s = min(due_s, until_s)
        return None if due_s is None else max(0.0, due_s - self._clock())

    def _expire(self) -> None:
        now_s = self._clock()
        for _ in range(DEADLINES_PER_WAIT_MAX):
            expire = self._deadlines.take_due(now_s)
            if expire is None:
                return
            expire()

    def _shut(self) -> None:
        """Carry out what `close` said. Idempotent."""
        if self._shut_done:
            return
        self._shut_done = True
        if self._owner.forked:
            self._engine.disown()

        def error() -> WatcherClosed:
            return WatcherClosed("the watcher was closed while the operation waited")

        try:
            for borrowed in list(self._listeners.values()):
                borrowed.end(error)
            self._connections.close(error)
            self._outbox.cancel_all(self._sleeps, error)
        finally:
            self._engine.close()


def _writable(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    if view.readonly:
        raise ValueError("read: the buffer is read-only")
    if not view.nbytes:
        raise ValueError("read: the buffer is empty")
    return view.cast("B")
