"""Apps: what `module:name` stands for, and which kind of handler it is.

Lives here: importing, and telling the user in one line what is wrong. Must not live here: calling a handler.
"""

from __future__ import annotations

import difflib
import enum
import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Never

from shardnet.errors import AppError, UsageError


class Kind(enum.Enum):
    """How a handler is called."""

    CONN = "async def handler(conn)"
    CALLBACK = "def on_data(conn, data)"


CHOICES: Final = " or ".join(kind.value for kind in Kind)


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler and its kind."""

    kind: Kind
    function: Callable[..., Any]


def split_name(name: str) -> tuple[str, str]:
    """`module:name` in its two halves. Raises `UsageError` for anything else."""
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UsageError(f"{name!r} names no app: write MODULE:NAME, for example app:handler")
    return module, attribute


def load(name: str, app_dir: Path) -> Handler:
    """Import `module:name`, looking in `app_dir` first.

    Raises `AppError`, whose text says in one line what is wrong; the traceback of an import that raised is in its
    `__cause__`.
    """
    module_name, attribute = split_name(name)
    sys.path.insert(0, str(app_dir.resolve()))
    found: Any = _import(name, module_name, app_dir)
    for part in attribute.split("."):
        found = _attribute(name, found, part)
    return Handler(_kind(name, found), found)


def _attribute(name: str, found: Any, part: str) -> Any:
    try:
        return getattr(found, part)
    except AttributeError:
        near = difflib.get_close_matches(part, [known for known in dir(found) if not known.startswith("_")], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AppError(f"{name}: {_describe(found)} has no {part!r}{hint}") from None
    except Exception as error:  # A module may have a __getattr__ that imports.
        raise AppError(f"{name}: looking up {part!r} raised {_first_line(error)}") from error


def _import(name: str, module_name: str, app_dir: Path) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise AppError(
                f"{name}: there is no module {error.name!r} in {app_dir.resolve()} or installed; "
                "--app-dir says where to look"
            ) from error
        _import_raised(name, module_name, error)
    except BaseException as error:  # Also SystemExit: whatever a module does, the answer is one line.
        _import_raised(name, module_name, error)


def _import_raised(name: str, module_name: str, error: BaseException) -> Never:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
    raise AppError(f"{name}: importing {module_name} raised {_first_line(error)} ({where})") from error


def _first_line(error: BaseException) -> str:
    """Type and text of an exception, without what follows: more lines, notes, the place."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return traceback.format_exception_only(error)[0].splitlines()[0]


def _kind(name: str, found: Any) -> Kind:
    if not callable(found) or inspect.isclass(found):
        raise AppError(f"{name} is {_describe(found)}, no handler: write {CHOICES}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise AppError(f"{name}: its parameters cannot be read: write {CHOICES}") from error
    makes = _call_makes(found)
    if makes == "generator":
        raise AppError(f"{name} is a generator function, which is no handler: write {CHOICES}")
    parameters = signature.parameters.values()
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in by_position if p.default is p.empty]
    most = sys.maxsize if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(by_position)
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    kind, given = (Kind.CONN, 1) if makes == "coroutine" else (Kind.CALLBACK, 2)
    if keyword_only or not len(required) <= given <= most:
        sort = "async function" if kind is Kind.CONN else "function"
        takes = signature.replace(return_annotation=inspect.Signature.empty)
        raise AppError(f"{name} is {_article(sort)} of {takes}, which is no handler: write {CHOICES}")
    return kind


def _call_makes(found: Any) -> Literal["coroutine", "generator"] | None:
    """What a call of it makes, looking through partials, wrappers and `__call__`; None: what a plain function does."""
    while True:
        if inspect.iscoroutinefunction(found):
            return "coroutine"
        if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
            return "generator"
        if isinstance(found, functools.partial):
            found = found.func
        elif hasattr(found, "__wrapped__"):
            found = found.__wrapped__
        else:
            call = getattr(found, "__call__", None)  # noqa: B004 - a function's own is no Python function
            if not (inspect.ismethod(call) or inspect.isfunction(call)):
                return None
            found = call


def _describe(found: Any) -> str:
    if inspect.ismodule(found):
        return f"module {found.__name__}"
    if inspect.isclass(found):
        return f"class {found.__name__}"
    return _article(type(found).__name__)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
