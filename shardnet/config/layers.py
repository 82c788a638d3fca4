"""Where settings come from: defaults, then a file, then the environment, then flags; later ones win.

The file is the one that `--config` or SHARDNET_CONFIG names; otherwise `shardnet.toml` in the current directory, or
else the table `[tool.shardnet]` of a `pyproject.toml` there. A value is checked also where a later layer replaces it,
so that a mistake is found when it is made. An unknown key or variable is an error: a setting that is misspelt would
otherwise be silently without effect.

Lives here: reading the layers, and remembering which one each value is from. Must not live here: flags (see `cli`),
what a setting does.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shardnet.config.settings import Settings, key_of
from shardnet.config.values import ENV_PREFIX, SETTINGS, Setting, Unfit, shown
from shardnet.errors import ConfigError, UsageError

__all__ = ["CONFIG_ENV", "FILE_NAME", "PYPROJECT", "Origin", "Resolved", "Source", "resolve"]

FILE_NAME: Final = "shardnet.toml"
PYPROJECT: Final = "pyproject.toml"
CONFIG_ENV: Final = "SHARDNET_CONFIG"

BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
BY_ENV: Final = {setting.env: setting for setting in SETTINGS}
ENV_ELSEWHERE: Final = frozenset({CONFIG_ENV, "SHARDNET_ENGINE"})  # Not settings, and known all the same.
# Kubernetes puts the address of a service named `shardnet`, or `shardnet-…`, into every pod of its namespace.
ENV_OF_KUBERNETES: Final = re.compile(
    r"SHARDNET(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)"
)
TOML_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)")
HEADER: Final = re.compile(r"\s*\[\s*(?P<name>[^\[\]]+?)\s*\]\s*(#.*)?")
NO_TABLES: Final = "the settings stand at the top, without a table"


class Source(enum.StrEnum):
    """A layer."""

    DEFAULT = "default"
    FILE = "file"
    ENV = "env"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value is from: `where` is `shardnet.toml:3`, a variable or a flag, and "" for a default."""

    source: Source
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.source.value


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings that count, and where each is from (by its name)."""

    settings: Settings
    origins: Mapping[str, Origin]
    file: Path | None  # The one that was read.

    def is_default(self, name: str) -> bool:
        return self.origins[name].source is Source.DEFAULT

    @contextlib.contextmanager
    def blame(self, name: str) -> Iterator[None]:
        """A `UsageError` in here is about this setting: it becomes a `ConfigError` with the place where the value is
        from. That of a flag stays what it is."""
        try:
            yield
        except UsageError as exc:
            origin = self.origins[name]
            if origin.source is Source.FLAG:
                raise
            key = f"{key_of(name)}: " if origin.source is Source.FILE else ""
            raise ConfigError(f"{origin}: {key}{exc}") from exc


@dataclass(slots=True)
class _Values:
    """Values by the setting's name, as collected so far."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, setting: Setting, value: Any, source: Source, where: str) -> None:
        self.values[setting.name] = value
        self.origins[setting.name] = Origin(source, where)


@dataclass(frozen=True, slots=True)
class _Table:
    """The part of a file that is ours."""

    path: Path
    header: str  # "" for the top of the file.
    text: str
    values: Mapping[str, Any]

    def where(self, key: str) -> str:
        """`FILE:LINE`, or the file alone where the line cannot be told: tomllib does not keep it, and a key may be
        written in more ways than are looked for here."""
        lines = _lines_of(self.text, self.header, key)
        return f"{self.path}:{lines[0]}" if len(lines) == 1 else str(self.path)


def resolve(
    flags: Mapping[str, Any], *, config: str | None = None, environ: Mapping[str, str] | None = None
) -> Resolved:
    """Lay the sources over each other.

    Args:
        flags: By the setting's name: what was given on the command line, already checked; None: not given.
        config: The file to read; None: look for one.
        environ: The environment, of which only SHARDNET_* is looked at.

    Raises:
        ConfigError: A file or variable says what cannot be: one line with the place, the key, what was expected and
            what was found.
    """
    environ = os.environ if environ is None else environ
    found = _Values()
    for setting in SETTINGS:
        found.put(setting, setting.default, Source.DEFAULT, "")
    table = _find_file(config, environ)
    if table is not None:
        _apply_file(found, table)
    _apply_environment(found, environ)
    for setting in SETTINGS:
        if flags.get(setting.name) is not None:
            where = "argument" if setting.name == "app" else setting.flag
            found.put(setting, flags[setting.name], Source.FLAG, where)
    return Resolved(Settings(**found.values), found.origins, None if table is None else table.path)


# The file.


def _find_file(config: str | None, environ: Mapping[str, str]) -> _Table | None:
    if config is not None:
        return _named(config, f"--config {config}")
    if named := environ.get(CONFIG_ENV):
        return _named(named, f"{CONFIG_ENV}={named}")
    own = Path(FILE_NAME)
    if (text := _read(own, str(own))) is not None:
        return _Table(own, "", text, _parse(own, text))
    return _pyproject(Path(PYPROJECT), PYPROJECT)


def _named(name: str, asked: str) -> _Table:
    path = Path(name)
    if path.name == PYPROJECT:
        table = _pyproject(path, asked)
        if table is None and path.exists():
            raise ConfigError(f"{path}: has no table [tool.shardnet]")
    else:
        text = _read(path, asked)
        table = None if text is None else _Table(path, "", text, _parse(path, text))
    if table is None:
        raise ConfigError(f"{asked}: there is no such file; `shardnet config init {path}` writes one")
    return table


def _pyproject(path: Path, asked: str) -> _Table | None:
    """The table of ours. A file that does not even mention us is not read any further: it may be broken."""
    text = _read(path, asked)
    if text is None or "shardnet" not in text:
        return None
    tool = _parse(path, text).get("tool")
    ours = tool.get("shardnet") if isinstance(tool, dict) else None
    if ours is None:
        return None
    if not isinstance(ours, dict):
        raise ConfigError(f"{path}: tool.shardnet: expected a table of settings, found {shown(ours)}")
    return _Table(path, "tool.shardnet", text, ours)


def _read(path: Path, asked: str) -> str | None:
    """The file's text; None if there is no such file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ConfigError(f"{asked}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is no UTF-8 text: byte {exc.start} is {exc.object[exc.start]:#04x}") from exc
    except ValueError as exc:  # A null byte in the name.
        raise ConfigError(f"{asked!r}: is no name of a file") from exc


def _parse(path: Path, text: str) -> dict[str, Any]:
    import tomllib  # Late: most servers have no file.

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        place = TOML_PLACE.fullmatch(str(exc))
        what = place["what"] if place else str(exc)
        if place and place["line"]:
            where = f"{path}:{place['line']}:{place['column']}"
        else:
            where = f"{path}:{text.count(chr(10)) + 1}"
        raise ConfigError(f"{where}: is no TOML: {shown_text(what)}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: is nested too deeply") from exc


def shown_text(text: str) -> str:
    """Someone else's sentence, on one line and with a small letter first, to go on with."""
    line = " ".join(text.split())
    return line[:1].lower() + line[1:]


def _apply_file(found: _Values, table: _Table) -> None:
    for key, value in table.values.items():
        where = table.where(key)
        setting = BY_KEY.get(key)
        if setting is None:
            raise ConfigError(f"{where}: {_unknown_key(table, key, value)}")
        try:
            found.put(setting, setting.check(value), Source.FILE, where)
        except Unfit as exc:
            raise ConfigError(f"{where}: {key}: {exc}") from exc


def _unknown_key(table: _Table, key: str, value: object) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        if not table.header and key == "tool":
            return f"[tool.shardnet] is for {PYPROJECT}: here {NO_TABLES}"
        return f"unknown table {shown(key)}" + (f" in [{table.header}]" if table.header else f": {NO_TABLES}")
    near = difflib.get_close_matches(key, BY_KEY, 1)
    hint = f"did you mean {near[0]}?" if near else "`shardnet config init -` shows all there are"
    return f"unknown key {shown(key)}; {hint}"


def _lines_of(text: str, header: str, key: str) -> list[int]:
    """The lines that look as if they set the key in the table `[header]`, or started its own table."""
    sets = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[.=]""")
    prefix = f"{header}.{key}" if header else key
    found = []
    inside = not header
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("[") and (match := HEADER.fullmatch(line.replace("[[", "[").replace("]]", "]"))):
            name = re.sub(r"\s*\.\s*", ".", match["name"])
            inside = name == header
            if name == prefix or name.startswith(f"{prefix}."):
                found.append(number)
        elif inside and sets.match(line):
            found.append(number)
    return found


# The environment.


def _nearest_variable(name: str) -> str:
    """Compared without the prefix, which makes everything look alike."""
    words = [known.removeprefix(ENV_PREFIX) for known in (*BY_ENV, *ENV_ELSEWHERE)]
    near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), words, 1)
    return f"; did you mean {ENV_PREFIX}{near[0]}?" if near else "; `shardnet run --help` shows all settings"


def _apply_environment(found: _Values, environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in ENV_ELSEWHERE or ENV_OF_KUBERNETES.fullmatch(name):
            continue
        setting = BY_ENV.get(name)
        if setting is None:
            raise ConfigError(f"{name}: unknown variable{_nearest_variable(name)}")
        if environ[name].strip() == "":
            continue  # Set to nothing, as Compose and shell scripts pass on what they have not got: not set.
        try:
            found.put(setting, setting.read(environ[name]), Source.ENV, name)
        except Unfit as exc:
            raise ConfigError(f"{name}: {exc}") from exc
