"""Loading an app: from `module:name` to the object that it names.

Lives here: importing, and telling the user in one line what went wrong with that. Must not live here: what the object
is good for (see `kinds`).
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any, Never

from shardnet.app.handler import Handler
from shardnet.app.kinds import describe, first_line, resolve
from shardnet.errors import AppError, UsageError


def split_name(name: str) -> tuple[str, str]:
    """`module:name` in its two halves. Raises `UsageError` for anything else."""
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UsageError(f"{name!r} names no app: write MODULE:NAME, for example app:handler")
    return module, attribute


def load(name: str, app_dir: Path) -> Handler:
    """Import `module:name`, looking in `app_dir` first.

    The name may lead through attributes, and through calls without arguments: `module:Server().handle`.

    Raises `AppError`, whose text says in one line what is wrong; the traceback of an import that raised is in its
    `__cause__`.
    """
    module_name, attribute = split_name(name)
    if "/" in module_name or module_name.startswith("."):
        _refuse_path(name)
    sys.path.insert(0, str(app_dir.resolve()))
    found: Any = _import(name, module_name, app_dir)
    for part in attribute.split("."):
        found = _attribute(name, found, part.removesuffix("()"))
        if part.endswith("()"):
            found = _call(name, found, part)
    return resolve(name, found)


def _refuse_path(name: str) -> Never:
    """There is a file's path where its module belongs: `src/app.py:handler`."""
    module_name, attribute = split_name(name)
    folder, _, file = module_name.rpartition("/")
    app_dir = f" --app-dir {folder}" if folder not in ("", ".") else ""
    meant = f"{file.removesuffix('.py').lstrip('.')}:{attribute}{app_dir}"
    raise AppError(f"{name}: {module_name} is no name of a module, as `import` takes it: write {meant}")


def _attribute(name: str, found: Any, part: str) -> Any:
    try:
        return getattr(found, part)
    except AttributeError:
        near = difflib.get_close_matches(part, [known for known in dir(found) if not known.startswith("_")], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AppError(f"{name}: {describe(found)} has no {part!r}{hint}") from None
    except Exception as error:  # A module may have a __getattr__ that imports.
        raise AppError(f"{name}: looking up {part!r} raised {first_line(error)}") from error


def _call(name: str, found: Any, part: str) -> Any:
    try:
        return found()
    except Exception as error:
        raise AppError(f"{name}: calling {part} raised {first_line(error)}") from error


def _import(name: str, module_name: str, app_dir: Path) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            if module_name.endswith(".py"):
                _refuse_path(name)
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
    raise AppError(f"{name}: importing {module_name} raised {first_line(error)} ({where})") from error
