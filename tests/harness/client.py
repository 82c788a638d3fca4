"""One blocking client with a deadline on everything it waits for.

Lives here: what a test says on a single connection. Must not live here: load, which is `load.py`'s.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Final, Self

__all__ = ["Client"]

TIMEOUT_S: Final = 10.0


class Client:
    """A connection to `address`; every wait raises TimeoutError when it is longer than `timeout_s`."""

    def __init__(
        self, address: tuple[str, int], *, timeout_s: float = TIMEOUT_S, receive_buffer_bytes: int | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer_bytes is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            self.sock.settimeout(timeout_s)
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    @property
    def port(self) -> int:
        """This end's."""
        port: int = self.sock.getsockname()[1]
        return port

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        """The next line, without its end."""
        while b"\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def ask(self, line: bytes) -> bytes:
        """Send a line, return the line that answers it."""
        self.send(line + b"\n")
        return self.line()

    def rest(self) -> bytes:
        """Everything to the end of the stream."""
        data, self._buffer = [self._buffer], b""
        while chunk := self.sock.recv(65536):
            data.append(chunk)
        return b"".join(data)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(f"the server ended the stream after {self._buffer!r}")
        self._buffer += data
