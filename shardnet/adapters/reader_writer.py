"""The reader and the writer of an `async def handler(reader, writer)`.

`Reader` is asyncio's StreamReader with another way to wait: bytes are received when somebody reads, and the reader's
task is resumed from inside the poll, as it is in `Connection.read`. What it does with its buffer (framing, limits,
errors) is asyncio's own code, in the words of each Python version.
"""

from __future__ import annotations

import asyncio
from asyncio import streams
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

from shardnet.adapters.transport import SENDFILE_PROTOCOL, ConnectionTransport
from shardnet.adapters.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from shardnet.adapters.streams import StreamsConnection

# asyncio's own pair of reader and writer, on a protocol: what `asyncio.start_server` makes.
INSTEAD: Final = "serve lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), handler)"


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

    def __init__(self, conn: StreamsConnection, limit: int, held: Held) -> None:
        super().__init__(limit, conn.loop)
        self._conn = conn
        self._held = held

    @property
    def buffer(self) -> bytearray:
        """What was received and not yet read."""
        return self._buffer

    def exception(self) -> Exception | None:
        return self._exception or self._conn.failure

    def read(self, n: int = -1) -> Coroutine[Any, Any, bytes]:
        if n > 0 and not self._buffer and not self._eof and self._exception is None:
            reading: Coroutine[Any, Any, bytes] = self._conn.read_for(self, n)
            return reading
        return super().read(n)

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
        looks = not self._buffer and not self._eof and self._exception is None
        if looks and (data := self._conn.look()) is not None:
            self.receive(data)
        return super().at_eof()

    def _wait_for_data(self, func_name: str) -> Awaitable[bool]:
        filling: Awaitable[bool] = self._conn.fill_for(self)
        return filling

    def receive(self, data: bytes) -> None:
        """Take what was received; b"" is the end."""
        if data:
            self._buffer.extend(data)
        else:
            self.meet_end()

    def meet_end(self) -> None:
        """The stream has ended. Raises what ended it, if that was an exception."""
        if self._exception is not None:  # That is why it ended.
            raise self._exception
        self._eof = True


class Writer(Writing, asyncio.StreamWriter):
    """asyncio's writer, which writes straight to the connection."""

    def __init__(self, conn: StreamsConnection, reader: Reader, held: Held) -> None:
        # Not asyncio's own, which wants a transport, and makes a future.
        self._conn = conn
        self._reader = reader
        self._held = held
        self._loop = conn.loop
        self._made: StreamsTransport | None = None

    def __repr__(self) -> str:
        return f"<Writer of {self._conn!r}>"

    def __del__(self) -> None:
        """Not asyncio's, which closes: see `Held`."""

    @property
    def _transport(self) -> StreamsTransport:
        if self._made is None:
            self._made = self._conn.make_transport()
        return self._made

    def _write_late(self, data: Any) -> None:
        self._transport.write(data)  # It knows what to say.

    def note_unsent(self) -> None:
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

    def drain(self) -> Coroutine[Any, Any, None]:
        draining: Coroutine[Any, Any, None] = self._conn.drain_plainly() or self._drain()
        return draining

    async def _drain(self) -> None:
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


class Held:
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
