"""A scripted system layer: a test says what the next system calls do, and everything above is real.

The engine reaches the kernel through the functions of `shardnet.watcher._sys` alone, and each of these has a `Script`
here. A step says what one call does: `Fail` fails, `NOT_NOW` answers that the kernel is not ready, `Move(k)` moves at
most k bytes, `REAL` is the call itself.

An edge-triggered poller does not announce again what the kernel never withheld. So whoever was told "not now" by a
script, and not by the kernel, is announced again in the next poll, as the kernel would once it is ready.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import pytest

from shardnet.watcher import ENGINE, _sockets, _sys
from shardnet.watcher.pollers import PollPoller


@dataclass(frozen=True, slots=True)
class Fail:
    """The call fails with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Move:
    """The call is made, for at most this many bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class NotNow:
    """The kernel is not ready."""


NOT_NOW: Final = NotNow()
REAL: Final = Move(1 << 40)

Step = Fail | Move | NotNow


class Script:
    """What the calls of one function do: first what was said for each, afterwards what was said for all."""

    def __init__(self) -> None:
        self.calls = 0
        self._steps: deque[Step] = deque()
        self._always: Iterator[Step] = itertools.repeat(REAL)

    def then(self, *steps: Step) -> Self:
        """The next calls do this, one after the other."""
        self._steps.extend(steps)
        return self

    def always(self, *steps: Step) -> Self:
        """All further calls do this, over and over."""
        self._always = itertools.cycle(steps)
        return self

    @property
    def played(self) -> bool:
        """Whether every call for which something was said has been made."""
        return not self._steps

    def take(self) -> Step:
        self.calls += 1
        return self._steps.popleft() if self._steps else next(self._always)

    def step(self) -> Move | NotNow:
        step = self.take()
        if isinstance(step, Fail):
            raise OSError(step.number, os.strerror(step.number))
        return step


class ScriptedSystem:
    """The scripts of all functions. Without steps they only count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accept = Script()
        self.add = Script()  # A poller's.
        self.close = Script()  # Closes, and then fails: Linux gives up the number whatever close(2) says.
        self.connect = Script()
        self.receive = Script()
        self.receive_into = Script()
        self.send = Script()
        self.send_many = Script()
        self.swap_receive = Script()  # `SwapBuffer.receive`.
        self._owed: set[int] = set()  # Descriptors that were told "not now" here.
        if ENGINE == "compiled":
            pytest.skip("replaces the system calls of the interpreted engine")
        for name in ("accept", "close", "receive", "receive_into", "send", "send_many"):
            monkeypatch.setattr(_sys, name, getattr(self, f"_{name}")(getattr(_sys, name)))
        monkeypatch.setattr(_sockets, "connect", self._connect(_sockets.connect))
        monkeypatch.setattr(_sys.SwapBuffer, "receive", self._swap_receive(_sys.SwapBuffer.receive))
        for poller in (_sys.EpollPoller, PollPoller):
            monkeypatch.setattr(poller, "add", self._add(poller.add))
        monkeypatch.setattr(_sys.EpollPoller, "poll", self._poll(_sys.EpollPoller.poll))

    def _not_now(self, fd: int) -> None:
        self._owed.add(fd)

    def _poll(self, real: Any) -> Any:
        def poll(poller: _sys.EpollPoller, timeout_s: float | None) -> int:
            for fd in self._owed:
                with contextlib.suppress(FileNotFoundError, OSError):  # It was freed, or never registered.
                    poller.modify(fd, _sys.ENDPOINT_EVENTS)
            self._owed.clear()
            told: int = real(poller, timeout_s)
            return told

        return poll

    def _accept(self, real: Any) -> Any:
        def accept(listener: socket.socket) -> Any:
            return None if self.accept.step() is NOT_NOW else real(listener)

        return accept

    def _add(self, real: Any) -> Any:
        def add(poller: Any, fd: int, events: int) -> None:
            self.add.step()
            real(poller, fd, events)

        return add

    def _close(self, real: Any) -> Any:
        def close(fd: int) -> None:
            real(fd)
            self.close.step()

        return close

    def _connect(self, real: Any) -> Any:
        def connect(fd: int, address: Any) -> bool:
            if isinstance(self.connect.step(), NotNow):
                self._not_now(fd)
                return False
            connected: bool = real(fd, address)
            return connected

        return connect

    def _receive(self, real: Any) -> Any:
        def receive(fd: int, size: int) -> Any:
            step = self.receive.step()
            if isinstance(step, NotNow):
                self._not_now(fd)
                return None
            return real(fd, min(size, step.size))

        return receive

    def _receive_into(self, real: Any) -> Any:
        def receive_into(fd: int, view: memoryview) -> Any:
            step = self.receive_into.step()
            if isinstance(step, NotNow):
                self._not_now(fd)
                return -1
            return real(fd, view[: step.size])

        return receive_into

    def _send(self, real: Any) -> Any:
        def send(fd: int, data: bytes | bytearray | memoryview) -> Any:
            step = self.send.take()
            if isinstance(step, Fail):
                return -step.number
            if isinstance(step, NotNow):
                self._not_now(fd)
                return 0
            return real(fd, memoryview(data)[: step.size])

        return send

    def _send_many(self, real: Any) -> Any:
        def send_many(fd: int, buffers: Iterable[bytes | memoryview]) -> Any:
            step = self.send_many.take()
            if isinstance(step, Fail):
                return -step.number
            if isinstance(step, NotNow):
                self._not_now(fd)
                return 0
            if step is REAL:
                return real(fd, buffers)
            return real(fd, [memoryview(b"".join(buffers))[: step.size]])

        return send_many

    def _swap_receive(self, real: Any) -> Any:
        def receive(swap: _sys.SwapBuffer, fd: int, start: int, room: int) -> Any:
            step = self.swap_receive.take()
            if isinstance(step, Fail):
                return _sys.FAILED - step.number
            if isinstance(step, NotNow):
                self._not_now(fd)
                return -1
            return real(swap, fd, start, min(room, step.size))

        return receive
