"""Connections in front of an `async def handler(reader, writer)`, as `asyncio.start_server` takes it.

`Reader` is asyncio's StreamReader with another way to wait: bytes are received when somebody reads, and the reader's
task is resumed from inside the poll, as it is in `Connection.read`. What it does with its buffer (framing, limits,
errors) is asyncio's own code, in the words of each Python version.

A handler that returns has only dropped its reader and writer. The connection lives on while somebody else holds one of
them, and is closed when nobody does.
"""

from __future__ import annotations

import asyncio
from asyncio import streams
from collections.abc import Callable, Iterable
from typing import Any, Final, SupportsIndex

from shardnet.adapters.transport import SENDFILE_PROTOCOL, ConnectionTransport
from shardnet.connection import Connection, Host, Stage
from shardnet.connection.resume import State
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES

# asyncio's own pair of reader and writer, on a protocol: what `asyncio.start_server` makes.
INSTEAD: Final = "serve lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), handler)"


class StreamsConnection(Connection):
    """A connection that is given to its handler as a reader and a writer."""

    __slots__ = ("_reader_buffer", "_sent_waiters", "_transport", "flow")

    def __init__(self, host: Host, fd: int, id_: int, peer: Any, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, id_, peer, traffic, unix)
        self._transport: StreamsTransport | None = None
        self._reader_buffer: bytearray | None = None  # The reader's own.
        self._sent_waiters: list[asyncio.Future[None]] | None = None
        self.flow: streams.FlowControlMixin | None = None

    def start(self, handler: Callable[..., Any]) -> None:
        self._make_waiter()
        held = _Held(self)
        reader = Reader(self, self._host.limits.line_max_bytes, held)
        self._reader_buffer = reader.buffer
        returned = handler(reader, Writer(self, reader, held))
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
        if self._waiter is None or self._waiter.state is not State.IDLE or self.reading or self.paused:
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
        return self._stage is Stage.LINGERING or self._stage is Stage.CLOSED

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

    # Hooks.

    def on_progress(self) -> None:
        super().on_progress()
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
        return not self._reader_buffer and super()._nothing_pending()

    def _on_handler_returned(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._close(self._reason)


class StreamsTransport(ConnectionTransport):
    """What `writer.transport` is: the reader reads without it, so that no protocol can take over."""

    _start_tls_compatible = False

    __slots__ = ()

    def set_protocol(self, protocol: Any) -> None:
        if not isinstance(protocol, (streams.FlowControlMixin, SENDFILE_PROTOCOL)):
            raise NotImplementedError(f"the protocol of a streams handler cannot be changed: {INSTEAD}")
        super().set_protocol(protocol)

    def tell_lost(self, error: OSError | None) -> None:
        """Whoever waits to write is to wait no more."""
        self._protocol.connection_lost(error)


class Reader(asyncio.StreamReader):
    """asyncio's reader, which waits in its own way. One task at a time reads."""

    _buffer: bytearray
    _eof: bool
    _exception: Exception | None

    def __init__(self, conn: StreamsConnection, limit: int, held: _Held) -> None:
        super().__init__(limit, conn.loop)
        self._conn = conn
        self._held = held

    @property
    def buffer(self) -> bytearray:
        """What was received and not yet read."""
        return self._buffer

    def exception(self) -> Exception | None:
        return self._exception or self._conn.failure

    async def read(self, n: int = -1) -> bytes:
        if n > 0 and not self._buffer and not self._eof and self._exception is None:
            data = await self._conn.read(n)  # The usual case, without a stay in the buffer.
            if not data:
                self._meet_end()
            return data
        return await super().read(n)

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        assert not self._eof, "feed_data after feed_eof"
        if fed := bytes(data):
            self._conn.feed(fed)

    def feed_eof(self) -> None:
        super().feed_eof()
        self._conn.end_input()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._conn.end_input()

    def at_eof(self) -> bool:
        # asyncio's reader has received ahead, and knows. This one looks, as far as that needs no waiting.
        if not self._buffer and not self._eof and self._exception is None:
            self._take(self._conn.look())
        return super().at_eof()

    async def _wait_for_data(self, func_name: str) -> None:
        self._take(await self._conn.read())

    def _take(self, data: bytes | None) -> None:
        if data:
            self._buffer.extend(data)
        elif data is not None:
            self._meet_end()

    def _meet_end(self) -> None:
        if self._exception is not None:  # That is why it ended.
            raise self._exception
        self._eof = True


class Writer(asyncio.StreamWriter):
    """asyncio's writer, which writes straight to the connection."""

    def __init__(self, conn: StreamsConnection, reader: Reader, held: _Held) -> None:
        # Not asyncio's own, which wants a transport, and makes a future.
        self._conn = conn
        self._reader = reader
        self._held = held
        self._loop = conn.loop
        self._made: StreamsTransport | None = None

    def __repr__(self) -> str:
        return f"<Writer of {self._conn!r}>"

    def __del__(self) -> None:
        """Not asyncio's, which closes: see `_Held`."""

    @property
    def _transport(self) -> StreamsTransport:
        if self._made is None:
            self._made = self._conn.make_transport()
        return self._made

    def write(self, data: bytes | bytearray | memoryview) -> None:
        conn = self._conn
        if conn.is_closing() or conn.output_ended or not isinstance(data, (bytes, bytearray, memoryview)):
            self._transport.write(data)  # It knows what to say.
            return
        conn.write(data)
        if conn.unsent_bytes:
            self._transport.note_unsent()

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(data))

    def close(self) -> None:
        self._conn.close()

    def is_closing(self) -> bool:
        return self._conn.is_closing()

    async def wait_closed(self) -> None:
        """Wait until everything is sent. Raises the error that the connection ended with."""
        await self._conn.wait_sent()
        if self._conn.failure is not None:
            raise self._conn.failure.with_traceback(None)

    async def drain(self) -> None:
        conn = self._conn
        if conn.failure is not None:
            raise conn.failure.with_traceback(None)
        if conn.is_closing():
            await asyncio.sleep(0)  # As asyncio does, for loops that write and drain and do nothing else.
            if conn.sending_over:
                raise ConnectionResetError("Connection lost")
        if conn.flow is not None:
            await conn.flow._drain_helper()  # type: ignore[attr-defined]  # as asyncio's own drain does

    async def start_tls(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"start_tls is not for a streams handler: {INSTEAD}")


class _Held:
    """What reader and writer hold together, so that it is known when nobody holds either.

    The garbage collector may come upon them in any thread.
    """

    __slots__ = ("_conn",)

    def __init__(self, conn: StreamsConnection) -> None:
        self._conn = conn

    def __del__(self) -> None:
        conn = self._conn
        if not conn.is_closing() and not conn.loop.is_closed():
            conn.loop.call_soon_threadsafe(conn.close)
