"""Connections in front of an `asyncio.Protocol` or `asyncio.BufferedProtocol`, without a task.

The protocol's calls come in asyncio's order: `connection_made`, then `data_received` or `buffer_updated`,
`eof_received` at most once, and `connection_lost` once, from the loop and never from inside a call of the protocol's
own. It comes when what was written is sent; that the descriptor lingers a moment longer for the peer's end is not the
protocol's business.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any, Final

from shardnet.adapters.transport import ConnectionTransport
from shardnet.connection._steps import try_in
from shardnet.connection.callback import CallbackConnection
from shardnet.connection.host import Host
from shardnet.connection.stages import OPEN, CloseReason

BUFFER_HINT: Final = -1  # What asyncio's own transports give `get_buffer`: any size will do.


class ProtocolConnection(CallbackConnection):
    """A connection whose chunks go to a protocol of its own, which a factory makes."""

    __slots__ = ("_data_received", "_protocol", "_transport", "_wants_buffers", "_written_before")

    def __init__(self, host: Host, fd: int, id_: int, peer: Any, traffic: int, unix: bool = False) -> None:
        super().__init__(host, fd, id_, peer, traffic, unix)
        self._transport: ConnectionTransport | None = None
        self._protocol: Any = None
        self._data_received: Any = None  # The protocol's: bound once, not for each chunk.
        self._wants_buffers = False
        self._written_before = -1  # Bytes written when the last chunk came.

    def start(self) -> None:
        self._context = copy_context()
        made = self._context.run(self._host.handler)
        if not hasattr(made, "connection_made"):
            raise TypeError(f"the factory made {made!r}, which is no protocol")
        self.set_protocol(made)
        self._transport = ConnectionTransport(self, self._protocol, self._host.loop)
        self._context.run(self._protocol.connection_made, self._transport)
        self._read_on()

    def set_protocol(self, protocol: Any) -> None:
        """From now on `protocol` is told; it has been told of the transport by whoever puts it here."""
        self._protocol = protocol
        # As asyncio decides it; something with the methods alone is taken as it is.
        self._data_received = getattr(protocol, "data_received", None)
        self._wants_buffers = isinstance(protocol, asyncio.BufferedProtocol) or not hasattr(protocol, "data_received")

    # Ends.

    def end_if_idle(self) -> bool:
        """A protocol that was sent something and has written nothing since is thought to be at work on an answer."""
        owes_answer = self.sent_bytes + self.unsent_bytes == self._written_before
        if self._stage != OPEN or self._ended or owes_answer or not self._nothing_pending():
            return False
        self._ended = True
        self._reason = CloseReason.DRAIN
        self.withdraw_read()
        self._tell_end()
        self._close(CloseReason.DRAIN)
        return True

    def _on_peer_ended(self) -> None:
        if self._stage == OPEN and not self._tell_end():
            self._close(CloseReason.EOF)

    def on_progress(self) -> None:
        CallbackConnection.on_progress(self)
        if self._transport is not None:
            try:
                self._context.run(self._transport.note_progress)
            except BaseException as error:  # SystemExit; asyncio's own code keeps the others.
                self.end_after(error)

    def _tell_end(self) -> bool:
        """Whether the protocol wants to go on writing."""
        try:
            return bool(self._context.run(self._protocol.eof_received))
        except BaseException as error:
            self.end_after(error)
            return False

    def _on_sending_over(self) -> None:
        if self._transport is not None:
            self._transport.over()
            error = None if self._aside is None else self._aside.failure or self._aside.cause
            self._host.loop.call_soon(self._tell_lost, error, context=self._context)

    def _tell_lost(self, error: BaseException | None) -> None:
        # Whatever happens: app, protocol and transport refer to each other no more, and need no garbage collector.
        protocol, self._protocol = self._protocol, None
        self._data_received = None
        transport, self._transport = self._transport, None
        try:
            protocol.connection_lost(error)
        except BaseException as raised:  # Also SystemExit, as everywhere.
            self._host.handler_raised(self, raised)
        finally:
            if transport is not None:
                transport.forget_protocol()

    # Data.

    def _read_on(self) -> None:
        # Whatever is unsent: a protocol that is told to pause writing decides itself what to do about it.
        if self._wants_more() and not self._wanted:
            self.post_read()

    def _deliver(self, data: bytes) -> None:
        self._written_before = self.sent_bytes + self.unsent_bytes
        if self._wants_buffers:
            error = try_in(self._context, self._fill, data)
        else:
            error = try_in(self._context, self._data_received, data)
        if error is not None:  # Also SystemExit: a handler ends its connection, never the worker.
            self.end_after(error)
            del error  # Its frames refer to this one.
        self._read_on()

    def _fill(self, data: bytes) -> None:
        """Hand `data` over through the protocol's own buffers; what it does not want now waits for `resume`."""
        rest = memoryview(data)
        while rest and self._stage == OPEN:
            if self._paused or not self._wants_buffers:
                self._put_before(bytes(rest))
                if not self._paused:  # Another protocol took over, which wants bytes.
                    self._host.engine.defer(self._deliver_leftover)
                return
            size = _copy(rest, self._protocol.get_buffer(BUFFER_HINT))
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
            rest = rest[size:]
            self._protocol.buffer_updated(size)

    def _put_before(self, data: bytes) -> None:
        behind, self._leftover = self._leftover, data
        if behind is not None:
            self._put_behind(bytes(behind))


def _copy(data: memoryview, buffer: Any) -> int:
    """Copy what fits: how many bytes. The buffer is free again on return: its protocol may resize it then."""
    with memoryview(buffer) as items, items.cast("B") as octets:
        size = min(len(octets), len(data))
        octets[:size] = data[:size]
        return size
