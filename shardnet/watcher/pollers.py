"""Pollers: who tells an engine which descriptors are ready.

An engine registers an endpoint once and for everything, and wants to be told of news, not of a state: of each *edge*.
That is what epoll does, edge-triggered, and an `epoll_ctl` before each read or write would be one more system call each
time. poll(2) knows only states, and would tell of a writable connection for ever. So `PollPoller` tells of a state
once and then looks away, until the engine has found nothing left to do and says so (`rearm`). Each poll costs it time
for every descriptor; epoll costs only for those that are ready.

Lives here: the choice, and the poller of systems without epoll. Must not live here: what events mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from typing import Final

from shardnet.watcher import _sys
from shardnet.watcher._sys import Poller

ASKABLE: Final = _sys.EVENT_IN | _sys.EVENT_OUT  # What poll is asked for. It adds errors and hang-ups by itself.


class PollPoller(Poller):
    """poll(2). Exclusive wake-ups are epoll's alone: here, all who wait for a connection wake."""

    __slots__ = ("_armed", "_events", "_inodes", "_poll")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._events: list[tuple[int, int]] = []
        self._armed: dict[int, int | None] = {}  # What a descriptor is still to be told of; None: of its state, always.
        self._inodes: dict[int, int] = {}  # What a descriptor stood for when it was registered.

    def add(self, fd: int, events: int) -> None:
        # As epoll has it: not twice, but a number that stands for something else by now is no longer registered; not
        # what is closed; and no file, which would always be ready.
        status = os.fstat(fd)
        if fd in self._armed and self._inodes[fd] == status.st_ino:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if stat.S_ISREG(status.st_mode):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self._inodes[fd] = status.st_ino
        self._poll.register(fd, events & ASKABLE)
        self._armed[fd] = events & ASKABLE if events & _sys.EVENT_EDGE else None

    def modify(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events & ASKABLE)
        self._armed[fd] = events & ASKABLE if events & _sys.EVENT_EDGE else None

    def remove(self, fd: int) -> None:
        if fd in self._armed:
            del self._armed[fd], self._inodes[fd]
            self._look_away(fd)

    def poll(self, timeout_s: float | None) -> int:
        timeout_ms = None if timeout_s is None else min(max(timeout_s, 0.0), _sys.WAIT_MAX_S) * 1000.0
        self._events = self._poll.poll(timeout_ms)
        return len(self._events)

    def event(self, index: int) -> tuple[int, int]:
        # Looked away from only now, so that what an interrupt keeps from being told is told again.
        fd, events = self._events[index]
        return fd, self._note(fd, events) if fd in self._armed else 0

    def close(self) -> None:
        self._armed.clear()

    def _note(self, fd: int, events: int) -> int:
        """What to tell of the events that poll told, once."""
        if events & select.POLLNVAL:  # Closed behind our back. Nothing more will come of it.
            self._look_away(fd)
            self._armed[fd] = 0
            return _sys.EVENT_FAILED
        armed = self._armed[fd]
        if armed is not None:
            self._armed[fd] = armed = armed & ~events
            if events & _sys.EVENT_FAILED:  # Told unasked, so there is no other way to hear no more of it.
                self._look_away(fd)
            else:
                self._poll.modify(fd, armed)
        return events

    def rearm(self, fd: int, events: int) -> None:
        armed = self._armed.get(fd)
        if armed is not None and armed | events != armed:
            self._armed[fd] = armed | events
            self._poll.register(fd, armed | events)

    def _look_away(self, fd: int) -> None:
        with contextlib.suppress(KeyError):  # Looked away already.
            self._poll.unregister(fd)


def new_poller(name: str | None = None) -> Poller:
    """A poller by name, `epoll` or `poll`; None: the best that this system has. Raises `ValueError`."""
    if name is None:
        name = DEFAULT
    match name:
        case "epoll":
            if not hasattr(select, "epoll"):
                raise ValueError("poller 'epoll': this system has none: take 'poll'")
            return _sys.EpollPoller()
        case "poll":
            return PollPoller()
        case _:
            raise ValueError(f"poller {name!r}: there are 'epoll' and 'poll'")


DEFAULT: str = "epoll" if hasattr(select, "epoll") else "poll"
