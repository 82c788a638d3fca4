"""Apps: what `module:name` may stand for, and the one line that says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.app import Kind, load, split_name
from shardnet.errors import AppError, UsageError

WRITE = "write async def handler(conn) or def on_data(conn, data)"

HANDLERS = """
import asyncio
import functools

async def coroutine(conn): ...
async def coroutine_with_default(conn, greeting=b""): ...
async def coroutine_positional_only(conn, /): ...
async def coroutine_of_any(*args, **kwargs): ...
async def coroutine_with_option(conn, *, size=5): ...
def callback(conn, data): ...
def callback_with_default(conn, data, extra=None): ...
def callback_positional_only(conn, data, /): ...
def callback_of_any(*args): ...
lambda_callback = lambda conn, data: None

async def coroutine_of_two(settings, conn): ...
def callback_of_three(settings, conn, data): ...
coroutine_partial = functools.partial(coroutine_of_two, {})
coroutine_partial_of_partial = functools.partial(functools.partial(coroutine_of_two), {})
callback_partial = functools.partial(callback_of_three, {})

def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

wrapped_coroutine = logged(coroutine)
wrapped_twice = logged(logged(coroutine))
wrapped_partial = logged(functools.partial(coroutine_of_two, {}))
partial_of_wrapped = functools.partial(logged(coroutine_of_two), {})
wrapped_callback = logged(callback)

def in_a_thread(function):
    @functools.wraps(function)
    async def wrapper(conn):
        await asyncio.to_thread(function, conn)
    return wrapper

@in_a_thread
def coroutine_around_a_function(conn): ...

def streaming(function):
    @functools.wraps(function)
    async def wrapper(conn):
        async for data in function(conn):
            await conn.send(data)
    return wrapper

@streaming
async def coroutine_around_a_generator(conn):
    yield b""

class Service:
    async def serve(self, conn): ...
    def on_data(self, conn, data): ...
    @staticmethod
    async def static(conn): ...
    @classmethod
    async def made(cls, conn): ...
    async def __call__(self, conn): ...

class Sink:
    def __call__(self, conn, data): ...

class Logged:
    @logged
    async def __call__(self, conn): ...

service = Service()
sink = Sink()
logged_service = Logged()
"""

CONN_HANDLERS = [
    "coroutine",
    "coroutine_with_default",
    "coroutine_positional_only",
    "coroutine_of_any",
    "coroutine_with_option",
    "coroutine_partial",
    "coroutine_partial_of_partial",
    "wrapped_coroutine",
    "wrapped_twice",
    "wrapped_partial",
    "partial_of_wrapped",
    "coroutine_around_a_function",
    "coroutine_around_a_generator",
    "service",
    "service.serve",
    "Service.static",
    "Service.made",
    "logged_service",
]
CALLBACKS = [
    "callback",
    "callback_with_default",
    "callback_positional_only",
    "callback_of_any",
    "lambda_callback",
    "callback_partial",
    "wrapped_callback",
    "service.on_data",
    "sink",
]

WRONG_HANDLERS = """
import functools

number = 7
nothing = None
async def none(): ...
async def two(conn, data): ...
async def option(conn, *, size): ...
async def generator(conn):
    yield
async def generator_of_two(conn, data):
    yield
def one(conn): ...
def three(conn, data, more): ...
def options(conn, data, *, size, colour): ...
def callback_generator(conn, data):
    yield
class Handler:
    def __init__(self, conn, data): ...
    async def serve(self, conn): ...
class Plain: ...
plain = Plain()
partial = functools.partial(two, conn=5)
most = max
"""

NO_HANDLERS = [
    ("number", "is an int, no handler"),
    ("nothing", "is a NoneType, no handler"),
    ("plain", "is a Plain, no handler"),
    ("functools", "is module functools, no handler"),
    ("Handler", "is class Handler, no handler"),
    ("none", "is an async function of (), which is no handler"),
    ("two", "is an async function of (conn, data), which is no handler"),
    ("Handler.serve", "is an async function of (self, conn), which is no handler"),
    ("option", "is an async function of (conn, *, size), which is no handler"),
    ("partial", "is an async function of (*, conn=5, data), which is no handler"),
    ("generator", "is a generator function, which is no handler"),
    ("generator_of_two", "is a generator function, which is no handler"),
    ("callback_generator", "is a generator function, which is no handler"),
    ("one", "is a function of (conn), which is no handler"),
    ("three", "is a function of (conn, data, more), which is no handler"),
    ("options", "is a function of (conn, data, *, size, colour), which is no handler"),
]


@pytest.fixture
def app_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory for modules, which are forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


Refused = Callable[[str], str]


@pytest.fixture
def refused(app_dir: Path) -> Refused:
    """Why an app is refused: its one line."""

    def load_and_fail(name: str) -> str:
        with pytest.raises(AppError) as caught:
            load(name, app_dir)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return load_and_fail


# Kinds.


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, Kind.CONN) for name in CONN_HANDLERS), *((name, Kind.CALLBACK) for name in CALLBACKS)],
)
def test_handler_is_loaded_with_its_kind(app_dir: Path, name: str, kind: Kind) -> None:
    (app_dir / "right.py").write_text(HANDLERS)
    handler = load(f"right:{name}", app_dir)
    assert handler.kind is kind
    found: object = sys.modules["right"]
    for part in name.split("."):
        found = getattr(found, part)
    assert handler.function == found


@pytest.mark.parametrize(("name", "what"), NO_HANDLERS, ids=[name for name, _ in NO_HANDLERS])
def test_what_is_no_handler_is_refused_in_one_line(app_dir: Path, refused: Refused, name: str, what: str) -> None:
    (app_dir / "wrong.py").write_text(WRONG_HANDLERS)
    assert refused(f"wrong:{name}") == f"wrong:{name} {what}: {WRITE}"


def test_handler_without_a_signature_is_refused(app_dir: Path, refused: Refused) -> None:
    (app_dir / "wrong.py").write_text(WRONG_HANDLERS)
    assert refused("wrong:most") == f"wrong:most: its parameters cannot be read: {WRITE}"


# Names.


@pytest.mark.parametrize("name", ["", ":", "app", "app:", ":handler", "app.handler"])
def test_name_without_two_halves_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_name(name)
    assert str(caught.value) == f"{name!r} names no app: write MODULE:NAME, for example app:handler"
    assert not isinstance(caught.value, AppError)


@pytest.mark.parametrize("name", ["absent:handler", "absent.sub:handler", "package.absent:handler", "json.absent:x"])
def test_module_that_does_not_exist_is_named(app_dir: Path, refused: Refused, name: str) -> None:
    (app_dir / "package").mkdir()
    (app_dir / "package" / "__init__.py").write_text("")
    missing = "absent" if name.startswith("absent") else name.partition(":")[0]
    assert refused(name) == (
        f"{name}: there is no module {missing!r} in {app_dir} or installed; --app-dir says where to look"
    )


def test_module_is_looked_for_in_the_app_directory_first(app_dir: Path) -> None:
    (app_dir / "this_is_the_one.py").write_text("async def handler(conn): ...\n")
    other = app_dir / "other"
    other.mkdir()
    (other / "this_is_the_one.py").write_text("")
    sys.path.insert(0, str(other))
    assert load("this_is_the_one:handler", app_dir).kind is Kind.CONN


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("named:handle", "module named has no 'handle'; did you mean 'handler'?"),
        ("named:something", "module named has no 'something'"),
        ("named:_hidde", "module named has no '_hidde'"),
        ("named:Service.sevre", "class Service has no 'sevre'; did you mean 'serve'?"),
        ("named:handler.a", "a function has no 'a'"),
        ("named:handler:more", "module named has no 'handler:more'; did you mean 'handler'?"),
    ],
)
def test_attribute_that_does_not_exist_is_named(app_dir: Path, refused: Refused, name: str, what: str) -> None:
    (app_dir / "named.py").write_text(
        "async def handler(conn): ...\n_hidden = 1\nclass Service:\n    def serve(self): ...\n"
    )
    assert refused(name) == f"{name}: {what}"


def test_attribute_that_raises_is_told(app_dir: Path, refused: Refused) -> None:
    (app_dir / "lazy.py").write_text('def __getattr__(name):\n    raise LookupError("no database")\n')
    assert refused("lazy:handler") == "lazy:handler: looking up 'handler' raised LookupError: no database"


# Imports that raise.


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("\n1 / 0\n", "ZeroDivisionError: division by zero", 2),
        ("raise ValueError\n", "ValueError", 1),
        ("raise ValueError('two\\nlines')\n", "ValueError: two", 1),
        ("error = ValueError('noted')\nerror.add_note('a note')\nraise error\n", "ValueError: noted", 3),
        (
            "raise ExceptionGroup('all', [ValueError('a'), ValueError('b')])\n",
            "ExceptionGroup: all (2 sub-exceptions)",
            1,
        ),
        ("import sys\nsys.exit('no database')\n", "SystemExit: no database", 2),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", 1),
        ("\nimport nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'", 2),
        ("import raising.sub\n", "ModuleNotFoundError: No module named 'raising.sub'; 'raising' is not a package", 1),
        ("\ndef (:\n", "SyntaxError: invalid syntax", 2),
        ("if True:\nx = 1\n", "IndentationError: expected an indented block after 'if' statement on line 1", 2),
    ],
)
def test_import_that_raises_is_told_with_its_place(
    app_dir: Path, refused: Refused, text: str, what: str, line: int
) -> None:
    (app_dir / "raising.py").write_text(text)
    assert refused("raising:handler") == (
        f"raising:handler: importing raising raised {what} ({app_dir / 'raising.py'}, line {line})"
    )


def test_import_that_raises_keeps_its_cause(app_dir: Path) -> None:
    (app_dir / "raising.py").write_text("1 / 0\n")
    with pytest.raises(AppError) as caught:
        load("raising:handler", app_dir)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_module_name_that_is_none_is_told_in_one_line(refused: Refused) -> None:
    assert refused(".relative:handler").startswith(".relative:handler: importing .relative raised TypeError: ")
