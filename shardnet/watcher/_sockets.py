"""What sockets are asked now and then: the system calls of the engine that no message waits for.

As in `_sys`, "not now" is a value, and everything else that goes wrong is an `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import threading
from typing import Any, Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger {l_onoff, l_linger}


class Wakeup:
    """A descriptor that is readable from `set` to `clear`: an eventfd, or where there is none a pipe.

    `set` and `close` are safe from any thread and from signal handlers; after `close` there is nothing to set.
    """

    __slots__ = ("_closed", "_lock", "_writer", "fd")

    def __init__(self) -> None:
        self._closed = False
        self.disown()
        if hasattr(os, "eventfd"):
            self.fd = self._writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self._writer = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._writer, False)

    def disown(self) -> None:
        """In the child of a fork: a thread that is not here may have held the lock."""
        self._lock = threading.RLock()  # Reentrant: a signal handler may come upon its own thread inside.

    def set(self) -> None:
        with self._lock:  # A number that is closed may be somebody else's the moment after.
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # It is full, and so set.
                    os.write(self._writer, b"\1\0\0\0\0\0\0\0")  # To an eventfd, the number 1 to be added.

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # Nobody has set it since.
            while len(os.read(self.fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        with self._lock:
            self._closed = True
            os.close(self.fd)
            if self._writer != self.fd:
                os.close(self._writer)


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


class _borrow:  # noqa: N801 - used as a function
    """A socket object for `fd` that does not close it."""

    __slots__ = ("_sock",)

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_: object) -> None:
        self._sock.detach()
