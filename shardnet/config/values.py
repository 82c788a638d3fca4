"""Values of settings: whether one fits, what a text stands for, and what to say when it does not.

Whether a value fits its type is msgspec's to decide, for every source alike; the words for it are derived from the
type, so that nobody has to keep them in step with the declaration.

Lives here: `SETTINGS`, the declarations in a form to go through. Must not live here: sources.
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import inspect

from shardnet.config.settings import UNITS, Group, Settings, key_of

__all__ = ["ENV_PREFIX", "SETTINGS", "Kind", "Setting", "Unfit", "shown"]

ENV_PREFIX: Final = "SHARDNET_"
FOUND_CHARS_MAX: Final = 60  # Of a value that does not fit, an error shows so much.
TRUTHS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Kind(enum.Enum):
    """How a setting is written as text, in a flag or a variable."""

    BOOL = enum.auto()
    INT = enum.auto()
    FLOAT = enum.auto()
    TEXT = enum.auto()
    LIST = enum.auto()  # Of texts.


class Unfit(ValueError):
    """A value that is none for its setting. The text says what was expected, and what was found."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as declared."""

    name: str  # Of the attribute, with its unit.
    kind: Kind
    type: Any
    default: Any  # None: unset.
    group: Group
    help: str
    metavar: str  # "" for flags that are on or off.
    choices: tuple[str, ...]  # All there are, if it is a choice of words.
    expected: str
    example: str
    folder: bool

    @property
    def key(self) -> str:
        return key_of(self.name)

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()

    def check(self, value: object) -> Any:
        """The value, as `Settings` has it. Raises `Unfit`."""
        try:
            fit = msgspec.convert(value, self.type)
        except msgspec.ValidationError as exc:
            raise self._unfit(value) from exc
        if self.folder and not Path(fit).is_dir():
            raise Unfit(f"expected {self.expected} that exists, found {shown(value)}")
        return fit

    def read(self, text: str) -> Any:
        """The value that a text stands for; items of a list are separated by commas or spaces. Raises `Unfit`."""
        value: object = text
        match self.kind:
            case Kind.BOOL:
                value = TRUTHS.get(text.lower(), text)
            case Kind.INT if re.fullmatch(r"[+-]?[0-9]+", text):
                value = int(text)
            case Kind.FLOAT:
                with contextlib.suppress(ValueError):
                    value = float(text)
            case Kind.LIST:
                value = re.split(r"[,\s]+", text.strip(" ,\t\n"))
            case _:
                pass
        try:
            return self.check(value)
        except Unfit as exc:
            raise Unfit(str(exc)) if self.folder else self._unfit(text) from exc

    def _unfit(self, found: object) -> Unfit:
        return Unfit(f"expected {self.expected}, found {shown(found)}")


def shown(value: object) -> str:
    """A value as an error shows it: about as TOML has it, on one line, and no more than there is room for."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # TOML has dates, which JSON has not.
        text = str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= FOUND_CHARS_MAX else text[: FOUND_CHARS_MAX - 1] + "…"


# From the declaration, through msgspec's own reading of it.


def _bounds(number: inspect.IntType | inspect.FloatType) -> str:
    match number.ge, number.le:
        case None, None:
            return ""
        case least, None:
            return f" of at least {least}"
        case least, most:
            return f" from {_plain(least)} to {_plain(most)}"


def _plain(number: float | None) -> str:
    return f"{number:.12g}"


def _kind_of(type_: inspect.Type) -> Kind:
    match type_:
        case inspect.Metadata(type=inner):
            return _kind_of(inner)
        case inspect.UnionType(types=types):
            return _kind_of(types[0])
        case inspect.BoolType():
            return Kind.BOOL
        case inspect.IntType():
            return Kind.INT
        case inspect.FloatType():
            return Kind.FLOAT
        case inspect.VarTupleType():
            return Kind.LIST
        case _:
            return Kind.TEXT


def _expected(type_: inspect.Type, words: tuple[str, ...]) -> str:
    """What to write, in words; `words` are the type's keywords in the order of the declaration."""
    match type_:
        case inspect.Metadata(type=inner):
            return _expected(inner, words)
        case inspect.UnionType(types=types):
            return " or ".join(_expected(one, words) for one in types)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(type_)
        case inspect.FloatType():
            return "a number" + _bounds(type_)
        case inspect.LiteralType():
            return " or ".join(f'"{word}"' for word in words)
        case _:
            return "text"


def _words(hint: Any) -> tuple[str, ...]:
    """The keywords of a type, in the order of the declaration, which `msgspec.inspect` does not keep."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    parts = hint.__args__ if typing.get_origin(hint) is Annotated else typing.get_args(hint)
    return tuple(word for part in parts for word in _words(part))


def _declared(field: inspect.Field, hint: Any) -> Setting:
    if not isinstance(field.type, inspect.Metadata) or field.type.extra is None:
        raise TypeError(f"{field.name} says nothing of itself")
    about = field.type.extra
    kind = _kind_of(field.type)
    words = _words(hint)
    unit = next((metavar for suffix, metavar in UNITS.items() if field.name.endswith(suffix)), "")
    return Setting(
        name=field.name,
        kind=kind,
        type=hint,
        default=field.default,
        group=about["group"],
        help=(field.type.extra_json_schema or {})["description"],
        metavar=about["metavar"] or unit,
        choices=words if kind is Kind.TEXT else (),
        expected=about["expected"] or _expected(field.type, words),
        example=about["example"],
        folder=about["folder"],
    )


def _all_declared() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(Settings, include_extras=True)
    fields = inspect.type_info(Settings).fields  # type: ignore[attr-defined]  # of a struct's
    return tuple(_declared(field, hints[field.name]) for field in fields)


SETTINGS: Final = _all_declared()
