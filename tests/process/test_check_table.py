"""`shardnet check`, as a user runs it, on every sort of wrong handler: the exact line, and exit status 4."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.harness.server import shardnet

pytestmark = pytest.mark.process

APP: Final = 4
WRITE: Final = (
    "write async def handler(conn), async def handler(reader, writer), def on_data(conn, data), "
    "or an asyncio.Protocol class (or a factory)"
)
LIFESPAN: Final = "write @contextlib.asynccontextmanager above async def lifespan(shard), with one yield in it"

MODULE: Final = """
import asyncio
import contextlib
import functools

from shardnet import App, Connection

number = 7

async def conn(conn: Connection) -> None: ...
async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...
def callback(conn: Connection, data: bytes) -> None: ...
class Echo(asyncio.Protocol): ...
class Buffered(asyncio.BufferedProtocol): ...
def factory(): return Echo()
partial = functools.partial(callback)

@contextlib.asynccontextmanager
async def lifespan(shard):
    yield

whole = App(streams, lifespan=lifespan, on_connect=lambda conn: None, limit=100)

async def async_callback(conn: Connection, data: bytes) -> None: ...
async def of_nothing() -> None: ...
async def of_three(conn, first: int, second: int = 5, *, third) -> None: ...
def plain(conn: Connection) -> None: ...
def plain_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...
async def generator(conn):
    yield b""
class Service:
    def __init__(self, name): ...
    async def serve(self, conn): ...
class Settled(asyncio.Protocol):
    def __init__(self, settings): ...
class Datagrams(asyncio.DatagramProtocol): ...
echo = Echo()
called = conn(5)
def factory_of_nothing(): ...
def failing_factory(): raise LookupError("no settings\\nin two lines")
nested = App(App(conn))
unknown_kind = App(conn, kind="stream")
not_async = App(plain, kind="conn")
async_hook = App(conn, on_connect=conn)
short_hook = App(conn, on_disconnect=lambda conn: None)
async def bare(shard):
    yield
bare_lifespan = App(conn, lifespan=bare)
called_lifespan = App(conn, lifespan=lifespan(5))
no_limit = App(conn, limit=0)
"""

RIGHT: Final = {
    "conn": "async def handler(conn)",
    "streams": "async def handler(reader, writer)",
    "callback": "def on_data(conn, data)",
    "partial": "def on_data(conn, data)",
    "Echo": "an asyncio.Protocol class (or a factory)",
    "Buffered": "an asyncio.Protocol class (or a factory)",
    "factory": "an asyncio.Protocol class (or a factory)",
    "whole": "async def handler(reader, writer)",
}

WRONG: Final = {
    "number": f" is an int, no handler: {WRITE}",
    "asyncio": f" is module asyncio, no handler: {WRITE}",
    "nowhere": ": module wrong has no 'nowhere'",
    "stream": ": module wrong has no 'stream'; did you mean 'streams'?",
    "async_callback": " is an async function of (conn, data): a callback is a plain one, write def",
    "of_nothing": f" is an async function of (), which is no handler: {WRITE}",
    "of_three": f" is an async function of (conn, first, second=5, *, third), which is no handler: {WRITE}",
    "plain": f" is a plain function of (conn), which is no handler: {WRITE}",
    "plain_streams": ' is a plain function of (reader, writer): write async def, or App(…, kind="streams")',
    "generator": f" is a generator function, which is no handler: {WRITE}",
    "Service": f" is class Service, no handler: {WRITE}",
    "Service.serve": " is a method of class Service: make an object, and give its serve, "
    "or write Service().serve if it needs no arguments",
    "Settled": " is class Settled of (settings): write a factory without parameters",
    "Datagrams": f" is class Datagrams, a protocol, but not of streams: {WRITE}",
    "echo": " is an object of class Echo: give the class, each connection needs its own",
    "called": " is a coroutine, no handler: give the function without calling it",
    "factory_of_nothing": f" makes None, no asyncio.Protocol: {WRITE}",
    "failing_factory": ": the factory raised LookupError: no settings",
    "nested": " is an App of an App: give the inner one's handler to the outer one",
    "unknown_kind": ": kind='stream' is none of conn, streams, callback, protocol",
    "not_async": ': kind="conn" takes an async function, and this is a plain one: write async def',
    "async_hook": ": on_connect is an async function, but is called as a plain one: write def on_connect(conn)",
    "short_hook": ": on_disconnect cannot be called with (conn, error): write def on_disconnect(conn, error)",
    "bare_lifespan": f": lifespan is a generator function, no async context manager: {LIFESPAN}",
    "called_lifespan": ": lifespan is an _AsyncGeneratorContextManager, made already: give what makes it, "
    "which is called with (shard)",
    "no_limit": ": limit=0 is no size: give a number of bytes, 1 or more",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wrong.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize("name", WRONG)
def test_wrong_handler_is_told_in_one_line(folder: Path, name: str) -> None:
    finished = shardnet("check", f"wrong:{name}", cwd=folder)
    [line] = finished.stderr_lines
    assert line == f"shardnet: wrong:{name}{WRONG[name]}"
    assert finished.status == APP
    assert finished.stdout == ""


@pytest.mark.parametrize("name", RIGHT)
def test_right_handler_is_named_by_its_kind(folder: Path, name: str) -> None:
    finished = shardnet("check", f"wrong:{name}", cwd=folder)
    assert finished.stderr == ""
    assert finished.stdout == f"wrong:{name} is a handler: {RIGHT[name]}\n"
    assert finished.status == 0
