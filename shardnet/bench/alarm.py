"""A descriptor that becomes readable at a given time, to some 50 µs.

The engine's timers are rounded up to milliseconds, as epoll's are, which is more than most echoes take. A timerfd is
not. Python has one of its own only since 3.13, so it is called in the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from typing import Any, Final

from shardnet.errors import SystemFault

NS_PER_S: Final = 1_000_000_000
TFD_TIMER_ABSTIME: Final = 1
EXPIRATIONS_BYTES: Final = 8


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One timerfd on the monotonic clock, non-blocking. Raises `SystemFault` when there is none to be had."""

    __slots__ = ("_libc", "_setting", "fd")

    def __init__(self) -> None:
        try:
            self._libc: Any = ctypes.CDLL(None, use_errno=True)
            self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError) as exc:
            raise SystemFault(f"no timerfd on this system ({sys.platform}): leave --rate out") from exc
        if self.fd < 0:
            raise SystemFault(f"timerfd_create: {os.strerror(ctypes.get_errno())}: leave --rate out")
        self._setting = _Itimerspec()

    def set(self, due_ns: int) -> None:
        """Become readable at `due_ns` of the monotonic clock (after 0), which may have passed; instead of any earlier
        setting, also one that has come."""
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(due_ns, NS_PER_S)
        if self._libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def clear(self) -> None:
        """Take note that it was readable."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, EXPIRATIONS_BYTES)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
