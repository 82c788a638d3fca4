"""The event loop of a worker: asyncio's own, on an engine instead of a selector.

asyncio asks its selector which descriptors are ready. Ours runs a turn of the engine instead: the engine completes
its own connections, which resumes their handlers right there, and what is left for asyncio are the descriptors that it
registered itself (its self-pipe, sockets of client libraries, pipes of subprocesses). So everything made for asyncio
works beside the connections, and they never pay for it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shardnet.watcher._sys import EVENT_IN, EVENT_OUT
from shardnet.watcher.engine import Engine

# An idle loop wakes this often to say that it lives.
HEARTBEAT_S: Final = 5.0


def new_loop(engine: Engine, heartbeat: memoryview | None = None) -> asyncio.SelectorEventLoop:
    """An asyncio event loop that runs on `engine`; the caller closes the loop first, then the engine.

    `heartbeat`, one cell of 64 bits, is given the monotonic time in nanoseconds at every turn, and at least every
    `HEARTBEAT_S` while the loop is not stuck.
    """
    return asyncio.SelectorEventLoop(EngineSelector(engine, heartbeat))


class EngineSelector(selectors.BaseSelector):
    """A selector whose `select` is a turn of an engine. The engine stays its owner's."""

    def __init__(self, engine: Engine, heartbeat: memoryview | None = None) -> None:
        self._engine = engine
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._map = _KeysByFile(self._keys)
        self._heartbeat = heartbeat

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
        if timeout is None or timeout > HEARTBEAT_S:
            timeout = HEARTBEAT_S
        engine = self._engine
        try:
            engine.turn(max(timeout, 0.0))
        except BaseException:
            engine.guests_ready = []  # Level-triggered: the next turn tells of them again, and not twice.
            raise
        if self._heartbeat is not None:
            self._heartbeat[0] = time.monotonic_ns()
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
