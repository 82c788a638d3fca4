"""Connections in front of an `async def handler(reader, writer)`, as `asyncio.start_server` takes it.

A handler that returns has only dropped its reader and writer. The connection lives on while somebody else holds one of
them, and is closed when nobody does.

Lives here: the connection, and how it is read. Must not live here: what handlers see of it (see `reader_writer`).
"""

from __future__ import annotations

import asyncio
from asyncio import streams
from typing import Any

from shardnet.adapters.reader_writer import Held, Reader, StreamsTransport, Writer
from shardnet.connection.connection import Connection
from shardnet.connection.host import Host
from shardnet.connection.reading import _Read
from shardnet.connection.resume import DONE
from shardnet.connection.stages import CLOSED, LINGERING, OPEN
from shardnet.connection.states import IDLE
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES


class StreamsConnection(Connection):
    """A connection that is given to its handler as a reader and a writer."""

    __slots__ = ("_reader_buffer", "_sent_waiters", "_transport", "flow")

    def __init__(self, host: Host, fd: int, id_: int, peer: Any, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, id_, peer, traffic, unix)
        self._transport: StreamsTransport | None = None
        self._reader_buffer: bytearray | None = None  # The reader's own.
        self._sent_waiters: list[asyncio.Future[None]] | None = None
        self.flow: streams.FlowControlMixin | None = None

    def start(self) -> None:
        self._make_waiter()
        held = Held(self)
        reader = Reader(self, self._host.limits.line_max_bytes, held)
        self._reader_buffer = reader.buffer
        returned = self._host.handler(reader, Writer(self, reader, held))
        if asyncio.iscoroutine(returned):  # asyncio allows a plain function here.
            self._start_task(returned)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._host.loop

    def make_transport(self) -> StreamsTransport:
        """For the writer, when somebody asks it for its transport."""
        self.flow = streams.FlowControlMixin(self.loop)
        transport = StreamsTransport(self, self.flow, self.loop)
        if self.sending_over:
            transport.over()
            self.flow.connection_lost(None)
        else:
            self._transport = transport
        return transport

    @property
    def failure(self) -> OSError | None:
        """What the network ended the connection with."""
        return self._failure

    def set_protocol(self, protocol: Any) -> None:
        """Nothing: the reader reads without one, and the transport itself knows whom to tell to pause writing."""

    def look(self) -> bytes | None:
        """What a read would bring right now; None when it would wait, or somebody else waits."""
        if self._waiter is None or self._waiter.state != IDLE or self.reading or self.paused:
            return None
        if self._leftover is not None:
            return self._consume(CHUNK_MAX_BYTES)
        try:
            return self._receive(CHUNK_MAX_BYTES)
        except OSError:
            return None  # It is met again by the next read.

    def feed(self, data: bytes) -> None:
        """Take `data` as received, before what the peer sends from now on."""
        self.withdraw_read()
        self._put_behind(data)
        self._release_reader()

    def end_input(self) -> None:
        """Read no more, whatever the peer still sends: who waits in a read is told of the end."""
        self._ended = True
        self.withdraw_read()
        self._release_reader()

    @property
    def sending_over(self) -> bool:
        """Whether everything is sent, or nothing more will be."""
        return self._stage == LINGERING or self._stage == CLOSED

    async def wait_sent(self) -> None:
        """Wait until sending is over."""
        if not self.sending_over:
            sent = self.loop.create_future()
            if self._sent_waiters is None:
                self._sent_waiters = []
            self._sent_waiters.append(sent)
            try:
                await sent
            finally:
                if self._sent_waiters is not None:  # Given up.
                    self._sent_waiters.remove(sent)

    # What the reader and the writer call for each message.

    def read_for(self, reader: Reader, n: int) -> Any:
        """What `reader.read(n)` is, while the reader has nothing and `n` is more than 0."""
        read = ReaderRead.__new__(ReaderRead)  # Without a call of `__init__`, which would take a tuple.
        read._conn = self
        read._size = min(n, CHUNK_MAX_BYTES)
        read._reader = reader
        read.over = read._parked = False
        return read

    def fill_for(self, reader: Reader) -> Any:
        """Wait for something to come into the reader's buffer, or for the end."""
        return ReaderFill(self, CHUNK_MAX_BYTES, reader)

    def drain_plainly(self) -> Any:
        """What `drain` is when there is nothing to say and nothing to wait for."""
        if (
            self._stage != OPEN
            or self.flow is not None
            or (self._aside is not None and self._aside.failure is not None)
        ):
            return None
        return DONE

    # Hooks.

    def on_progress(self) -> None:
        Connection.on_progress(self)
        if self._transport is not None:
            self._transport.note_progress()

    def _on_sending_over(self) -> None:
        transport, self._transport = self._transport, None  # Which the writer has: no reference back to us is needed.
        if transport is not None:
            transport.over()
            self.loop.call_soon(transport.tell_lost, self._failure)
        waiters, self._sent_waiters = self._sent_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _nothing_pending(self) -> bool:
        return not self._reader_buffer and Connection._nothing_pending(self)

    def _on_handler_returned(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._close(self._reason)


class _ReaderRead(_Read):
    """A read in the name of a reader."""

    __slots__ = ("_reader",)

    def __init__(self, conn: StreamsConnection, size: int, reader: Reader) -> None:
        super().__init__(conn, size)
        self._reader = reader


class ReaderRead(_ReaderRead):
    """The awaitable of the reader's `read(n)`: the usual case, without a stay in its buffer."""

    __slots__ = ()

    def _look(self) -> bytes | None:
        data = self._conn.take(self._size)
        if data is not None and not data:
            self._reader.meet_end()
        return data


class ReaderFill(_ReaderRead):
    """The awaitable that fills the reader's buffer: False at the end."""

    __slots__ = ()

    def _look(self) -> bool | None:
        data = self._conn.take(self._size)
        if data is None:
            return None
        self._reader.receive(data)
        return data != b""
