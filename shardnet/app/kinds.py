"""Which kind of handler an object is, or in one line what is wrong with it.

Lives here: looking at callables. Must not live here: importing them (see `loading`), serving with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal, Never

from shardnet.app.handler import FORMS, App, Handler, Kind
from shardnet.errors import AppError

_FORMS = list(FORMS.values())
CHOICES: Final = f"write {', '.join(_FORMS[:-1])}, or {_FORMS[-1]}"

ARGUMENTS: Final = {Kind.CONN: 1, Kind.STREAMS: 2, Kind.CALLBACK: 2, Kind.PROTOCOL: 0}  # What each is called with.
HOOKS: Final = {"on_connect": "(conn)", "on_disconnect": "(conn, error)", "on_drain": "(conn)"}
# Names that give away which kind was meant, where the number of parameters would say something else.
DATA_NAMES: Final = frozenset({"data", "chunk", "message"})
STREAM_NAMES: Final = ["reader", "writer"]
PLAIN_MANAGER: Final[Any] = contextlib.contextmanager(iter)  # Whatever that decorates, its code is the same.


def resolve(name: str, found: Any) -> Handler:
    """The handler that an object is. `name` is what errors call it.

    A factory of protocols is not called here: see `try_factory`. Raises `AppError`.
    """
    if isinstance(found, App):
        return _resolve_app(name, found)
    kind = Kind.PROTOCOL if _is_protocol_class(_unwrapped(found)) else _kind(name, found)
    _check_arguments(name, found, kind)
    return Handler(kind, found, name=name)


async def try_factory(handler: Handler) -> None:
    """Have a factory of protocols make one: better to learn now than from the first client that it does not.

    Nothing for handlers of other kinds, and for classes of protocols. A coroutine, because a protocol may want the
    running loop. Raises `AppError`.
    """
    if handler.kind is not Kind.PROTOCOL or _is_protocol_class(_unwrapped(handler.function)):
        return
    try:
        made = handler.function()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise AppError(f"{handler.name}: the factory raised {first_line(error)}") from error
    if not _is_protocol_class(type(made)):
        if inspect.iscoroutine(made):
            made.close()
        raise AppError(f"{handler.name} makes {describe(made)}, no asyncio.Protocol: {CHOICES}")


def first_line(error: BaseException) -> str:
    """Type and text of an exception, without what follows: more lines, notes, the place."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return traceback.format_exception_only(error)[0].splitlines()[0]


def describe(found: Any) -> str:
    """What sort of object it is, with its article."""
    if inspect.ismodule(found):
        return f"module {found.__name__}"
    if inspect.isclass(found):
        return f"class {found.__name__}"
    if found is None:
        return "None"
    return _article(type(found).__name__)


# An App.


def _resolve_app(name: str, app: App) -> Handler:
    if isinstance(app.handler, App):
        raise AppError(f"{name} is an App of an App: give the inner one's handler to the outer one")
    its = f"{name}: its handler"
    handler = resolve(its, app.handler) if app.kind is None else _resolve_as(name, its, app.handler, app.kind)
    for hook, takes in HOOKS.items():
        _check_hook(name, hook, getattr(app, hook), takes)
    _check_lifespan(name, app.lifespan)
    if not isinstance(app.limit, int) or isinstance(app.limit, bool) or app.limit < 1:
        raise AppError(f"{name}: limit={app.limit!r} is no size: give a number of bytes, 1 or more")
    return replace(
        handler,
        lifespan=app.lifespan,
        on_connect=app.on_connect,
        on_disconnect=app.on_disconnect,
        on_drain=app.on_drain,
        limit=app.limit,
        name=name,
    )


def _resolve_as(name: str, its: str, found: Any, asked: Kind | str) -> Handler:
    """As `resolve`, for an app that says the kind. Errors call its handler `its`."""
    try:
        kind = Kind(asked)
    except ValueError:
        raise AppError(f"{name}: kind={asked!r} is none of {', '.join(Kind)}") from None
    if not callable(found):
        raise AppError(f"{its} is {describe(found)}, no handler: {CHOICES}")
    inner = _unwrapped(found)
    if inspect.isclass(inner) and _is_protocol_class(inner) is not (kind is Kind.PROTOCOL):
        cure = CHOICES if kind is Kind.PROTOCOL else "leave kind out, or give a function"
        raise AppError(f'{name}: kind="{kind}" takes {FORMS[kind]}, and this is {describe(inner)}: {cure}')
    # A wrapper may be of another sort than what it wraps, and whoever says a kind knows.
    itself = _call_makes(found, through_wrappers=False)
    if itself == "generator":
        _refuse_generator(its)
    if kind is Kind.CONN and inspect.isfunction(found) and _call_makes(found) is None:
        raise AppError(f'{name}: kind="conn" takes an async function, and this is a plain one: write async def')
    if kind in (Kind.CALLBACK, Kind.PROTOCOL) and itself == "coroutine":
        raise AppError(f'{name}: kind="{kind}" takes a plain function, and this is an async one: write def')
    if not inspect.isclass(inner) and not _takes(found, ARGUMENTS[kind]):
        raise AppError(f'{name}: kind="{kind}" takes {FORMS[kind]}, and this is {_with_parameters(found)}')
    _check_arguments(its, found, kind)
    return Handler(kind, found)


def _check_hook(name: str, hook: str, function: Any, takes: str) -> None:
    if function is None:
        return
    if not callable(function):
        raise AppError(f"{name}: {hook} is {describe(function)}, no function: write def {hook}{takes}")
    if (makes := _call_makes(function, through_wrappers=False)) is not None:
        what = "an async function" if makes == "coroutine" else "a generator function"
        raise AppError(f"{name}: {hook} is {what}, but is called as a plain one: write def {hook}{takes}")
    if not _takes(function, takes.count(",") + 1):
        raise AppError(f"{name}: {hook} cannot be called with {takes}: write def {hook}{takes}")


def _check_lifespan(name: str, lifespan: Any) -> None:
    if lifespan is None:
        return
    cure = "write @contextlib.asynccontextmanager above async def lifespan(shard), with one yield in it"
    if hasattr(lifespan, "__aenter__") and not inspect.isclass(lifespan):
        what = describe(lifespan)
        raise AppError(f"{name}: lifespan is {what}, made already: give what makes it, which is called with (shard)")
    if not callable(lifespan):
        raise AppError(f"{name}: lifespan is {describe(lifespan)}, no function: {cure}")
    if makes := _call_makes(lifespan, through_wrappers=False):
        what = "an async function" if makes == "coroutine" else "a generator function"
        raise AppError(f"{name}: lifespan is {what}, no async context manager: {cure}")
    if getattr(lifespan, "__code__", None) is PLAIN_MANAGER.__code__:
        raise AppError(f"{name}: lifespan is a plain context manager, no async one: {cure}")
    if not _takes(lifespan, 1):
        raise AppError(f"{name}: lifespan cannot be called with (shard): {cure}")


# A bare handler.


def _kind(name: str, found: Any) -> Kind:
    if not callable(found) or inspect.isclass(found):
        _refuse_object(name, found)
    makes = _call_makes(found)
    if makes == "generator":
        _refuse_generator(name)
    _refuse_method(name, found)
    names = [parameter.name for parameter in _positional(_signature(name, found))]
    if makes == "coroutine":
        if _takes(found, 1):
            return Kind.CONN
        if len(names) == 2 and names[1] in DATA_NAMES:
            raise AppError(f"{name} is an async function of {_spelled(found)}: a callback is a plain one, write def")
        return Kind.STREAMS
    if names[:2] == STREAM_NAMES:
        raise AppError(f'{name} is a plain function of (reader, writer): write async def, or App(…, kind="streams")')
    required = [p for p in _positional(_signature(name, found)) if p.default is p.empty]
    if not required and not _takes_any_number(found):
        return Kind.PROTOCOL
    if len(required) == 1 and not _takes(found, 2):
        raise AppError(f"{name} is a plain function of {_spelled(found)}, which is no handler: {CHOICES}")
    return Kind.CALLBACK


def _refuse_object(name: str, found: Any) -> Never:
    if inspect.isclass(found):
        if issubclass(found, asyncio.BaseProtocol):
            raise AppError(f"{name} is {describe(found)}, a protocol, but not of streams: {CHOICES}")
    elif _is_protocol_class(type(found)):
        raise AppError(f"{name} is an object of {describe(type(found))}: give the class, each connection needs its own")
    elif inspect.iscoroutine(found):
        found.close()
        raise AppError(f"{name} is a coroutine, no handler: give the function without calling it")
    raise AppError(f"{name} is {describe(found)}, no handler: {CHOICES}")


def _refuse_generator(name: str) -> Never:
    raise AppError(f"{name} is a generator function, which is no handler: {CHOICES}")


def _refuse_method(name: str, found: Any) -> None:
    """A method looked up on its class looks like a function of one parameter more."""
    if inspect.isfunction(found) and next(iter(inspect.signature(found).parameters), "") == "self":
        class_name, dot, method = found.__qualname__.rpartition(".")
        if dot and not class_name.endswith("<locals>"):
            raise AppError(
                f"{name} is a method of class {class_name}: make an object, and give its {method}, "
                f"or write {class_name}().{method} if it needs no arguments"
            )


def _check_arguments(name: str, found: Any, kind: Kind) -> None:
    _signature(name, found)
    if _takes(found, ARGUMENTS[kind]):
        return
    if _is_protocol_class(_unwrapped(found)):
        protocol = f"{describe(_unwrapped(found))} of {_spelled(found)}"
        raise AppError(f"{name} is {protocol}: write a factory without parameters")
    raise AppError(f"{name} is {_with_parameters(found)}, which is no handler: {CHOICES}")


# Callables in general.


def _is_protocol_class(found: Any) -> bool:
    """Also a class that has the methods and does not inherit them, as asyncio itself allows."""
    if not inspect.isclass(found):
        return False
    if issubclass(found, (asyncio.Protocol, asyncio.BufferedProtocol)):
        return True
    receives = hasattr(found, "data_received") or hasattr(found, "get_buffer")
    return receives and hasattr(found, "connection_made") and hasattr(found, "connection_lost")


def _unwrapped(found: Any) -> Any:
    while isinstance(found, functools.partial):
        found = found.func
    return found


def _call_makes(found: Any, *, through_wrappers: bool = True) -> Literal["coroutine", "generator"] | None:
    """What a call of it makes, looking through partials, wrappers and `__call__`; None: what a plain function does."""
    while True:
        if inspect.isclass(found):
            return None
        if inspect.iscoroutinefunction(found):
            return "coroutine"
        if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
            return "generator"
        if isinstance(found, functools.partial):
            found = found.func
        elif through_wrappers and hasattr(found, "__wrapped__"):
            found = found.__wrapped__
        else:
            call = getattr(found, "__call__", None)  # noqa: B004 - a function's own is no Python function
            if not (inspect.ismethod(call) or inspect.isfunction(call)):
                return None
            found = call


def _signature(name: str, found: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise AppError(f"{name}: its parameters cannot be read: {CHOICES}") from error


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in signature.parameters.values() if parameter.kind in kinds]


def _takes_any_number(found: Callable[..., Any]) -> bool:
    parameters = inspect.signature(found).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _takes(found: Callable[..., Any], given: int) -> bool:
    """Whether it can be called with so many arguments by position."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return True  # Written in C, and says nothing of itself.
    by_position = _positional(signature)
    required = sum(parameter.default is parameter.empty for parameter in by_position)
    most = sys.maxsize if _takes_any_number(found) else len(by_position)
    parameters = signature.parameters.values()
    lacking = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    return required <= given <= most and not lacking


def _spelled(found: Callable[..., Any]) -> str:
    """Its parameters without their types, which would hide them."""
    signature = inspect.signature(found)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _with_parameters(found: Callable[..., Any]) -> str:
    sort = "an async function" if _call_makes(found) == "coroutine" else "a plain function"
    return f"{describe(found) if inspect.isclass(found) else sort} of {_spelled(found)}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun.lstrip("_")[:1].lower() in set("aeio") else f"a {noun}"
