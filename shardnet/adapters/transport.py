"""The transport of an asyncio handler: asyncio's documented interface, in front of a connection.

What asyncio's own transports promise beyond their documentation is kept as well where libraries rely on it: flow
control by `_FlowControlMixin`, and with it `loop.sendfile`'s fallback; `loop.start_tls`, which puts a protocol of its
own between us and the app.

Lives here: translation. Must not live here: what a connection does (see `connection`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from asyncio import base_events, constants, transports, trsock
from typing import TYPE_CHECKING, Any, Final

from shardnet.adapters.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardnet.adapters.protocol import ProtocolConnection
    from shardnet.adapters.streams import StreamsConnection

# What `loop.sendfile` puts in front for as long as it writes.
SENDFILE_PROTOCOL: Final = base_events._SendfileFallbackProtocol  # type: ignore[attr-defined]  # private, since 3.7
# How `get_extra_info` calls the connection behind a transport.
CONNECTION_INFO: Final = "shardnet.connection"


class _LentSocket(socket.socket):
    """A socket object for a descriptor that stays its connection's: it never closes it, not even when it is deleted."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


class ConnectionTransport(Writing, transports._FlowControlMixin, transports.Transport):
    """A connection as an `asyncio.Transport`.

    `protocol` is told to pause and to resume writing, at the marks of `set_write_buffer_limits`.
    """

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    # With a `__dict__` and a `__weakref__`, because asyncio's own has them, and there are apps that use them.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_conn",
        "_lent",
        "_lost_writes",
        "_over",
        "_protocol",
        "_socket",
        "_sockname",
    )

    def __init__(
        self, conn: ProtocolConnection | StreamsConnection, protocol: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._conn = conn
        self._protocol = protocol
        self._lost_writes = 0
        self._over = False
        self._sockname: Any = None
        self._lent: _LentSocket | None = None
        self._socket: trsock.TransportSocket | None = None  # What the app is given of it.
        super().__init__(None, loop)

    def __repr__(self) -> str:
        return f"<ConnectionTransport of {self._conn!r}>"

    # Information.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "peername":
                return self._conn.peer
            case "sockname":
                self._learn_sockname()
                return default if self._sockname is None else self._sockname
            case "socket":
                self._lend_socket()
                return default if self._socket is None else self._socket
            case _ if name == CONNECTION_INFO:
                return self._conn
            case _:
                return default

    def _learn_sockname(self) -> None:
        if self._sockname is None and self._conn.fd >= 0:
            with contextlib.suppress(OSError):  # The app has closed the descriptor itself.
                self._sockname = self._conn.local

    def _lend_socket(self) -> None:
        if self._socket is None and not self._over and self._conn.fd >= 0:
            with contextlib.suppress(OSError):
                self._lent = _LentSocket(fileno=self._conn.fd)
                self._socket = trsock.TransportSocket(self._lent)

    def set_protocol(self, protocol: Any) -> None:
        if self._protocol is not None:  # Or `connection_lost` was called, and nobody is told anything any more.
            if isinstance(self._protocol, SENDFILE_PROTOCOL):
                # It leaves, and never tells the one who comes back that writing pauses: the next write will.
                self._protocol_paused = False
            self._protocol = protocol
            self._conn.set_protocol(protocol)

    def get_protocol(self) -> Any:
        return self._protocol

    # Reading.

    def is_reading(self) -> bool:
        return not self._conn.is_closing() and not self._conn.paused

    def pause_reading(self) -> None:
        if self.is_reading():
            self._conn.pause()

    def resume_reading(self) -> None:
        if not self._conn.is_closing() and self._conn.paused:
            self._conn.resume()

    # Writing.

    def _write_late(self, data: Any) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        conn = self._conn
        if conn.output_ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        # asyncio's TLS says its goodbye when it is told to resume, and has called `close` long before.
        if len(data) and not conn.write_late(data):
            self._note_lost_write()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._conn.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._conn.unsent_bytes

    def _note_lost_write(self) -> None:
        self._lost_writes += 1
        if self._lost_writes == constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:  # Once, not for each of a thousand.
            logging.getLogger("asyncio").warning("%r is written to again and again, but closed", self)

    # Ending.

    def is_closing(self) -> bool:
        return self._conn.is_closing()

    def close(self) -> None:
        self._conn.close()

    def abort(self) -> None:
        self._conn.break_off(None)

    def _force_close(self, error: BaseException | None) -> None:
        """asyncio's TLS calls this when it has failed."""
        self._conn.break_off(error)

    # What the connection calls.

    def note_unsent(self) -> None:
        """Bytes wait: perhaps the protocol is to pause."""
        self._maybe_pause_protocol()  # type: ignore[attr-defined]  # private, and in every asyncio since 3.4

    def note_progress(self) -> None:
        """Bytes have gone: perhaps the protocol may write again."""
        self._maybe_resume_protocol()  # type: ignore[attr-defined]

    def over(self) -> None:
        """The descriptor is about to be closed: by its owner, not by the socket object that was lent."""
        self._learn_sockname()
        self._over = True
        if self._lent is not None:
            self._lent.detach()

    def forget_protocol(self) -> None:
        """The protocol was told of the end, and usually refers to us."""
        self._protocol = None
