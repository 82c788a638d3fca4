"""TLS for the exporter's clients: OpenSSL over memory, on the connection that is there.

So the limits and deadlines are those of the connection below, and nothing about it is a transport of asyncio's.

Lives here: contexts, and the encryption of one connection. Must not live here: when files are read anew, and who may
read what.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn, Protocol, TypeVar

from shardnet.errors import ConfigError
from shardnet.exporter.options import TlsFiles

__all__ = ["TlsClient", "load_context"]

READ_BYTES: Final = 65536

T = TypeVar("T")


class Connection(Protocol):
    """What is underneath."""

    def read(self) -> Awaitable[bytes]: ...
    def send(self, data: bytes, /) -> Awaitable[None]: ...
    def write(self, data: bytes, /) -> None: ...
    def abort(self) -> None: ...


def load_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's context with these certificates. A client may come without one; one that it has must be good.

    Raises:
        ConfigError: A file cannot be read, or is not what it should be.
    """
    for path in files.paths:
        try:
            path.open("rb").close()
        except OSError as exc:
            raise _no_good(path, f"cannot be read: {exc.strerror or exc}") from exc
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])  # Go's clients, Prometheus among them, would rather have HTTP/2.
    key = files.key or files.certificate
    try:
        context.load_cert_chain(files.certificate, key, password=_no_password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise _no_good(key, f"is not the key of the certificate in {files.certificate}") from exc
        which = files.certificate if files.key is None else f"{files.certificate}, {files.key}"
        raise _no_good(which, "are no certificate and key in PEM") from exc
    except _EncryptedKeyError as exc:
        raise _no_good(key, "is encrypted: nobody is there to type a passphrase; decrypt it (`openssl pkey`)") from exc
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as exc:
            raise _no_good(files.client_ca, "has no certificate in PEM") from exc
        # Not required: a probe has none, and is to be answered. Which pages need one is not TLS' affair.
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class TlsClient:
    """A client that is talked to over TLS: a `Client` of `HttpPages`, on top of another."""

    def __init__(self, below: Connection, context: ssl.SSLContext) -> None:
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """To be awaited first. Raises `OSError`, of which `ssl.SSLError` is one, when there is nothing to talk over."""
        await self._step(self._tls.do_handshake)

    @property
    def certified(self) -> bool:
        """Whether the client has proved a certificate that we trust."""
        return bool(self._tls.getpeercert())

    async def read(self) -> bytes:
        try:
            return await self._step(lambda: self._tls.read(READ_BYTES))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        await self._below.send(self._outgoing.read())

    def abort(self) -> None:
        self._below.abort()

    def end(self) -> None:
        """Tell the client that nothing more comes; the caller then closes the connection below."""
        with contextlib.suppress(ssl.SSLError):  # It is sent; and for the client's own end nobody waits.
            self._tls.unwrap()
        self._below.write(self._outgoing.read())

    async def _step(self, call: Callable[[], T]) -> T:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._below.read():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                await self._flush()  # An alert that tells the client why.
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> NoReturn:
    raise _EncryptedKeyError  # OpenSSL would ask at the terminal.


def _no_good(path: Path | str, why: str) -> ConfigError:
    return ConfigError(f"TLS of the metrics: {path}: {why}")
