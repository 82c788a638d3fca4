"""The event loop of a worker: asyncio's own, on an engine instead of a selector.

asyncio asks its selector which descriptors are ready. Ours runs a turn of the engine instead: the engine completes
its own connections, which resumes their handlers right there, and what is left for asyncio are the descriptors that it
registered itself (its self-pipe, sockets of client libraries, pipes of subprocesses). So everything made for asyncio
works beside the connections, and they never pay for it.
"""

from __future__ import annotations

import asyncio
import selectors
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shardnet.watcher import _sys
from shardnet.watcher._sys import EVENT_IN, EVENT_OUT
from shardnet.watcher.engine import Engine

# An idle loop wakes this often to say that it lives.
HEARTBEAT_S: Final = 5.0


def new_loop(
    engine: Engine, heartbeat: memoryview | None = None, heartbeat_s: float = HEARTBEAT_S
) -> asyncio.SelectorEventLoop:
    """An asyncio event loop that runs on `engine`; the caller closes the loop first, then the engine.

    `heartbeat`, one cell of 64 bits, is given the monotonic time in nanoseconds at every turn, and at least every
    `heartbeat_s` while the loop is not stuck.
    """
    selector = EngineSelector(engine, heartbeat, heartbeat_s)
    loop = asyncio.SelectorEventLoop(selector)
    selector.serve(loop)
    return loop


class Turns:
    """Turns of an engine, in the place of the poll of an asyncio event loop."""

    __slots__ = ("_engine", "_heartbeat", "_heartbeat_kept", "loop")

    def __init__(self, engine: Engine, heartbeat: memoryview | None) -> None:
        self.loop: Any = None  # What is looked at of it is private, and in every asyncio since 3.4.
        self._engine = engine
        self._heartbeat_kept = memoryview(array("Q", [0]) if heartbeat is None else heartbeat)
        self._heartbeat = _sys.cells_of(self._heartbeat_kept)

    def take(self, timeout_s: float) -> None:
        """Turn the engine until the loop has something to do, or the time has passed; at least once.

        What the engine completes is dealt with in the turn: a pass of the loop for each would be for nothing.
        """
        engine = self._engine
        if timeout_s <= 0.0:
            engine.turn(0.0)
            self._heartbeat[0] = _sys.monotonic_ns()
            return
        timer = self._first_timer()
        until_ns = _sys.monotonic_ns() + int(timeout_s * 1e9)
        left_s = timeout_s
        while left_s > 0.0:
            engine.turn(left_s)
            now_ns = _sys.monotonic_ns()
            self._heartbeat[0] = now_ns
            if engine.guests_ready or self._is_wanted(timer):
                return
            left_s = (until_ns - now_ns) * 1e-9

    def _first_timer(self) -> Any:
        scheduled = self.loop._scheduled if self.loop is not None else None
        return scheduled[0] if scheduled else None

    def _is_wanted(self, timer: Any) -> bool:
        """Whether the loop has something to do besides waiting until `timer` is due, which was its first."""
        loop = self.loop
        return loop is None or bool(loop._ready) or bool(loop._stopping) or self._first_timer() is not timer


class EngineSelector(selectors.BaseSelector):
    """A selector whose `select` is a turn of an engine. The engine stays its owner's."""

    def __init__(self, engine: Engine, heartbeat: memoryview | None = None, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._heartbeat_s = heartbeat_s
        self._engine = engine
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._map = _KeysByFile(self._keys)
        self._turns = Turns(engine, heartbeat)

    def serve(self, loop: asyncio.SelectorEventLoop) -> None:
        """From now on, do not return from `select` to `loop` before there is something for it to do."""
        self._turns.loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if not events or events & ~(selectors.EVENT_READ | selectors.EVENT_WRITE):
            raise ValueError(f"{events!r} are no events to wait for")
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (descriptor {fd}) is registered already")
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._engine.watch(fd, _to_epoll(events), key)
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._map[fileobj]
        del self._keys[key.fd]
        self._engine.unwatch(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = self._map[fileobj].fd
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._engine.rewatch(fd, _to_epoll(events), key)
        self._keys[fd] = key
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > self._heartbeat_s:
            timeout = self._heartbeat_s
        engine = self._engine
        try:
            self._turns.take(timeout)
        except BaseException:
            engine.guests_ready = []  # Level-triggered: the next turn tells of them again, and not twice.
            raise
        if not engine.guests_ready:
            return []
        ready: list[tuple[selectors.SelectorKey, int]] = engine.guests_ready
        engine.guests_ready = []
        # The turn ran handlers. One may have unregistered a descriptor that was ready, and another may have got the
        # same number since: only a key that still stands is told. Level-triggered, a changed one comes again.
        keys = self._keys
        return [(key, _from_epoll(events) & key.events) for key, events in ready if keys.get(key.fd) is key]

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map[fileobj]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._map

    def close(self) -> None:
        for fd in list(self._keys):
            self.unregister(fd)


class _KeysByFile(Mapping[Any, selectors.SelectorKey]):
    """The selector's keys, found by descriptor or by file object."""

    def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        try:
            return self._keys[_descriptor(fileobj)]
        except ValueError:  # Closed before it was unregistered, as asyncio's users do.
            for key in self._keys.values():
                if key.fileobj is fileobj:
                    return key
            raise

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)


def _descriptor(fileobj: Any) -> int:
    if isinstance(fileobj, int):
        fd = fileobj
    else:
        try:
            fd = int(fileobj.fileno())
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{fileobj!r} is no file") from error
    if fd < 0:
        raise ValueError(f"{fileobj!r} has no descriptor: it is closed")
    return fd


def _to_epoll(events: int) -> int:
    return (EVENT_IN if events & selectors.EVENT_READ else 0) | (EVENT_OUT if events & selectors.EVENT_WRITE else 0)


def _from_epoll(events: int) -> int:
    """Errors and hang-ups wake readers and writers alike, as in the standard library's selector."""
    readable = selectors.EVENT_READ if events & ~EVENT_OUT else 0
    writable = selectors.EVENT_WRITE if events & ~EVENT_IN else 0
    return readable | writable
