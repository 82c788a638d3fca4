"""Settings as others read them: a commented file, a JSON Schema, a table for the documentation, what counts now.

Lives here: text made from the declaration. Must not live here: reading any of it back.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any, Final

import msgspec

from shardnet.config.layers import FILE_NAME, Resolved, Source
from shardnet.config.settings import UNITS, Group, Settings
from shardnet.config.values import SETTINGS, Setting

__all__ = ["as_json", "as_toml", "default_text", "docs_table", "schema", "template", "toml_value"]

SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
COMMENT_WIDTH: Final = 100
ORIGIN_COLUMN: Final = 44

INTRODUCTION: Final = f"""\
# Settings of shardnet. Every line that starts with #: a setting, at its default; take the # away to change it.
# SHARDNET_* variables and flags go before what stands here. What counts in the end: shardnet config show.
# In a pyproject.toml the same lines stand below [tool.shardnet]; {FILE_NAME} goes before it.
"""


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case str():
            # A JSON string is a TOML basic string, but for DEL, which JSON does not escape.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            return str(value)


def default_text(setting: Setting) -> str:
    """The default as help and documentation show it; "" where there is none, or it goes without saying."""
    match setting.default:
        case None | bool():
            return ""
        case tuple() as items:
            return ", ".join(items)
        case float() as number:
            return toml_value(number)
        case value:
            return str(value)


def template(header: str = "") -> str:
    """A file with every setting at its default, all of them commented out. `header`: the table to put them into."""
    lines = [INTRODUCTION + (f"\n[{header}]" if header else "")]
    for group in Group:
        lines.append(f"\n## {group.value}\n")
        for setting in SETTINGS:
            if setting.group is group:
                lines += [f"## {row}" for row in textwrap.wrap(_explained(setting), COMMENT_WIDTH)]
                value = setting.default if setting.default is not None else setting.example
                lines.append(f"# {setting.key} = {toml_value(value)}\n")
    return "\n".join(lines).rstrip("\n") + "\n"


def _explained(setting: Setting) -> str:
    unit = f", in {setting.metavar.lower()}" if setting.metavar in UNITS.values() else ""
    unset = " Not set by default." if setting.default is None else ""
    return f"{setting.help} Write {setting.expected}{unit}.{unset}"


def schema() -> dict[str, Any]:
    """The JSON Schema of a `shardnet.toml`, and of the table `[tool.shardnet]`."""
    made: dict[str, Any] = msgspec.json.schema(Settings)
    (struct,) = made["$defs"].values()
    # TOML has no null: a setting that is not set is one that is not written.
    for declared in struct["properties"].values():
        choices = [choice for choice in declared.get("anyOf", ()) if choice != {"type": "null"}]
        if len(choices) == 1:
            del declared["anyOf"], declared["default"]
            declared.update(choices[0])
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "Settings of shardnet",
        "description": Settings.__doc__,
        "type": "object",
        "properties": struct["properties"],
        "additionalProperties": False,
    }


def docs_table() -> str:
    """A table in Markdown for each group."""
    parts = []
    for group in Group:
        rows = ["| key and flag | type | default | |", "|---|---|---|---|"]
        for setting in SETTINGS:
            if setting.group is group:
                default = "" if setting.default is None else f"`{toml_value(setting.default)}`"
                expected = setting.expected.replace("|", r"\|")
                rows.append(f"| `{setting.key}` | {expected} | {default} | {setting.help} |")
        parts.append(f"### {group.value}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def as_toml(resolved: Resolved) -> str:
    """The settings that count as a TOML file, with their origins in comments."""
    lines = []
    for setting in SETTINGS:
        value = getattr(resolved.settings, setting.name)
        written = f"# {setting.key} is not set" if value is None else f"{setting.key} = {toml_value(value)}"
        lines.append(f"{written:<{ORIGIN_COLUMN}} # {resolved.origins[setting.name]}\n")
    return "".join(lines)


def as_json(resolved: Resolved) -> str:
    """The same for programs: by key an object of `value`, `source` (a layer) and `where` (null for a default)."""
    shown = {}
    for setting in SETTINGS:
        origin = resolved.origins[setting.name]
        shown[setting.key] = {
            "value": getattr(resolved.settings, setting.name),
            "source": origin.source.value,
            "where": None if origin.source is Source.DEFAULT else origin.where,
        }
    return json.dumps(shown, indent=2, ensure_ascii=False)
