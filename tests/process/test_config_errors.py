"""What a user is told whose settings cannot be: one line with the place, the key, what was expected and what was found.

Each case is a whole command in a folder of its own; line and exit status are compared exactly.
"""
# ruff: noqa: E501 - a table, whose lines are what the user reads

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.harness.server import shardnet

pytestmark = pytest.mark.process

FAILED: Final = 1
USAGE: Final = 2
CONFIG: Final = 3

TOML: Final = "shardnet.toml"
PYPROJECT: Final = "pyproject.toml"


@dataclass(frozen=True)
class Case:
    name: str
    line: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ("run", "app:handler")
    status: int = CONFIG


def file(name: str, text: str | bytes, line: str, **more: Sequence[str]) -> Case:
    return Case(name, f"shardnet: {line}", {TOML: text}, **more)  # type: ignore[arg-type]


def variable(name: str, value: str, line: str) -> Case:
    return Case(f"{name}={value[:20]}", f"shardnet: {line}", env={name: value})


def flag(flag_: str, value: str, found: str) -> Case:
    line = f"shardnet run: Invalid value for '{flag_}': {found}; see shardnet run --help"
    return Case(f"{flag_}={value}", line, arguments=("run", "app:handler", flag_, value), status=USAGE)


def named(name: str, config: str, line: str, files: Mapping[str, str] | None = None) -> Case:
    return Case(name, f"shardnet: {line}", files or {}, arguments=("run", "app:handler", "--config", config))


NO_TABLES: Final = "the settings stand at the top, without a table"
ALL_KEYS: Final = "`shardnet config init -` shows all there are"
WORKERS: Final = 'expected a whole number from 1 to 1024 or "auto", found'
OCTAL: Final = 'expected octal digits in quotes, for example "660", found'
BIND: Final = 'expected a list of addresses, for example ["127.0.0.1:9000"], found'
APP: Final = "expected MODULE:NAME, for example app:handler, found"
SECONDS: Final = "expected a number from 0 to 604800, found"
EXAMPLE: Final = "write HOST:PORT"

CASES: Final = [
    # Files that are none.
    file("no value", "workers = \n", "shardnet.toml:1:11: is no TOML: invalid value"),
    file("no equals sign", "workers = 2\nbind\n", "shardnet.toml:2:5: is no TOML: expected '=' after a key in a key/value pair"),
    file("a string not closed", 'app = "app:handler\n', "shardnet.toml:1:19: is no TOML: illegal character '\\n'"),
    file("an array not closed", 'workers = 2\nbind = ["a"\n', "shardnet.toml:3: is no TOML: unclosed array"),
    file("a key twice", "workers = 2\nworkers = 3\n", "shardnet.toml:2:12: is no TOML: cannot overwrite a value"),
    file("no UTF-8", b'app = "\xff"', "shardnet.toml: is no UTF-8 text: byte 7 is 0xff"),
    Case(
        "a broken pyproject.toml that mentions us",
        "shardnet: pyproject.toml:2:9: is no TOML: invalid value",
        {PYPROJECT: "[tool.shardnet]\nworkers=\n"},
    ),
    Case("a folder", "shardnet: shardnet.toml: cannot be read: Is a directory", {f"{TOML}/inside": ""}),
    # Files that were asked for.
    named("--config absent", "no.toml", "--config no.toml: there is no such file; `shardnet config init no.toml` writes one"),
    named("--config folder", ".", "--config .: cannot be read: Is a directory"),
    named("--config below a file", "a/b.toml", "--config a/b.toml: there is no such file; `shardnet config init a/b.toml` writes one", {"a": ""}),
    named("--config without our table", "x/pyproject.toml", "x/pyproject.toml: has no table [tool.shardnet]", {"x/pyproject.toml": "[tool]"}),
    named("--config wrong inside", "x/other.toml", f"x/other.toml:2: workers: {WORKERS} 0", {"x/other.toml": "\nworkers = 0"}),
    variable("SHARDNET_CONFIG", "no.toml", "SHARDNET_CONFIG=no.toml: there is no such file; `shardnet config init no.toml` writes one"),
    # Keys and tables that nobody knows.
    file("misspelt key", "\nworker = 2\n", 'shardnet.toml:2: unknown key "worker"; did you mean workers?'),
    file("key like a flag", "drain-timeout = 2\n", 'shardnet.toml:1: unknown key "drain-timeout"; did you mean drain_timeout?'),
    file("key like nothing", "zzz = 2\n", f'shardnet.toml:1: unknown key "zzz"; {ALL_KEYS}'),
    file("unknown table", "workers = 2\n\n[limits]\nbacklog = 3\n", f'shardnet.toml:3: unknown table "limits": {NO_TABLES}'),
    file("table of pyproject.toml", "[tool.shardnet]\nworkers = 2\n", f"shardnet.toml:1: [tool.shardnet] is for pyproject.toml: here {NO_TABLES}"),
    Case(
        "unknown key in pyproject.toml",
        'shardnet: pyproject.toml:4: unknown key "wrokers"; did you mean workers?',
        {PYPROJECT: '[project]\nname = "x"\n[tool.shardnet]\nwrokers = 2\n'},
    ),
    Case(
        "unknown table in pyproject.toml",
        'shardnet: pyproject.toml:2: unknown table "log" in [tool.shardnet]',
        {PYPROJECT: "[tool.shardnet]\n[tool.shardnet.log]\nlevel = 1\n"},
    ),
    Case("no table", "shardnet: pyproject.toml: tool.shardnet: expected a table of settings, found 3", {PYPROJECT: "tool.shardnet = 3\n"}),
    # Values of another type, out of range, or that are no choice.
    file("text for a number", 'workers = "many"', f'shardnet.toml:1: workers: {WORKERS} "many"'),
    file("number as text", 'workers = "2"', f'shardnet.toml:1: workers: {WORKERS} "2"'),
    file("too many", "workers = 2000", f"shardnet.toml:1: workers: {WORKERS} 2000"),
    file("a fraction", "workers = 2.5", f"shardnet.toml:1: workers: {WORKERS} 2.5"),
    file("yes for a number", "workers = true", f"shardnet.toml:1: workers: {WORKERS} true"),
    file("a date", "workers = 2026-01-01", f"shardnet.toml:1: workers: {WORKERS} 2026-01-01"),
    file("a table for a value", "[workers]\nleast = 1", f'shardnet.toml:1: workers: {WORKERS} {{"least": 1}}'),
    file("below zero", "drain_timeout = -1", f"shardnet.toml:1: drain_timeout: {SECONDS} -1"),
    file("no number at all", "drain_timeout = nan", f"shardnet.toml:1: drain_timeout: {SECONDS} NaN"),
    file("for ever", "drain_timeout = inf", f"shardnet.toml:1: drain_timeout: {SECONDS} Infinity"),
    file("too small", "swap_size = 1", "shardnet.toml:1: swap_size: expected a whole number from 4096 to 1073741824, found 1"),
    file("no choice", 'log_format = "xml"', 'shardnet.toml:1: log_format: expected "text" or "json", found "xml"'),
    file("text for yes or no", 'debug = "yes"', 'shardnet.toml:1: debug: expected true or false, found "yes"'),
    file("no list", 'bind = "127.0.0.1:0"', f'shardnet.toml:1: bind: {BIND} "127.0.0.1:0"'),
    file("an empty list", "bind = []", f"shardnet.toml:1: bind: {BIND} []"),
    file("no mode", 'unix_mode = "rw"', f'shardnet.toml:1: unix_mode: {OCTAL} "rw"'),
    file("a mode as a number", "unix_mode = 0o660", f"shardnet.toml:1: unix_mode: {OCTAL} 432"),
    file("no owner", 'unix_owner = "a:b:c"', 'shardnet.toml:1: unix_owner: expected USER, USER:GROUP or :GROUP, found "a:b:c"'),
    file("nobody", 'unix_owner = "nobody-of-that-name"', "shardnet.toml:1: unix_owner: unix owner: this machine has no user 'nobody-of-that-name'; see `getent passwd`"),
    file("no app", 'app = "app"', f'shardnet.toml:1: app: {APP} "app"'),
    file("no folder", 'app_dir = "srcc"', 'shardnet.toml:1: app_dir: expected a folder that exists, found "srcc"'),
    file("a long text", f'log_level = "{"x" * 99}"', f'shardnet.toml:1: log_level: expected "debug" or "info" or "warning" or "error", found "{"x" * 58}…'),
    file("a text over lines", 'log_level = "a\\nb\\u001b"', 'shardnet.toml:1: log_level: expected "debug" or "info" or "warning" or "error", found "a\\nb\\u001b"'),
    file("replaced by a flag", "workers = 0", f"shardnet.toml:1: workers: {WORKERS} 0", arguments=("run", "app:handler", "--workers", "2")),
    # Variables.
    variable("SHARDNET_WORKRES", "2", "SHARDNET_WORKRES: unknown variable; did you mean SHARDNET_WORKERS?"),
    variable("SHARDNET_QQQ", "2", "SHARDNET_QQQ: unknown variable; `shardnet run --help` shows all settings"),
    variable("SHARDNET_WORKERS", "many", f'SHARDNET_WORKERS: {WORKERS} "many"'),
    variable("SHARDNET_WORKERS", "1e3", f'SHARDNET_WORKERS: {WORKERS} "1e3"'),
    variable("SHARDNET_DEBUG", "maybe", 'SHARDNET_DEBUG: expected true or false, found "maybe"'),
    variable("SHARDNET_DRAIN_TIMEOUT", "30s", f'SHARDNET_DRAIN_TIMEOUT: {SECONDS} "30s"'),
    variable("SHARDNET_LOG_LEVEL", "INFO", 'SHARDNET_LOG_LEVEL: expected "debug" or "info" or "warning" or "error", found "INFO"'),
    variable("SHARDNET_BIND", ",", f'SHARDNET_BIND: {BIND} ","'),
    variable("SHARDNET_APP", "app", f'SHARDNET_APP: {APP} "app"'),
    # Flags: usage errors.
    flag("--workers", "many", f'{WORKERS} "many"'),
    flag("--log-format", "xml", 'expected "text" or "json", found "xml"'),
    flag("--app-dir", "srcc", 'expected a folder that exists, found "srcc"'),
    flag("--unix-mode", "rw", f'{OCTAL} "rw"'),
    Case(
        "no app at all",
        "shardnet run: no app: name one, for example `shardnet run app:handler`, or set app in shardnet.toml or "
        "SHARDNET_APP; see shardnet run --help",
        arguments=("run",),
        status=USAGE,
    ),
    Case("config show", f"shardnet: shardnet.toml:1: workers: {WORKERS} 0", {TOML: "workers = 0"}, arguments=("config", "show")),
    Case("check", f"shardnet: shardnet.toml:1: workers: {WORKERS} 0", {TOML: "workers = 0"}, arguments=("check", "app:handler")),
    Case(
        "init over a file",
        "shardnet: shardnet.toml exists already: name another one, or - to print",
        {TOML: ""},
        arguments=("config", "init"),
        status=FAILED,
    ),
    Case(
        "init nowhere",
        "shardnet: No such file or directory: no/where.toml",
        arguments=("config", "init", "no/where.toml"),
        status=FAILED,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_wrong_setting_is_told_in_one_line(tmp_path: Path, case: Case) -> None:
    for name, content in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    finished = shardnet(*case.arguments, cwd=tmp_path, env=case.env)
    assert (finished.stderr, finished.status) == (f"{case.line}\n", case.status)
    assert finished.stdout == ""


ADDRESS_PLACES: Final = [
    ({TOML: 'bind = ["127.0.0.1:0", "nonsense"]'}, {}, [], "shardnet.toml:1: bind: ", CONFIG),
    ({TOML: 'bind = ["unix:nonsense", "unix:nonsense"]'}, {}, [], "shardnet.toml:1: bind: ", CONFIG),
    ({TOML: 'metrics_bind = "nonsense"'}, {}, [], "shardnet.toml:1: metrics_bind: ", CONFIG),
    ({}, {"SHARDNET_BIND": "127.0.0.1:0 nonsense"}, [], "SHARDNET_BIND: ", CONFIG),
    ({}, {}, ["--bind", "nonsense"], "", USAGE),
]


@pytest.mark.parametrize(("files", "env", "flags", "place", "status"), ADDRESS_PLACES, ids=str)
def test_address_that_is_none_is_told_with_its_place(
    tmp_path: Path, files: dict[str, str], env: dict[str, str], flags: list[str], place: str, status: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    finished = shardnet("run", "app:handler", *flags, cwd=tmp_path, env=env)
    assert finished.status == status
    (line,) = finished.stderr_lines
    assert line.startswith(f"shardnet: {place}")
    assert "nonsense" in line
