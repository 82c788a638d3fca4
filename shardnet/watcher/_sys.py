"""The system calls that messages wait for, and nothing else: the one layer that a compiled build replaces.

`_sys.pyx` is the same in C, name for name. Every function here answers "not now" (EAGAIN) with a value, because that is
the ordinary case, and raises `OSError` for everything else, because that is not. But for what each message calls: that
answers a failure with a value, too, since a call that might raise costs something even when it does not.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

# epoll's bits are poll's, where poll has them.
EVENT_IN: Final[int] = select.POLLIN
EVENT_OUT: Final[int] = select.POLLOUT
EVENT_PRI: Final[int] = select.POLLPRI
EVENT_RDHUP: Final[int] = getattr(select, "POLLRDHUP", 0x2000)
EVENT_ERROR: Final[int] = select.POLLERR
EVENT_FAILED: Final[int] = select.POLLHUP | EVENT_ERROR
EVENT_ODD: Final[int] = EVENT_RDHUP | EVENT_PRI | EVENT_FAILED  # What bytes may hide behind: see `engine`.
EVENT_OUTWARD: Final[int] = EVENT_OUT | EVENT_FAILED  # What a waiting write goes on for.
EVENT_EDGE: Final[int] = 1 << 31  # EPOLLET. Asked for, never told.
EVENT_EXCLUSIVE: Final[int] = 1 << 28  # EPOLLEXCLUSIVE. Asked for, never told; such a registration cannot be modified.
ENDPOINT_EVENTS: Final[int] = EVENT_IN | EVENT_OUT | EVENT_RDHUP | EVENT_PRI | EVENT_EDGE

EVENTS_PER_POLL_MAX: Final = 1024
WAIT_MAX_S: Final = 86400.0  # epoll counts milliseconds in 31 bits, and raises beyond.
BUFFERS_PER_WRITE_MAX: Final = 64  # Far below the kernel's IOV_MAX of 1024: a longer list gains nothing.


class Poller:
    """What an engine needs of the kernel to learn of readiness.

    Registered with `EVENT_EDGE`, a descriptor is told of when its state changes; without, as long as it is ready.
    """

    __slots__ = ()

    @property
    def rearm(self) -> Callable[[int, int], object] | None:
        """To be called with a descriptor and events that there is nothing to do for, that the next may be told of.
        None where that is not needed."""
        return None

    def add(self, fd: int, events: int) -> None:
        """Raises `OSError`: EEXIST when `fd` is registered, EBADF when it is not open, or what the kernel says."""
        raise NotImplementedError

    def modify(self, fd: int, events: int) -> None:
        """Raises `OSError` when `fd` is not registered."""
        raise NotImplementedError

    def remove(self, fd: int) -> None:
        """Forget `fd`; silent when it is forgotten already."""
        raise NotImplementedError

    def poll(self, timeout_s: float | None) -> int:
        """Wait for events at most `timeout_s` seconds (None: for ever) and `WAIT_MAX_S`; how many there are."""
        raise NotImplementedError

    def event(self, index: int) -> tuple[int, int]:
        """The descriptor and the event mask of event `index` of the last poll."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class EpollPoller(Poller):
    """One epoll instance and the events of its last poll. It tells of edges by itself."""

    __slots__ = ("_epoll", "_events")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []

    def add(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        # ENOENT or EBADF: somebody closed it behind our back, and a closed descriptor polls nothing. ValueError: the
        # poller itself is closed.
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def poll(self, timeout_s: float | None) -> int:
        if timeout_s is not None and not 0.0 <= timeout_s <= WAIT_MAX_S:
            timeout_s = WAIT_MAX_S if timeout_s > 0.0 else 0.0  # To epoll, negative means for ever.
        self._events = self._epoll.poll(timeout_s, EVENTS_PER_POLL_MAX)
        return len(self._events)

    def event(self, index: int) -> tuple[int, int]:
        return self._events[index]

    def close(self) -> None:
        self._epoll.close()


def monotonic_ns() -> int:
    """The monotonic clock, in nanoseconds."""
    return time.monotonic_ns()


def error_of(number: int) -> OSError:
    """The exception of an errno."""
    return OSError(number, os.strerror(number))


FAILED: Final = -2  # As a result of `SwapBuffer.receive`: this, minus the errno.


class SwapBuffer:
    """Memory into which many connections are received, one behind the other."""

    __slots__ = ("_view", "size", "used")

    def __init__(self, size_bytes: int) -> None:
        self.size = size_bytes
        self.used = 0  # How much of it belongs to completions that have not been dispatched: its owner says so.
        self._view = memoryview(bytearray(size_bytes))

    def receive(self, fd: int, start: int, room: int) -> int:
        """Receive at most `room` bytes at `start`; how many came, 0 at end of stream, -1 for "not now".

        Less than that is a failure: `FAILED`, minus the errno. An exception would cost every call that meets none.
        """
        try:
            return os.readv(fd, (self._view[start : start + room],))
        except BlockingIOError:
            return -1
        except OSError as error:
            return FAILED - (error.errno or 0)

    def put(self, start: int, data: bytes) -> None:
        """Have `data` stand at `start`, as if received."""
        self._view[start : start + len(data)] = data

    def take(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes at `start`."""
        return bytes(self._view[start : start + size])


def cells_of(cells: memoryview) -> memoryview:
    """`cells`, a writable buffer of unsigned 64-bit numbers, as what code of the engine counts in: `cells[i] += 1`.

    Compiled, that is an address: whoever has it keeps the buffer alive.
    """
    return cells


def values_of(values: memoryview[float]) -> memoryview[float]:
    """As `cells_of`, for a buffer of doubles."""
    return values


def bucket_of(bounds: memoryview[float], count: int, value: float) -> int:
    """Which of the `count` buckets with these upper bounds, in ascending order, `value` falls into; `count` if none."""
    return bisect_left(bounds, value)


def observe(cells: memoryview, first: int, bounds: memoryview, count: int, value: int) -> None:
    """Count `value` in the histogram that begins at cell `first`: a cell for each of the `count` upper bounds, one for
    what is above the last, and one for the sum."""
    cells[first + bisect_left(bounds, value)] += 1
    cells[first + count + 1] += value


def receive_into(fd: int, view: memoryview) -> int:
    """Receive into `view`; how many bytes came, 0 at end of stream, -1 for "not now"."""
    try:
        return os.readv(fd, (view,))
    except BlockingIOError:
        return -1


def receive(fd: int, size: int) -> bytes | None:
    """At most `size` bytes; b"" at end of stream, None for "not now"."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None


def send(fd: int, data: bytes | bytearray | memoryview) -> int:
    """Send what the kernel takes now: how many bytes, 0 for "not now", and less when it fails: minus the errno.

    A plain write(2): CPython ignores SIGPIPE, so a closed peer shows as EPIPE.
    """
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        return -(error.errno or 0)


def size_of(data: bytes | bytearray | memoryview) -> int:
    """Its size in bytes. Raises `TypeError` for what is no contiguous buffer."""
    return len(data) if isinstance(data, (bytes, bytearray)) else memoryview(data).cast("B").nbytes


def send_many(fd: int, buffers: Iterable[bytes | memoryview]) -> int:
    """`send` of the first `BUFFERS_PER_WRITE_MAX` buffers in one call."""
    try:
        return os.writev(fd, list(islice(buffers, BUFFERS_PER_WRITE_MAX)))
    except BlockingIOError:
        return 0
    except OSError as error:
        return -(error.errno or 0)


def accept(listener: socket.socket) -> tuple[int, Any] | None:
    """The descriptor (non-blocking) and the peer of the next queued connection; None for "not now".

    The peer is what `address_of` makes an address of: compiled, in as few bytes as it takes.
    """
    try:
        sock, address = listener.accept()
    except BlockingIOError:
        return None
    sock.setblocking(False)
    return sock.detach(), address


def address_of(peer: Any) -> Any:
    """The peer's address, as `socket.accept` gives it."""
    return peer


def close(fd: int) -> None:
    os.close(fd)
