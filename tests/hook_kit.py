"""Echoes of every kind, hooks that note their calls, and a clock that stands still: for the tests of servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.app import App, Kind
from shardnet.connection import Connection
from tests.adapter_kit import Recorder

LONG_S = 60.0


async def conn_echo(conn: Connection) -> None:
    async for data in conn:
        if data == b"raise":
            raise LookupError
        await conn.send(data)


async def streams_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        if data == b"raise":
            raise LookupError
        writer.write(data)


def callback_echo(conn: Connection, data: bytes) -> None:
    if data == b"raise":
        raise LookupError
    conn.write(data)


def protocol_echo() -> Recorder:
    def on_call(protocol: Recorder, name: str) -> None:
        if name == "data":
            if protocol.data == b"raise":
                raise LookupError
            protocol.transport.write(bytes(protocol.data))
            protocol.data.clear()

    return Recorder(on_call)


ECHOES: dict[Kind, Callable[..., Any]] = {
    Kind.CONN: conn_echo,
    Kind.STREAMS: streams_echo,
    Kind.CALLBACK: callback_echo,
    Kind.PROTOCOL: protocol_echo,
}
KINDS = pytest.mark.parametrize("kind", Kind)


class Notes:
    """Hooks that note their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_connect(self, conn: Connection) -> None:
        self.calls.append(("connect", conn.id))

    def on_disconnect(self, conn: Connection, error: BaseException | None) -> None:
        self.calls.append(("disconnect", conn.id, error))

    def on_drain(self, conn: Connection) -> None:
        self.calls.append(("drain", conn.id))

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def app(self, kind: Kind = Kind.CONN, **fields: Any) -> App:
        hooks = {name: getattr(self, name) for name in ("on_connect", "on_disconnect", "on_drain")}
        return App(ECHOES[kind], kind=kind, **(hooks | fields))


class FakeTime:
    """The server's clock while it drains: it stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("shardnet.server.time", fake)
    monkeypatch.setattr("shardnet.server.DRAIN_SWEEP_S", 0.0001)
    return fake
