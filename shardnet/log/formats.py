"""How an event becomes a line: as text for people and grep, or as JSON for programs. Pure.

A line of either format is one line whatever stands in its values, and holds nothing that a terminal would obey.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

# Characters that would make a bare value ambiguous or unreadable.
QUOTE_IF: Final = frozenset(' "=\\')
# What every JSON line says itself: a field of such a name gets an underscore behind it.
RESERVED: Final = frozenset({"time", "level", "who", "event", "traceback"})
DECIMALS: Final = 6

# Unix time, level, who says it, what happened (None: the fields say it), fields, traceback ("": none).
Format = Callable[[float, str, str, str | None, Mapping[str, object], str], str]


def text_line(
    unix_s: float, level: str, who: str, event: str | None, fields: Mapping[str, object], traceback: str
) -> str:
    """`TIME LEVEL WHO event="…" name=value …`, newline included; a traceback follows, indented by a bar."""
    words = [timestamp(unix_s), level, _value(who)]
    if event is not None:
        words.append(f"event={_quote(event)}")
    words.extend(f"{name}={_value(value)}" for name, value in fields.items())
    line = " ".join(words) + "\n"
    return line + "".join(f"  | {row}\n" for row in traceback.splitlines())


def json_line(
    unix_s: float, level: str, who: str, event: str | None, fields: Mapping[str, object], traceback: str
) -> str:
    """One JSON object in ASCII, newline included: what is not a number, a boolean or null is a string."""
    entry: dict[str, object] = {"time": timestamp(unix_s), "level": level, "who": who}
    if event is not None:
        entry["event"] = event
    for name, value in fields.items():
        entry[f"{name}_" if name in RESERVED else name] = _plain(value)
    if traceback:
        entry["traceback"] = traceback
    return json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n"


FORMATS: Final[Mapping[str, Format]] = {"text": text_line, "json": json_line}


def timestamp(unix_s: float) -> str:
    """In UTC, to the millisecond."""
    whole_s, ms = divmod(int(unix_s * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s)) + f".{ms:03d}Z"


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    bare = text and text.isprintable() and QUOTE_IF.isdisjoint(text)
    return text if bare else _quote(text)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    return f'"{escaped}"'


def _plain(value: object) -> object:
    """What JSON can say of a value. An enum's number is its own business: its text is what the others show."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return round(value, DECIMALS)
    return str(value)
