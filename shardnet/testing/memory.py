"""Sockets in memory, and an engine for endpoints on them: what a connection stands on that has no kernel below it.

A `MemorySocket` does what a TCP socket on Linux does, as far as an endpoint can tell: bounded buffers, the end of the
stream behind what was sent before, a reset for who is closed with unread input or written to after its close, and
bytes that came before a reset still readable. The engine is the real one, turned by the loop whenever there is
something to do instead of from inside `select()`, so that it needs no particular loop: a handle of the loop's is a
place where no task is running, and parked tasks may be resumed there.

Lives here: memory in the place of descriptors. Must not live here: connections (see `pair`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final, cast

from shardnet.connection import Connection
from shardnet.errors import InternalError
from shardnet.watcher._sys import EVENT_FAILED, EVENT_IN, EVENT_OUT, EVENT_RDHUP, FAILED, SwapBuffer, size_of
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES, Endpoint
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.listener import Listener
from shardnet.watcher.timers import Timer

SWAP_SIZE_BYTES: Final = 65536
FIRST_DESCRIPTOR: Final = 2**31 - 64  # No process has so many: whoever passes one to the kernel gets EBADF.


class MemorySocket:
    """One end of two that are joined. Its endpoint is told by `notify` what a poll would tell."""

    def __init__(self, address: Any, room_bytes: int, chunk_bytes: int) -> None:
        self.address = address
        self.peer = self
        self.notify: Callable[[int], None] = _tell_nobody
        self.arrived = bytearray()  # Sent by the peer, and not received yet.
        self.room_bytes = room_bytes  # The most that waits in `arrived`.
        self.chunk_bytes = chunk_bytes  # The most that one receive brings.
        self.resets_on_close = False
        self._error = 0  # What the next operation meets.
        self._input_ended = False
        self._output_ended = False
        self._closed = False
        self._reset = False

    @property
    def readable(self) -> bool:
        """Whether a receive would bring bytes, the end, or an error."""
        return bool(self.arrived or self._error or self._input_ended or self._reset)

    def receive(self, size: int) -> bytes | None:
        """At most `size` bytes, b"" at the end of the stream, None for "not now"."""
        if self.arrived:
            size = min(size, self.chunk_bytes)
            data = bytes(self.arrived[:size])
            del self.arrived[:size]
            self.peer.notify(EVENT_OUT)
            return data
        if not self._input_ended:  # As Linux has it: who was told of the end is not told of a reset behind it.
            self._meet_error()
        return b"" if self._input_ended or self._reset else None

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what there is room for: how many bytes, 0 for "not now"."""
        self._meet_error()
        if self._output_ended or self._reset:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        peer = self.peer
        if peer._closed:
            self._take_reset()  # The answer of an end that is closed; what was sent is lost.
            return size_of(data)
        size = min(size_of(data), peer.room_bytes - len(peer.arrived))
        if size > 0:
            peer.arrived += memoryview(data).cast("B")[:size]
            peer.notify(EVENT_IN)
        return max(size, 0)

    def end_output(self) -> None:
        if self._reset:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if not self._output_ended:
            self._output_ended = True
            self.peer._take_end()

    def take_error(self) -> int:
        number, self._error = self._error, 0
        return number

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._reset:
            return
        if self.resets_on_close or self.arrived:
            self.peer._take_reset()
        elif not self._output_ended:
            self.peer._take_end()
        self.peer.notify(EVENT_OUT)  # Whoever waits for room learns that there will be none.

    def _meet_error(self) -> None:
        if number := self.take_error():
            raise OSError(number, os.strerror(number))

    def _take_end(self) -> None:
        self._input_ended = True
        self.notify(EVENT_IN | EVENT_RDHUP)

    def _take_reset(self) -> None:
        if self._closed or self._reset:
            return
        self._reset = True
        # What Linux says of a reset in CLOSE_WAIT, and elsewhere.
        self._error = errno.EPIPE if self._input_ended and not self._output_ended else errno.ECONNRESET
        self.notify(EVENT_IN | EVENT_OUT | EVENT_RDHUP | EVENT_FAILED)


def joined(addresses: tuple[Any, Any], room_bytes: int, chunk_bytes: int) -> tuple[MemorySocket, MemorySocket]:
    """Two ends of one connection."""
    first, second = (MemorySocket(address, room_bytes, chunk_bytes) for address in addresses)
    first.peer, second.peer = second, first
    return first, second


class MemoryEndpoint(HookEndpoint):
    """An endpoint on a `MemorySocket`: what an endpoint asks of its descriptor, asked of memory.

    To be put in front of a class of connections: see `on_memory`.
    """

    _memory: MemorySocket
    _pump: Callable[[], None]

    def plug(self, memory: MemorySocket, pump: Callable[[], None]) -> None:
        """Begin to hear of the socket. `pump` has the engine turned soon."""
        self._memory = memory
        self._pump = pump
        memory.notify = self._on_notify
        if memory.readable:
            self._on_notify(EVENT_IN)

    def unplug(self) -> None:
        self._memory.notify = _tell_nobody
        self._memory.close()

    def _on_notify(self, events: int) -> None:
        self.note_events(events)
        self._pump()

    def post_read(self, size: int = CHUNK_MAX_BYTES) -> None:
        super().post_read(size)
        if self.readable:
            self._pump()

    def _receive_into(self, swap: SwapBuffer, start: int, room: int) -> int:
        try:
            data = self._memory.receive(room)
        except OSError as error:
            return FAILED - (error.errno or 0)
        if data is None:
            return -1
        swap.put(start, data)
        return len(data)

    def _receive_bytes(self, size: int) -> bytes | None:
        return self._memory.receive(size)

    def _send_bytes(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._memory.send(data)
        except OSError as error:
            return -(error.errno or 0)

    def _send_queue(self, queue: deque[bytes | memoryview]) -> int:
        return self._send_bytes(queue[0])

    def _drained(self) -> None:
        self.readable = self._memory.readable  # A receive that was short because of `chunk_bytes` has left some.

    def end_output(self) -> None:
        self._memory.end_output()

    def reset_on_close(self) -> None:
        self._memory.resets_on_close = True

    def unread_in_kernel(self) -> int:
        return len(self._memory.arrived)

    def pending_error(self) -> int:
        return self._memory.take_error()

    def local_address(self) -> Any:
        return self._memory.address


_MADE: dict[type[Connection], type[Connection]] = {}


def on_memory(kind: type[Connection]) -> type[Connection]:
    """The class of connections that does on a memory socket what `kind` does on a descriptor."""
    if kind not in _MADE:
        _MADE[kind] = cast("type[Connection]", type(f"Memory{kind.__name__}", (MemoryEndpoint, kind), {}))
    return _MADE[kind]


class MemoryListener:
    """What a server accepts on: hands it one memory socket after the other, at once."""

    family: Final = socket.AF_INET
    fd: Final = -1
    exclusive: Final = False

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.on_accept: Callable[[int, Any], None] = _refuse

    def accept(self, joined: MemorySocket) -> Connection:
        """The connection that the server has made of the socket; closed, perhaps, by its handler."""
        fd = self._engine.open(joined)
        self.on_accept(fd, joined.peer.address)
        return cast("Connection", self._engine.plugged(fd))

    def accept_queued(self, attempts_max: int) -> bool:
        return True

    def pause(self) -> None:
        pass

    resume = pause


class MemoryEngine(Engine):
    """The engine of memory endpoints: it has no descriptor to wait for, and `loop` turns it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cells: memoryview) -> None:
        super().__init__(SWAP_SIZE_BYTES, cells)
        self._loop = loop
        self._context = copy_context()  # Handlers get none of a test's that happens to wake them.
        self._sockets: dict[int, MemorySocket] = {}
        self._endpoints: dict[int, MemoryEndpoint] = {}  # Those that are open.
        self._plugged: dict[int, MemoryEndpoint] = {}
        self._turn_due = False
        self._alarm: asyncio.TimerHandle | None = None

    def open(self, memory: MemorySocket) -> int:
        """What stands for a descriptor of the socket."""
        fd = FIRST_DESCRIPTOR + len(self._sockets)
        self._sockets[fd] = memory
        return fd

    def listen(self, sock: Any, on_accept: Callable[[int, Any], None], *_: Any, **__: Any) -> Listener:
        assert isinstance(sock, MemoryListener)
        sock.on_accept = on_accept
        return cast("Listener", sock)

    def plugged(self, fd: int) -> MemoryEndpoint:
        """The endpoint that was added with this descriptor, closed or not."""
        return self._plugged[fd]

    def add(self, endpoint: Endpoint) -> None:
        assert isinstance(endpoint, MemoryEndpoint)
        self._endpoints[endpoint.fd] = self._plugged[endpoint.fd] = endpoint
        endpoint.plug(self._sockets[endpoint.fd], self._turn_soon)

    def endpoints(self) -> list[Endpoint]:
        return list(self._endpoints.values())

    def free(self, endpoint: Endpoint) -> None:
        assert isinstance(endpoint, MemoryEndpoint)
        if endpoint.fd >= 0:
            self._endpoints.pop(endpoint.abandon(), None)
            endpoint.unplug()

    def after(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        timer = super().after(delay_s, callback)
        self._turn_soon()  # Which sets the alarm.
        return timer

    def defer(self, callback: Callable[..., object], *args: Any) -> None:
        super().defer(callback, *args)
        self._turn_soon()

    def close(self) -> None:
        for endpoint in self.endpoints():
            self.free(endpoint)
        if self._alarm is not None:
            self._alarm.cancel()
        super().close()

    def _turn_soon(self) -> None:
        if not self._turn_due and not self.closed:
            self._turn_due = True
            self._loop.call_soon(self._turn_now, context=self._context)

    def _turn_now(self) -> None:
        self._turn_due = False
        if self.closed:
            return
        try:
            self.turn(0.0)
        finally:
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.closed:
            return
        wait_s = self._wait_s(None)
        if wait_s == 0.0:
            self._turn_soon()
        elif wait_s is not None:
            self._alarm = self._loop.call_later(wait_s, self._turn_soon, context=self._context)


def _tell_nobody(_events: int) -> None:
    pass


def _refuse(_fd: int, _peer: Any) -> None:
    raise InternalError("a memory listener that no server listens on")
