"""Settings: declared once, and flags, keys, variables, files, schema and documentation derive from them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shardnet.cli import run
from shardnet.config import SETTINGS, Kind, Resolved, Settings, Source, Unfit, render, resolve
from shardnet.config.settings import UNITS
from shardnet.errors import ConfigError

DOCS = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BY_KEY = {setting.key: setting for setting in SETTINGS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, and it is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settle(flags: Mapping[str, Any] | None = None, config: str | None = None, **environ: str) -> Resolved:
    return resolve(flags or {}, config=config, environ=environ)


# The declaration.


def test_every_setting_has_a_flag_named_after_it() -> None:
    flags = {option.name: option.opts for option in run.params if option.name not in ("app", "config")}
    assert flags == {setting.name: [setting.flag] for setting in SETTINGS if setting.name != "app"}


def test_flag_key_and_variable_leave_out_the_unit_and_help_shows_it_instead() -> None:
    drain, swap = BY_KEY["drain_timeout"], BY_KEY["swap_size"]
    assert (drain.name, drain.flag, drain.metavar) == ("drain_timeout_s", "--drain-timeout", "SECONDS")
    assert (swap.name, swap.env, swap.metavar) == ("swap_size_bytes", "SHARDNET_SWAP_SIZE", "BYTES")
    assert not [setting.key for setting in SETTINGS if setting.key.endswith(tuple(UNITS))]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_explains_itself_and_has_a_default_that_fits(setting: Any) -> None:
    assert setting.help.endswith(".")
    assert setting.expected
    assert bool(setting.metavar) is (setting.kind is not Kind.BOOL)
    assert setting.default == getattr(Settings(), setting.name)
    if setting.default is None:
        assert setting.check(setting.example) == setting.example
    else:
        assert setting.check(setting.default) == setting.default


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("workers", "8", 8),
        ("workers", "auto", "auto"),
        ("drain_timeout", "30", 30.0),
        ("drain_timeout", "0.5", 0.5),
        ("debug", "true", True),
        ("debug", "On", True),
        ("debug", "0", False),
        ("bind", ":9000", (":9000",)),
        ("bind", ":9000, [::1]:9001 unix:/run/a.sock", (":9000", "[::1]:9001", "unix:/run/a.sock")),
        ("unix_mode", "0660", "0660"),
        ("unix_owner", "www-data", "www-data"),
    ],
)
def test_text_is_read_as_the_kind_of_its_setting(key: str, text: str, value: object) -> None:
    read = BY_KEY[key].read(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "text"), [("workers", "٣"), ("workers", "1_0"), ("drain_timeout", "nan"), ("bind", "")]
)
def test_text_that_only_looks_like_a_value_is_none(key: str, text: str) -> None:
    with pytest.raises(Unfit, match=r"^expected .*, found "):
        BY_KEY[key].read(text)


# The layers.


def test_later_layers_win_and_each_value_knows_where_it_is_from(folder: Path) -> None:
    (folder / "shardnet.toml").write_text('app = "a:b"\n\nworkers = 2\nbacklog = 3\ndrain_timeout = 4\n')
    known = settle({"drain_timeout_s": 6.0, "debug": True}, SHARDNET_BACKLOG="5", SHARDNET_DRAIN_TIMEOUT="5")
    settings = known.settings
    assert (settings.app, settings.workers, settings.backlog, settings.drain_timeout_s) == ("a:b", 2, 5, 6.0)
    assert settings.debug
    origins = {name: (origin.source, str(origin)) for name, origin in known.origins.items()}
    assert origins["app"] == (Source.FILE, "shardnet.toml:1")
    assert origins["workers"] == (Source.FILE, "shardnet.toml:3")
    assert origins["backlog"] == (Source.ENV, "SHARDNET_BACKLOG")
    assert origins["drain_timeout_s"] == (Source.FLAG, "--drain-timeout")
    assert origins["bind"] == (Source.DEFAULT, "default")
    assert known.is_default("bind")
    assert not known.is_default("app")
    assert known.file == Path("shardnet.toml")


def test_pyproject_is_read_when_there_is_no_shardnet_toml(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\n\n[tool.shardnet]\nworkers = 2\nbacklog = 7\n')
    known = settle()
    assert (known.settings.workers, str(known.origins["workers"])) == (2, "pyproject.toml:5")
    (folder / "shardnet.toml").write_text("workers = 3\n")
    known = settle()
    assert (known.settings.workers, known.settings.backlog) == (3, Settings().backlog)


@pytest.mark.parametrize("text", ["[project]\nname = 'x'\n", "[tool]\n", "broken = \n", "tool = 'shardnet'\n"])
def test_pyproject_that_says_nothing_of_us_is_left_alone(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)
    known = settle()
    assert known.settings == Settings()
    assert known.file is None


def test_named_file_is_read_instead_and_the_flag_goes_before_the_variable(folder: Path) -> None:
    for name, workers in (("shardnet.toml", 2), ("other.toml", 3), ("third.toml", 4)):
        (folder / name).write_text(f"workers = {workers}\n")
    assert settle(config="other.toml").settings.workers == 3
    assert settle(SHARDNET_CONFIG="third.toml").settings.workers == 4
    assert settle(config="other.toml", SHARDNET_CONFIG="third.toml").settings.workers == 3


def test_named_pyproject_is_read_by_its_table(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "pyproject.toml").write_text("[tool.shardnet]\nworkers = 5\n")
    assert settle(config="sub/pyproject.toml").settings.workers == 5


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("workers = 2", "shardnet.toml:1"),
        ("\n  'workers'  = 2", "shardnet.toml:2"),
        ("# workers = 3\nworkers=2", "shardnet.toml:2"),
        ('app = """\nworkers = 3\n:x"""\nworkers = 2', "shardnet.toml"),  # Two lines look like it: better none.
        ("\ufeffworkers = 2", "shardnet.toml:1"),
        ("\r\nworkers = 2\r\n", "shardnet.toml:2"),
    ],
)
def test_line_of_a_key_is_found_or_left_out(folder: Path, text: str, where: str) -> None:
    (folder / "shardnet.toml").write_bytes(text.encode())
    assert str(settle().origins["workers"]) == where


def test_empty_variable_counts_as_none(folder: Path) -> None:
    assert settle(SHARDNET_WORKERS="", SHARDNET_UNIX_OWNER=" ", SHARDNET_CONFIG="").settings == Settings()


def test_variables_that_are_no_settings_are_known(folder: Path) -> None:
    """Kubernetes sets such variables for each service that is named `shardnet` or `shardnet-…`."""
    environ = {
        "SHARDNET_ENGINE": "python",
        "SHARDNET_SERVICE_HOST": "10.0.0.1",
        "SHARDNET_SERVICE_PORT": "9000",
        "SHARDNET_SERVICE_PORT_METRICS": "9464",
        "SHARDNET_PORT": "tcp://10.0.0.1:9000",
        "SHARDNET_PORT_9000_TCP": "tcp://10.0.0.1:9000",
        "SHARDNET_PORT_9000_TCP_ADDR": "10.0.0.1",
        "SHARDNET_CHAT_SERVICE_HOST": "10.0.0.1",
        "SHARDNET_CHAT_PORT_9000_UDP_PROTO": "udp",
        "OTHER": "1",
    }
    assert resolve({}, environ=environ).settings == Settings()


def test_settings_hide_no_variable_of_kubernetes() -> None:
    from shardnet.config.layers import ENV_OF_KUBERNETES

    assert not [setting.env for setting in SETTINGS if ENV_OF_KUBERNETES.fullmatch(setting.env)]


def test_value_that_a_later_layer_replaces_is_checked_all_the_same(folder: Path) -> None:
    with pytest.raises(ConfigError, match="SHARDNET_WORKERS: expected"):
        settle({"workers": 2}, SHARDNET_WORKERS="none")


# What is made from them.


def _written() -> str:
    """What `config init` writes, as somebody has it who takes the # away everywhere."""
    lines = render.template().splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# ") and " = " in line)


def test_template_sets_nothing_as_written_and_every_setting_when_uncommented(folder: Path) -> None:
    assert tomllib.loads(render.template()) == {}
    written = tomllib.loads(_written())
    assert set(written) == set(BY_KEY)
    given = {setting.key: setting.default for setting in SETTINGS if setting.default is not None}
    defaults = json.loads(json.dumps(given))
    assert {key: written[key] for key in defaults} == defaults
    (folder / "shardnet.toml").write_text(_written())
    known = settle()
    assert {origin.source for origin in known.origins.values()} == {Source.FILE}


def test_template_for_pyproject_stands_in_its_table() -> None:
    header = "tool.shardnet"
    text = render.template(header) + "workers = 3\n"
    assert tomllib.loads(text) == {"tool": {"shardnet": {"workers": 3}}}


def test_schema_accepts_what_the_template_writes() -> None:
    schema = json.loads(json.dumps(render.schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(_written()), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "wrong",
    [
        {"worker": 2},
        {"workers": 0},
        {"workers": "many"},
        {"bind": "x:1"},
        {"bind": []},
        {"unix_mode": "rw"},
        {"debug": 1},
    ],
    ids=str,
)
def test_schema_refuses_what_the_layers_refuse(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(json.dumps(render.schema())), jsonschema.Draft202012Validator)
    ((key, value),) = wrong.items()
    (folder / "shardnet.toml").write_text(f"{key} = {json.dumps(value)}\n")
    with pytest.raises(ConfigError):
        settle()


def test_documentation_has_the_table_of_settings() -> None:
    """When this fails: `.venv/bin/python tools/settings-table.py` writes it anew."""
    assert render.docs_table() in DOCS.read_text()
