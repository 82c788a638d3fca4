"""The system calls of the engine, and nothing else: the one layer that a compiled build replaces.

Every function here answers "not now" (EAGAIN) with a value, because that is the ordinary case, and raises `OSError`
for everything else, because that is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

# epoll's bits are poll's, where poll has them.
EVENT_IN: Final[int] = select.POLLIN
EVENT_OUT: Final[int] = select.POLLOUT
EVENT_PRI: Final[int] = select.POLLPRI
EVENT_RDHUP: Final[int] = getattr(select, "POLLRDHUP", 0x2000)
EVENT_ERROR: Final[int] = select.POLLERR
EVENT_FAILED: Final[int] = select.POLLHUP | EVENT_ERROR
EVENT_ODD: Final[int] = EVENT_RDHUP | EVENT_PRI | EVENT_FAILED
EVENT_EDGE: Final[int] = 1 << 31  # EPOLLET. Asked for, never told.
EVENT_EXCLUSIVE: Final[int] = 1 << 28  # EPOLLEXCLUSIVE. Asked for, never told; such a registration cannot be modified.
ENDPOINT_EVENTS: Final[int] = EVENT_IN | EVENT_OUT | EVENT_RDHUP | EVENT_PRI | EVENT_EDGE

EVENTS_PER_POLL_MAX: Final = 1024
WAIT_MAX_S: Final = 86400.0  # epoll counts milliseconds in 31 bits, and raises beyond.
BUFFERS_PER_WRITE_MAX: Final = 64  # Far below the kernel's IOV_MAX of 1024: a longer list gains nothing.

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger {l_onoff, l_linger}


class EpollPoller:
    """One epoll instance and the events of its last poll. See `pollers` for what a poller promises."""

    __slots__ = ("_epoll", "_events")

    rearm: Final[None] = None  # It tells of edges by itself.

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []

    def add(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`; silent when the kernel has forgotten it already."""
        # ENOENT or EBADF: somebody closed it behind our back, and a closed descriptor polls nothing. ValueError: the
        # poller itself is closed.
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def poll(self, timeout_s: float | None) -> int:
        """Wait for events at most `timeout_s` seconds (None: for ever) and `WAIT_MAX_S`; how many there are."""
        if timeout_s is not None and not 0.0 <= timeout_s <= WAIT_MAX_S:
            timeout_s = WAIT_MAX_S if timeout_s > 0.0 else 0.0  # To epoll, negative means for ever.
        self._events = self._epoll.poll(timeout_s, EVENTS_PER_POLL_MAX)
        return len(self._events)

    def event(self, index: int) -> tuple[int, int]:
        """The descriptor and the event mask of event `index` of the last poll."""
        return self._events[index]

    def close(self) -> None:
        self._epoll.close()


class Wakeup:
    """A descriptor that is readable from `set` to `clear`: an eventfd, or where there is none a pipe."""

    __slots__ = ("_writer", "fd")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self._writer = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._writer, False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # It is full, and so set.
            os.write(self._writer, b"\1\0\0\0\0\0\0\0")  # To an eventfd, the number 1 to be added.

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # Nobody has set it since.
            while len(os.read(self.fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        os.close(self.fd)
        if self._writer != self.fd:
            os.close(self._writer)


class SwapBuffer:
    """Memory into which many connections are received, one behind the other."""

    __slots__ = ("_view", "size")

    def __init__(self, size_bytes: int) -> None:
        self.size = size_bytes
        self._view = memoryview(bytearray(size_bytes))

    def receive(self, fd: int, start: int, room: int) -> int:
        """Receive at most `room` bytes at `start`; how many came, 0 at end of stream, -1 for "not now"."""
        try:
            return os.readv(fd, (self._view[start : start + room],))
        except BlockingIOError:
            return -1

    def take(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes at `start`."""
        return bytes(self._view[start : start + size])


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
    """Send what the kernel takes now: how many bytes, 0 for "not now".

    A plain write(2): CPython ignores SIGPIPE, so a closed peer shows as EPIPE.
    """
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def send_many(fd: int, buffers: Iterable[bytes | memoryview]) -> int:
    """`send` of the first `BUFFERS_PER_WRITE_MAX` buffers in one call."""
    try:
        return os.writev(fd, list(islice(buffers, BUFFERS_PER_WRITE_MAX)))
    except BlockingIOError:
        return 0


def accept(listener: socket.socket) -> tuple[int, Any] | None:
    """The descriptor (non-blocking) and the peer's address of the next queued connection; None for "not now"."""
    try:
        sock, address = listener.accept()
    except BlockingIOError:
        return None
    sock.setblocking(False)
    return sock.detach(), address


def connect(fd: int, address: Any) -> bool:
    """Begin to connect, or ask how it stands: True once connected, False for "not now".

    A second connect(2) tells what became of the first.
    """
    with _borrow(fd) as sock:
        sock.setblocking(False)
        number = sock.connect_ex(address)
    if number in (0, errno.EISCONN):
        return True
    if number in (errno.EINPROGRESS, errno.EALREADY, errno.EINTR):
        return False
    raise OSError(number, os.strerror(number))


def unread_bytes(fd: int) -> int:
    """How many received bytes wait in the kernel."""
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def pending_error(fd: int) -> int:
    """The errno that waits on the socket, which is thereby taken off; 0 when there is none."""
    with _borrow(fd) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def end_of_output(fd: int) -> None:
    """Tell the peer that nothing more will be sent (FIN). Raises `OSError` when there is no peer any more."""
    with _borrow(fd) as sock:
        sock.shutdown(socket.SHUT_WR)


def reset_on_close(fd: int) -> None:
    """Make the coming close drop unsent bytes and send RST, so that a peer that never reads holds no memory."""
    with _borrow(fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def local_address(fd: int) -> Any:
    """The address of our end."""
    with _borrow(fd) as sock:
        return sock.getsockname()


def close(fd: int) -> None:
    os.close(fd)


class _borrow:  # noqa: N801 - used as a function
    """A socket object for `fd` that does not close it."""

    __slots__ = ("_sock",)

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_: object) -> None:
        self._sock.detach()
