"""The engine: one poller, work in turns, reads in batches through a swap buffer.

The theory. epoll tells readiness; callers want completions. The bridge is the posted read: an endpoint that wants bytes
says so, and only then does the engine receive for it, so that unread bytes stay in the kernel (which is the
backpressure) and an idle connection owns no buffer.

An endpoint is registered once, edge-triggered, for everything. An edge is news, not a state, so the endpoint remembers
it (`readable`) until a receive proves the kernel empty. A receive that fills less than was asked proves it as well as
EAGAIN does and spares the second call, with three exceptions: after end-of-stream was announced (the zero-length read
is still to come), after urgent data (a receive stops at the urgent mark with bytes behind it), and on unix sockets (a
receive stops between messages that carry descriptors).

A turn first resolves the events of one poll to objects, running no code that could close a descriptor: so no event
can reach a successor that inherited the number. Then it reaps, filling the swap buffer from every ready posted read,
and only then dispatches, in one batch; a full buffer cuts the batch short and the next follows. Each endpoint gets at
most one chunk a turn, so that a flooding peer waits its turn like any other.

What is left to do stands in queues that outlive the turn: an exception out of a hook leaves the rest of the batch for
the next turn.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from shardnet.errors import WatcherClosed
from shardnet.watcher import _sockets, _sys
from shardnet.watcher._sys import Poller
from shardnet.watcher.counters import (
    CELLS_ALONE,
    LOOP_TURNS,
    READ_CANCELLED,
    READ_EOF,
    READ_OK,
    SWAP_CAPACITY_BYTES,
    SWAP_EXHAUSTED,
    SWAP_IN_USE_BYTES,
    SWAP_IN_USE_PEAK_BYTES,
    TIMER_CANCELLED,
    TIMER_OK,
    TIMER_PENDING,
    Op,
)  # fmt: skip
from shardnet.watcher.endpoint import RECEIVES_PER_TURN_MAX, Agenda, Endpoint, Guest
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.listener import Listener
from shardnet.watcher.meter import Meter
from shardnet.watcher.pollers import new_poller
from shardnet.watcher.timers import Timer, TimerQueue

READS_PER_TURN_MAX: Final = 256  # Endpoints that complete a read, before timers, accepts and guests get the turn.
ROOM_MIN_BYTES: Final = 4096  # A swap buffer with less room counts as full: no receives in useless fragments.


Entry = Endpoint | Listener | Guest  # Whom a descriptor belongs to.


class Engine:
    """One poller, its endpoints, listeners, guests and timers. Belongs to one thread of one process.

    `swap_size` is that of the buffer which posted reads go through; 0 where no endpoint is to post one. `cells` is a
    buffer of native unsigned 64-bit cells to count in (see `counters`); without one it counts privately. `poller` is
    one that nobody else uses; without one it is the best that the system has.
    """

    def __init__(self, swap_size: int = 65536, cells: memoryview | None = None, poller: Poller | None = None) -> None:
        if swap_size < 0:
            raise ValueError(f"swap_size is {swap_size}: it cannot be negative")
        # A view of its own, which nobody else can release.
        self.cells = memoryview(array("Q", [0] * CELLS_ALONE) if cells is None else cells)
        self.cells[SWAP_CAPACITY_BYTES] = swap_size
        self.swap = _sys.SwapBuffer(swap_size)
        self.poller = poller = new_poller() if poller is None else poller
        self.agenda = Agenda(self.cells, poller.rearm)  # What a new endpoint is to be given.
        self.guests_ready: list[tuple[Any, int]] = []
        self.meter: Meter | None = None  # Whoever wants the turns to be measured puts one there.
        self._room_min = min(ROOM_MIN_BYTES, swap_size)
        self._closed = False
        self._table: list[Entry | None] = []
        self._position = 0  # Where resolving the events of the last poll stands.
        self._count = 0
        # Reaped, in the order in which their bytes stand in the swap buffer; and how far dispatching them has come.
        self._batch: list[HookEndpoint] = []
        self._batch_position = 0
        self._batch_start = 0
        self._acceptable: deque[Listener] = deque()
        self._deferred: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers = TimerQueue()
        self._wakeup = _sockets.Wakeup()
        self._wake_guest = Guest(None)
        self._enter(self._wakeup.fd, self._wake_guest)
        self.poller.add(self._wakeup.fd, _sys.EVENT_IN)

    # Membership.

    @property
    def closed(self) -> bool:
        return self._closed

    def add(self, endpoint: Endpoint) -> None:
        """Register an endpoint: its hooks may be called from the next turn on.

        Raises `OSError` when the kernel refuses; the endpoint is still to be freed.
        """
        self._check_open()
        self.poller.add(endpoint.fd, _sys.ENDPOINT_EVENTS)
        self._enter(endpoint.fd, endpoint)

    def endpoints(self) -> list[Endpoint]:
        """Every registered endpoint, in no promised order. O(highest descriptor)."""
        return [entry for entry in self._table if isinstance(entry, Endpoint)]

    def free(self, endpoint: Endpoint) -> None:
        """Close the endpoint's descriptor at once and drop what it had queued. Idempotent; calls no hook."""
        if endpoint.fd < 0:
            return
        # Out of epoll before the close: a descriptor that another process still holds keeps firing otherwise.
        fd = self.release(endpoint)
        # The number is given up whatever close says: EIO tells of bytes lost on the way, EBADF that the owner's code
        # closed it before us. An exception would leave the end of a connection half done, and may come out of a turn.
        with contextlib.suppress(OSError):
            _sys.close(fd)

    def release(self, endpoint: Endpoint) -> int:
        """Give the endpoint's descriptor back, unregistered. What it had queued is dropped, as by `free`."""
        fd = endpoint.abandon()
        self._forget(fd, endpoint)
        self.poller.remove(fd)
        return fd

    def listen(
        self,
        sock: socket.socket,
        on_accept: Callable[[int, Any], None],
        on_exhausted: Callable[[OSError], None],
        *,
        exclusive: bool = False,
        paused: bool = False,
    ) -> Listener:
        """Accept on `sock`, a listening, non-blocking socket that stays the caller's, until `unlisten`.

        `exclusive`: other processes accept on it too. One of them is woken for a connection, and takes one a turn.
        `paused`: not before the first `resume`. Raises `OSError` when the kernel will not poll it.
        """
        self._check_open()
        listener = Listener(self.poller, self.cells, self.after, sock, on_accept, on_exhausted, exclusive)
        if not paused:
            listener.start()
        self._enter(listener.fd, listener)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Accept no more; to be called before the socket is closed. Idempotent."""
        if listener.fd >= 0:
            self._forget(listener.fd, listener)
            listener.stop()

    def watch(self, fd: int, events: int, token: Any) -> None:
        """Report `(token, events)` in `guests_ready` whenever `fd` is ready."""
        self._check_open()
        self.poller.add(fd, events)
        self._enter(fd, Guest(token))

    def rewatch(self, fd: int, events: int, token: Any) -> None:
        """Change what a watched descriptor is watched for."""
        self._check_open()
        if self._guest(fd) is None:
            raise FileNotFoundError(errno.ENOENT, "rewatch of a descriptor that is not watched")
        self.poller.modify(fd, events)
        self._enter(fd, Guest(token))

    def unwatch(self, fd: int) -> None:
        """Report `fd` no more, but for what stands in `guests_ready` already.

        Also right for a descriptor that was closed meanwhile, and whose number belongs to an endpoint by now.
        """
        guest = self._guest(fd)
        if guest is not None and not self._closed:
            self._forget(fd, guest)
            self.poller.remove(fd)

    def close(self) -> None:
        """Free every endpoint, stop every listener, cancel every timer. Idempotent; in a hook, it ends the turn."""
        if self._closed:
            return
        self.poller.close()  # First, and so nothing has to be taken out of it piece by piece.
        for entry in self._table:
            if isinstance(entry, Endpoint):
                self.free(entry)
            elif isinstance(entry, Listener):
                self.unlisten(entry)
        self.agenda.forget()
        self.cells[TIMER_CANCELLED] += self._timers.clear()
        self._closed = True
        self._wakeup.close()

    def disown(self) -> None:
        """For the child of a fork, before it closes what it inherited: the parent is not disturbed. Idempotent."""
        self._wakeup.disown()
        self.poller.close()  # What is registered there is the parent's, too, and would go from both.

    # Later.

    def after(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call `callback()` from a turn, `delay_s` seconds from now on the monotonic clock; negative: now."""
        self._check_open()
        return self._timers.add(time.monotonic() + (delay_s if delay_s > 0.0 else 0.0), callback)

    def cancel(self, timer: Timer) -> None:
        """Make a timer never fire. Idempotent, also after it fired."""
        if timer.cancel():
            self.cells[TIMER_CANCELLED] += 1

    def defer(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` at the top of the next turn: how running code completes somebody else's operation."""
        self._deferred.append((callback, args))

    def wake(self) -> None:
        """Make a waiting `turn` return; nothing once closed. Safe from any thread and from signal handlers."""
        self._wakeup.set()

    # The turn.

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait until something happens, at most `timeout_s` seconds (None: for ever), and complete what is ready."""
        if self._closed:
            raise WatcherClosed("turn of an engine that is closed")
        self.agenda.cells[LOOP_TURNS] += 1
        self.agenda.cells[TIMER_PENDING] = len(self._timers)
        self.agenda.receives_left = RECEIVES_PER_TURN_MAX
        if self._batch or self._deferred:
            timeout_s = 0.0  # What runs now may have made work for a loop around us: do not sleep on it.
            self._dispatch()  # Only what an exception left over.
            self._run_deferred()
            if self._closed:
                return
        if self._position >= self._count:
            self._position = self._count = 0
            wait_s = self._wait_s(timeout_s)
            meter = self.meter
            self._count = self.poller.poll(wait_s) if meter is None else meter.poll(self.poller, wait_s)
        self._resolve()
        if len(self._timers):
            self._run_timers()
        if self._acceptable:
            self._accept()
        if self.agenda.pending:
            self._proceed()
        if self.agenda.failing:
            self._fail()
        if self.agenda.ready:
            self._complete_reads()

    def _wait_s(self, timeout_s: float | None) -> float | None:
        agenda = self.agenda
        if agenda.ready or agenda.pending or agenda.failing or self._deferred or self._acceptable:
            return 0.0
        due_s = self._timers.next_due_s()
        if due_s is None:
            return timeout_s
        left_s = max(0.0, due_s - time.monotonic())
        return left_s if timeout_s is None else min(timeout_s, left_s)

    def _resolve(self) -> None:
        """Turn the events of the last poll into work. Runs nothing that could close a descriptor."""
        poller = self.poller
        table = self._table
        while self._position < self._count:
            fd, events = poller.event(self._position)
            self._position += 1
            entry = table[fd]
            if isinstance(entry, Endpoint):
                endpoint = entry
                endpoint.note_events(events)
            elif isinstance(entry, Listener):
                self._acceptable.append(entry)
            elif entry is self._wake_guest:
                self._wakeup.clear()
            elif entry is not None:
                self.guests_ready.append((entry.token, events))

    def _run_deferred(self) -> None:
        for _ in range(len(self._deferred)):
            callback, args = self._deferred.popleft()
            callback(*args)

    def _run_timers(self) -> None:
        now_s = time.monotonic()
        while (callback := self._timers.take_due(now_s)) is not None:
            self.cells[TIMER_OK] += 1
            callback()

    def _accept(self) -> None:
        for _ in range(len(self._acceptable)):
            self._acceptable.popleft().accept_turn()

    def _proceed(self) -> None:
        pending = self.agenda.pending
        for _ in range(len(pending)):
            pending.popleft().proceed()

    def _fail(self) -> None:
        failing = self.agenda.failing
        for _ in range(len(failing)):
            endpoint = failing.popleft()
            if endpoint.fd >= 0 and not endpoint.reading:
                endpoint.on_error_waiting()

    def _complete_reads(self) -> None:
        """Reap and dispatch endpoints that are ready now, once each; who is left, or gets ready meanwhile, is next."""
        left = min(len(self.agenda.ready), READS_PER_TURN_MAX)
        while left > 0 and self.agenda.ready:  # A hook that closes the engine empties it.
            left = self._reap(left)
            if self.meter is not None:
                self.meter.note_batch(len(self._batch))
            self._dispatch()

    def _reap(self, left: int) -> int:
        """Receive for at most `left` ready endpoints, until the swap buffer is full; how many are left."""
        swap, ready, cells, batch = self.swap, self.agenda.ready, self.agenda.cells, self._batch
        used = taken = 0
        while taken < left:
            room = swap.size - used
            if room < self._room_min:
                cells[SWAP_EXHAUSTED] += 1
                break
            endpoint = ready[taken]
            taken += 1
            size = endpoint.reap(swap, used, room)
            if size == -1:
                continue
            batch.append(endpoint)
            if size > 0:
                used += size
        del ready[:taken]
        swap.used = used
        cells[SWAP_IN_USE_BYTES] = used
        if used > cells[SWAP_IN_USE_PEAK_BYTES]:
            cells[SWAP_IN_USE_PEAK_BYTES] = used
        return left - taken

    def _dispatch(self) -> None:
        batch = self._batch
        cells = self.agenda.cells
        meter = self.meter
        while self._batch_position < len(batch):
            endpoint = batch[self._batch_position]
            self._batch_position += 1
            size = endpoint.reaped
            start = self._batch_start
            if size > 0:
                self._batch_start = start + size
            if endpoint.fd < 0:
                cells[READ_CANCELLED] += 1  # Freed by an earlier completion of this batch.
            elif size > 0:
                cells[READ_OK] += 1
                cells[endpoint.traffic] += size
                endpoint.received_bytes += size
                if meter is not None:
                    meter.note_read()
                endpoint.on_received(start, size)
            elif size == 0:
                cells[READ_EOF] += 1
                endpoint.note_end()
                endpoint.on_end()
            else:
                error = endpoint.reap_error()
                self.agenda.count_failure(Op.READ, error)
                endpoint.on_failed(error)
        batch.clear()
        self._batch_position = 0
        self._batch_start = 0

    def _check_open(self) -> None:
        if self._closed:
            raise WatcherClosed("asked of an engine that is closed")

    def _enter(self, fd: int, entry: Entry) -> None:
        table = self._table
        if fd >= len(table):
            table.extend([None] * (fd + 64 - len(table)))
        table[fd] = entry

    def _forget(self, fd: int, entry: Entry) -> None:
        """Empty the place of `entry`, if it has one and nobody else has moved in."""
        if fd < len(self._table) and self._table[fd] is entry:
            self._table[fd] = None

    def _guest(self, fd: int) -> Guest | None:
        entry = self._table[fd] if 0 <= fd < len(self._table) else None
        return entry if isinstance(entry, Guest) else None
