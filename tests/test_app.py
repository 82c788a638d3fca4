"""Loading apps: from `module:name` to the object, or the one line that says what went wrong with that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.app import Kind, load, split_name
from shardnet.errors import AppError, UsageError


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


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("app.py", "app:handler"),
        ("./app.py", "app:handler"),
        ("./app", "app:handler"),
        (".app", "app:handler"),
        ("../app.py", "app:handler --app-dir .."),
        ("src/chat/app.py", "app:handler --app-dir src/chat"),
        ("/srv/app.py", "app:handler --app-dir /srv"),
    ],
)
def test_file_is_no_module_and_its_module_is_named(app_dir: Path, refused: Refused, module: str, meant: str) -> None:
    """A path went to `import`, whose error spoke of packages and relative imports."""
    (app_dir / "app.py").write_text("async def handler(conn): ...\n")
    assert refused(f"{module}:handler") == (
        f"{module}:handler: {module} is no name of a module, as `import` takes it: write {meant}"
    )


def test_module_may_be_called_py(app_dir: Path) -> None:
    (app_dir / "parsers").mkdir()
    (app_dir / "parsers" / "py.py").write_text("async def handler(conn): ...\n")
    assert load("parsers.py:handler", app_dir).kind is Kind.CONN


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


def test_name_may_call_what_needs_no_arguments(app_dir: Path) -> None:
    (app_dir / "called.py").write_text(
        "class Server:\n    class Inner:\n        async def handle(self, reader, writer): ...\n"
        "def make():\n    return Server\n"
    )
    for name in ("Server.Inner().handle", "make().Inner().handle"):
        handler = load(f"called:{name}", app_dir)
        assert handler.kind is Kind.STREAMS
        assert handler.function.__qualname__ == "Server.Inner.handle"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("needy:Server().handle", "calling Server() raised TypeError: Server.__init__() missing 1 required positional "
         "argument: 'port'"),
        ("needy:number()", "calling number() raised TypeError: 'int' object is not callable"),
        ("needy:Sever().handle", "module needy has no 'Sever'; did you mean 'Server'?"),
    ],
)  # fmt: skip
def test_call_that_raises_is_told(app_dir: Path, refused: Refused, name: str, what: str) -> None:
    (app_dir / "needy.py").write_text("class Server:\n    def __init__(self, port): ...\nnumber = 5\n")
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
