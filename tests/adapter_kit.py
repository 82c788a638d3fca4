"""Protocols that note how they are called, and certificates: for the tests of asyncio's faces."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from shardnet.app import Kind
from shardnet.connection import Connection
from tests.serving import Client, Serving, until

P = TypeVar("P")

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

SMALL_BUFFER_BYTES = 4096
# More than the kernel holds between a server and a client with small buffers; less than the hard limit.
MUCH = bytes(range(256)) * 4096


class Recorder(asyncio.Protocol):
    """Notes its calls by name; data is kept apart, as chunks may come in any sizes.

    `on_call`, if it is given, is called in each, and its result returned.
    """

    def __init__(self, on_call: Callable[[Recorder, str], object] | None = None) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.lost_by: list[BaseException | None] = []
        self.inside = 0  # How many of its calls are under way.
        self._on_call = on_call

    def connection_made(self, transport: Any) -> None:
        self.transport: Any = transport
        self._note("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        self.data += data
        self._note("data")

    def eof_received(self) -> bool | None:
        return bool(self._note("eof"))

    def connection_lost(self, exc: BaseException | None) -> None:
        assert not self.inside, "from inside another call"
        self.lost_by.append(exc)
        self._note("lost")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def _note(self, name: str) -> object:
        assert "lost" not in self.calls, f"{name} after the end"
        if name != "data" or self.calls[-1] != "data":
            self.calls.append(name)
        if self._on_call is None:
            return None
        self.inside += 1
        try:
            return self._on_call(self, name)
        finally:
            self.inside -= 1


class Made(Generic[P]):
    """A factory that keeps what it made."""

    def __init__(self, make: Callable[[], P]) -> None:
        self._make = make
        self.made: list[P] = []

    def __call__(self) -> P:
        self.made.append(self._make())
        return self.made[-1]


def recorders(on_call: Callable[[Recorder, str], object] | None = None) -> Made[Recorder]:
    return Made(lambda: Recorder(on_call))


def echo(protocol: Recorder, name: str) -> None:
    """As `on_call`: writes what has come."""
    if name == "data":
        protocol.transport.write(bytes(protocol.data))
        protocol.data.clear()


def serving(factory: Callable[[], Any], **options: Any) -> Serving:
    """Of the protocols that `factory` makes."""
    return Serving(factory, kind=Kind.PROTOCOL, **options)


def narrow(factory: Callable[[], Any], **options: Any) -> Serving:
    """The same, where little fits into the kernel."""
    return serving(factory, send_buffer_bytes=SMALL_BUFFER_BYTES, **options)


def narrow_streams(handler: Any, **options: Any) -> Serving:
    """Of a streams handler, where little fits into the kernel."""
    return Serving(handler, send_buffer_bytes=SMALL_BUFFER_BYTES, **options)


async def open_narrow(kit: Serving) -> tuple[Client, Connection]:
    """A client of which little fits into the kernel, in a `Serving` with small send buffers."""
    return await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)


async def turns(count: int = 10) -> None:
    """Time enough for whatever would happen by itself."""
    for _ in range(count):
        await asyncio.sleep(0)


class Given:
    """A handler that gives its pair to the test, and is over when `release` is called."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Reader, Writer]] = []
        self._released = asyncio.Event()

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.pairs.append((reader, writer))
        del reader, writer
        await self._released.wait()

    async def open(self, kit: Serving) -> tuple[Client, Reader, Writer]:
        client, _ = await open_narrow(kit)
        reader, writer = self.pairs[-1]
        return client, reader, writer

    def release(self) -> None:
        self._released.set()


async def lost(factory: Made[Recorder], index: int = 0) -> Recorder:
    """That protocol, when it has been told of its end and of nothing after it."""
    await until(lambda: len(factory.made) > index and factory.made[index].lost_by)
    for _ in range(5):
        await asyncio.sleep(0)
    protocol = factory.made[index]
    assert len(protocol.lost_by) == 1
    assert protocol.calls[-1] == "lost"
    return protocol


def take_all(client: Client) -> bytes:
    """What has arrived at the client by now."""
    received = bytearray()
    while True:
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return bytes(received)
        if not data:
            return bytes(received)
        received += data


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, signed by itself, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    key, crt, both = folder / "key.pem", folder / "crt.pem", folder / "both.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(crt)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    both.write_bytes(key.read_bytes() + crt.read_bytes())
    return both


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed here, is freed without the garbage collector."""
    import gc

    gc.collect()
    gc.disable()
    yield
    gc.enable()
