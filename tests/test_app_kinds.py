"""Which kind of handler an object is, and in one line what is wrong with it (loading: `test_app`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from shardnet.app import App, Handler, Kind, resolve, try_factory
from shardnet.app.kinds import CHOICES
from shardnet.errors import AppError

WRITE = (
    "write async def handler(conn), async def handler(reader, writer), def on_data(conn, data), "
    "or an asyncio.Protocol class (or a factory)"
)


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def in_a_thread(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(conn: Any) -> None:
        await asyncio.to_thread(function, conn)

    return wrapper


def in_a_task(function: Any) -> Any:
    """A plain function around an async one."""

    @functools.wraps(function)
    def wrapper(conn: Any, data: Any) -> None: ...

    return wrapper


class Right:
    """Handlers that are in order."""

    @staticmethod
    async def coroutine(conn: Any) -> None: ...
    @staticmethod
    async def coroutine_with_default(conn: Any, greeting: bytes = b"") -> None: ...
    @staticmethod
    async def coroutine_positional_only(conn: Any, /) -> None: ...
    @staticmethod
    async def coroutine_of_any(*args: Any, **kwargs: Any) -> None: ...
    @staticmethod
    async def coroutine_with_option(conn: Any, *, size: int = 5) -> None: ...
    @staticmethod
    async def of_settings(settings: Any, conn: Any) -> None: ...
    @staticmethod
    async def streams(reader: Any, writer: Any) -> None: ...
    @staticmethod
    async def streams_positional_only(reader: Any, writer: Any, /) -> None: ...
    @staticmethod
    async def streams_with_default(reader: Any, writer: Any, extra: int = 1) -> None: ...
    @staticmethod
    async def streams_of_settings(settings: Any, reader: Any, writer: Any) -> None: ...
    @staticmethod
    def callback(conn: Any, data: Any) -> None: ...
    @staticmethod
    def callback_with_default(conn: Any, data: Any, extra: Any = None) -> None: ...
    @staticmethod
    def callback_positional_only(conn: Any, data: Any, /) -> None: ...
    @staticmethod
    def callback_of_any(*args: Any) -> None: ...
    @staticmethod
    def callback_of_settings(settings: Any, conn: Any, data: Any) -> None: ...


async def generating(conn: Any) -> AsyncIterator[bytes]:
    yield b""


def streaming(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(conn: Any) -> None:
        async for data in function(conn):
            await conn.send(data)

    return wrapper


class Service:
    async def serve(self, conn: Any) -> None: ...
    async def chat(self, reader: Any, writer: Any) -> None: ...
    def on_data(self, conn: Any, data: Any) -> None: ...
    def make(self) -> Echo:
        return Echo()

    @classmethod
    async def made(cls, conn: Any) -> None: ...
    async def __call__(self, conn: Any) -> None: ...


class Chat:
    async def __call__(self, reader: Any, writer: Any) -> None: ...


class Sink:
    def __call__(self, conn: Any, data: Any) -> None: ...


class Logged:
    @logged
    async def __call__(self, conn: Any) -> None: ...


class Echo(asyncio.Protocol):
    pass


class Buffered(asyncio.BufferedProtocol):
    pass


class Settled(asyncio.Protocol):
    def __init__(self, settings: Any, *, size: int = 5) -> None: ...


class Optioned(asyncio.Protocol):
    def __init__(self, size: int = 5, *more: Any) -> None: ...


class DuckProtocol:
    """What asyncio would take, too: it inherits nothing."""

    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, error: Any) -> None: ...
    def data_received(self, data: Any) -> None: ...


class DuckBuffered:
    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, error: Any) -> None: ...
    def get_buffer(self, size: Any) -> None: ...


def factory(size: int = 5, *, colour: str = "red") -> Echo:
    return Echo()


class Factory:
    def __call__(self) -> Buffered:
        return Buffered()


RIGHT: list[tuple[str, Any, Kind]] = [
    ("coroutine", Right.coroutine, Kind.CONN),
    ("with_default", Right.coroutine_with_default, Kind.CONN),
    ("positional_only", Right.coroutine_positional_only, Kind.CONN),
    ("of_any", Right.coroutine_of_any, Kind.CONN),
    ("with_option", Right.coroutine_with_option, Kind.CONN),
    ("partial", functools.partial(Right.of_settings, {}), Kind.CONN),
    ("partial_of_partial", functools.partial(functools.partial(Right.of_settings), {}), Kind.CONN),
    ("wrapped", logged(Right.coroutine), Kind.CONN),
    ("wrapped_twice", logged(logged(Right.coroutine)), Kind.CONN),
    ("wrapped_partial", logged(functools.partial(Right.of_settings, {})), Kind.CONN),
    ("partial_of_wrapped", functools.partial(logged(Right.of_settings), {}), Kind.CONN),
    ("around_a_function", in_a_thread(lambda conn: None), Kind.CONN),
    ("around_a_generator", streaming(generating), Kind.CONN),
    ("object", Service(), Kind.CONN),
    ("method", Service().serve, Kind.CONN),
    ("class_method", Service.made, Kind.CONN),
    ("object_of_wrapped", Logged(), Kind.CONN),
    ("streams", Right.streams, Kind.STREAMS),
    ("streams_positional_only", Right.streams_positional_only, Kind.STREAMS),
    ("streams_with_default", Right.streams_with_default, Kind.STREAMS),
    ("streams_partial", functools.partial(Right.streams_of_settings, {}), Kind.STREAMS),
    ("streams_wrapped", logged(Right.streams), Kind.STREAMS),
    ("streams_object", Chat(), Kind.STREAMS),
    ("streams_method", Service().chat, Kind.STREAMS),
    ("callback", Right.callback, Kind.CALLBACK),
    ("callback_with_default", Right.callback_with_default, Kind.CALLBACK),
    ("callback_positional_only", Right.callback_positional_only, Kind.CALLBACK),
    ("callback_of_any", Right.callback_of_any, Kind.CALLBACK),
    ("callback_lambda", lambda conn, data: None, Kind.CALLBACK),
    ("callback_partial", functools.partial(Right.callback_of_settings, {}), Kind.CALLBACK),
    ("callback_wrapped", logged(Right.callback), Kind.CALLBACK),
    ("callback_method", Service().on_data, Kind.CALLBACK),
    ("callback_object", Sink(), Kind.CALLBACK),
    ("protocol", Echo, Kind.PROTOCOL),
    ("protocol_buffered", Buffered, Kind.PROTOCOL),
    ("protocol_with_options", Optioned, Kind.PROTOCOL),
    ("protocol_partial", functools.partial(Settled, {}, size=7), Kind.PROTOCOL),
    ("protocol_partial_of_partial", functools.partial(functools.partial(Settled), {}), Kind.PROTOCOL),
    ("protocol_duck", DuckProtocol, Kind.PROTOCOL),
    ("protocol_duck_buffered", DuckBuffered, Kind.PROTOCOL),
    ("factory", factory, Kind.PROTOCOL),
    ("factory_lambda", lambda: DuckProtocol(), Kind.PROTOCOL),
    ("factory_object", Factory(), Kind.PROTOCOL),
    ("factory_method", Service().make, Kind.PROTOCOL),
    ("factory_partial", functools.partial(factory, 7), Kind.PROTOCOL),
]


@pytest.mark.parametrize(("found", "kind"), [row[1:] for row in RIGHT], ids=[row[0] for row in RIGHT])
def test_handler_is_of_its_kind(found: Any, kind: Kind) -> None:
    handler = resolve("app:it", found)
    assert handler == Handler(kind, found, name="app:it")
    asyncio.run(try_factory(handler))


# What is no handler.


async def of_none() -> None: ...
async def with_data(conn: Any, data: Any) -> None: ...
async def of_three(conn: Any, first: Any, second: Any) -> None: ...
async def with_needed_option(conn: Any, *, size: Any) -> None: ...


def of_one(conn: Any) -> None: ...
def plain_streams(reader: Any, writer: Any) -> None: ...
def plain_of_three(conn: Any, data: Any, more: Any) -> None: ...
def with_needed_options(conn: Any, data: Any, *, size: Any, colour: Any) -> None: ...
def factory_with_needed_option(*, size: Any) -> None: ...
def callback_generator(conn: Any, data: Any) -> Iterator[None]:
    yield


class Plain:
    def __init__(self, conn: Any, data: Any) -> None: ...


class Abacus:
    pass


WRONG: list[tuple[str, Any, str]] = [
    ("number", 7, f"is an int, no handler: {WRITE}"),
    ("none", None, f"is None, no handler: {WRITE}"),
    ("object", Abacus(), f"is an Abacus, no handler: {WRITE}"),
    ("text", "text", f"is a str, no handler: {WRITE}"),
    ("module", types, f"is module types, no handler: {WRITE}"),
    ("class", Plain, f"is class Plain, no handler: {WRITE}"),
    ("empty_class", Abacus, f"is class Abacus, no handler: {WRITE}"),
    ("of_none", of_none, f"is an async function of (), which is no handler: {WRITE}"),
    ("of_three", of_three, f"is an async function of (conn, first, second), which is no handler: {WRITE}"),
    ("needed_option", with_needed_option, f"is an async function of (conn, *, size), which is no handler: {WRITE}"),
    ("with_data", with_data, "is an async function of (conn, data): a callback is a plain one, write def"),
    ("wrapped_with_data", in_a_task(with_data), "is an async function of (conn, data): a callback is a plain one, "
     "write def"),
    ("partial", functools.partial(with_data, conn=5), "is an async function of (*, conn=5, data), which is no "
     f"handler: {WRITE}"),
    ("generator", generating, f"is a generator function, which is no handler: {WRITE}"),
    ("callback_generator", callback_generator, f"is a generator function, which is no handler: {WRITE}"),
    ("of_one", of_one, f"is a plain function of (conn), which is no handler: {WRITE}"),
    ("plain_streams", plain_streams,
     'is a plain function of (reader, writer): write async def, or App(…, kind="streams")'),
    ("plain_of_three", plain_of_three, f"is a plain function of (conn, data, more), which is no handler: {WRITE}"),
    ("needed_options", with_needed_options, "is a plain function of (conn, data, *, size, colour), which is no "
     f"handler: {WRITE}"),
    ("factory_option", factory_with_needed_option, f"is a plain function of (*, size), which is no handler: {WRITE}"),
    ("method", Service.serve, "is a method of class Service: make an object, and give its serve, "
     "or write Service().serve if it needs no arguments"),
    ("without_signature", max, f": its parameters cannot be read: {WRITE}"),
    ("protocol_object", Echo(), "is an object of class Echo: give the class, each connection needs its own"),
    ("protocol_settled", Settled, "is class Settled of (settings, *, size=5): write a factory without parameters"),
    ("protocol_of_streams", asyncio.StreamReaderProtocol, "is class StreamReaderProtocol of (stream_reader, "
     "client_connected_cb=None, loop=None): write a factory without parameters"),
    ("datagrams", asyncio.DatagramProtocol, f"is class DatagramProtocol, a protocol, but not of streams: {WRITE}"),
]  # fmt: skip


def refused(found: Any) -> str:
    """Why it is refused: its one line, from where the name ends."""
    with pytest.raises(AppError) as caught:
        asyncio.run(try_factory(resolve("app:it", found)))
    text = str(caught.value)
    assert "\n" not in text
    name, text = text[: len("app:it")], text[len("app:it") :]
    assert name == "app:it"
    return text.removeprefix(" ")


@pytest.mark.parametrize(("found", "what"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_no_handler_is_refused_in_one_line(found: Any, what: str) -> None:
    assert refused(found) == what


def test_choices_are_the_forms() -> None:
    assert CHOICES == WRITE


def test_coroutine_is_refused_and_closed() -> None:
    coroutine = Right.coroutine(5)
    assert refused(coroutine) == "is a coroutine, no handler: give the function without calling it"
    coroutine.close()  # A second time; a coroutine that nobody closed would be a warning.


# Factories.


def test_factory_is_tried_in_the_running_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    def make() -> Echo:
        loops.append(asyncio.get_running_loop())
        return Echo()

    asyncio.run(try_factory(resolve("app:it", make)))
    assert len(loops) == 1


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: None, f"makes None, no asyncio.Protocol: {WRITE}"),
        (lambda: 5, f"makes an int, no asyncio.Protocol: {WRITE}"),
        (lambda: Echo, f"makes class Echo, no asyncio.Protocol: {WRITE}"),
        (lambda: asyncio.DatagramProtocol(), f"makes a DatagramProtocol, no asyncio.Protocol: {WRITE}"),
        (lambda: Right.coroutine(5), f"makes a coroutine, no asyncio.Protocol: {WRITE}"),
        (lambda: 1 / 0, ": the factory raised ZeroDivisionError: division by zero"),
        (functools.partial(Abacus), f"makes an Abacus, no asyncio.Protocol: {WRITE}"),
    ],
    ids=["nothing", "number", "class", "datagrams", "coroutine", "raises", "partial_of_class"],
)
def test_factory_of_something_else_is_refused(make: Callable[[], Any], what: str) -> None:
    assert refused(make) == what


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_factory_that_wants_to_end_the_process_is_refused(error: type[BaseException]) -> None:
    def make() -> Any:
        raise error("no database")

    assert refused(make) == f": the factory raised {error.__name__}: no database"


# Apps.


@contextlib.asynccontextmanager
async def lifespan(shard: Any) -> AsyncIterator[None]:
    yield


class Lifespan:
    def __init__(self, shard: Any) -> None: ...
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def test_app_lends_its_handler_all_it_has() -> None:
    def on_connect(conn: Any) -> None: ...
    def on_disconnect(conn: Any, error: Any) -> None: ...
    def on_drain(conn: Any) -> None: ...

    hooks = {"on_connect": on_connect, "on_disconnect": on_disconnect, "on_drain": on_drain}
    app = App(Right.streams, kind="streams", lifespan=lifespan, limit=100, **hooks)  # type: ignore[arg-type]
    expected = Handler(Kind.STREAMS, Right.streams, lifespan, on_connect, on_disconnect, on_drain, 100, "app:it")
    assert resolve("app:it", app) == expected


def test_app_alone_is_its_handler() -> None:
    for _, found, kind in RIGHT:
        assert resolve("app:it", App(found)) == Handler(kind, found, name="app:it")


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (lambda reader, writer: None, Kind.STREAMS),
        (plain_streams, Kind.STREAMS),
        (Right.coroutine_of_any, Kind.STREAMS),
        (Right.coroutine_of_any, Kind.CONN),
        (in_a_task(with_data), Kind.CALLBACK),
        (Right.callback_of_any, Kind.PROTOCOL),
        (lambda conn=None, data=None: None, Kind.CALLBACK),
        (Echo, Kind.PROTOCOL),
        (functools.partial(Settled, {}), Kind.PROTOCOL),
        (Service(), Kind.CONN),
    ],
)
def test_kind_of_an_app_overrules_the_parameters(found: Any, kind: Kind) -> None:
    assert resolve("app:it", App(found, kind=kind)).kind is kind
    assert resolve("app:it", App(found, kind=str(kind))).kind is kind


@pytest.mark.parametrize("found", [lifespan, Lifespan, functools.partial(lifespan), None])
def test_lifespan_may_be_whatever_makes_an_async_context_manager(found: Any) -> None:
    assert resolve("app:it", App(Right.coroutine, lifespan=found)).lifespan is found


async def bare_lifespan(shard: Any) -> AsyncIterator[None]:
    yield


def plain_bare_lifespan(shard: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def plain_lifespan(shard: Any) -> Iterator[None]:
    yield


def app(**fields: Any) -> App:
    return App(Right.coroutine, **fields)


CURE = "write @contextlib.asynccontextmanager above async def lifespan(shard), with one yield in it"
MADE = "made already: give what makes it, which is called with (shard)"
WRONG_APPS: list[tuple[str, App, str]] = [
    ("nested", App(App(Right.coroutine)), "is an App of an App: give the inner one's handler to the outer one"),
    ("handler", App(7), f": its handler is an int, no handler: {WRITE}"),
    ("handler_and_kind", App(7, kind="conn"), f": its handler is an int, no handler: {WRITE}"),
    ("kind", app(kind="stream"), ": kind='stream' is none of conn, streams, callback, protocol"),
    ("kind_number", app(kind=5), ": kind=5 is none of conn, streams, callback, protocol"),
    ("plain_conn", App(of_one, kind="conn"),
     ': kind="conn" takes an async function, and this is a plain one: write async def'),
    ("async_callback", App(with_data, kind="callback"),
     ': kind="callback" takes a plain function, and this is an async one: write def'),
    ("async_factory", App(of_none, kind="protocol"),
     ': kind="protocol" takes a plain function, and this is an async one: write def'),
    ("generator", App(generating, kind="conn"), f": its handler is a generator function, which is no handler: {WRITE}"),
    ("arguments", App(Right.coroutine, kind="streams"),
     ': kind="streams" takes async def handler(reader, writer), and this is an async function of (conn)'),
    ("protocol_as_conn", App(Echo, kind="conn"),
     ': kind="conn" takes async def handler(conn), and this is class Echo: leave kind out, or give a function'),
    ("class_as_protocol", App(Abacus, kind="protocol"),
     f': kind="protocol" takes an asyncio.Protocol class (or a factory), and this is class Abacus: {WRITE}'),
    ("settled", App(Settled, kind="protocol"),
     ": its handler is class Settled of (settings, *, size=5): write a factory without parameters"),
    ("factory", App(lambda: 5, kind="protocol"), f"makes an int, no asyncio.Protocol: {WRITE}"),
    ("no_hook", app(on_connect=5), ": on_connect is an int, no function: write def on_connect(conn)"),
    ("async_hook", app(on_drain=Right.coroutine),
     ": on_drain is an async function, but is called as a plain one: write def on_drain(conn)"),
    ("generator_hook", app(on_connect=plain_bare_lifespan),
     ": on_connect is a generator function, but is called as a plain one: write def on_connect(conn)"),
    ("hook_arguments", app(on_disconnect=of_one),
     ": on_disconnect cannot be called with (conn, error): write def on_disconnect(conn, error)"),
    ("bare_lifespan", app(lifespan=bare_lifespan),
     f": lifespan is a generator function, no async context manager: {CURE}"),
    ("plain_bare_lifespan", app(lifespan=plain_bare_lifespan),
     f": lifespan is a generator function, no async context manager: {CURE}"),
    ("async_lifespan", app(lifespan=Right.coroutine),
     f": lifespan is an async function, no async context manager: {CURE}"),
    ("plain_lifespan", app(lifespan=plain_lifespan),
     f": lifespan is a plain context manager, no async one: {CURE}"),
    ("no_lifespan", app(lifespan=5), f": lifespan is an int, no function: {CURE}"),
    ("called_lifespan", app(lifespan=lifespan(5)), f": lifespan is an _AsyncGeneratorContextManager, {MADE}"),
    ("made_lifespan", app(lifespan=Lifespan(5)), f": lifespan is a Lifespan, {MADE}"),
    ("lifespan_arguments", app(lifespan=lambda: None), f": lifespan cannot be called with (shard): {CURE}"),
    *((f"limit_{limit}", app(limit=limit), f": limit={limit!r} is no size: give a number of bytes, 1 or more")
      for limit in (0, -1, 1.5, True, None)),
]  # fmt: skip


@pytest.mark.parametrize(("found", "what"), [row[1:] for row in WRONG_APPS], ids=[row[0] for row in WRONG_APPS])
def test_app_that_cannot_be_is_refused_in_one_line(found: App, what: str) -> None:
    assert refused(found) == what
