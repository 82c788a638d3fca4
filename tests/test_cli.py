"""The command line: its help, and the commands about settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardnet.cli import cli
from shardnet.config import SETTINGS, Group

HELP_LINES_MAX = 80
WIDTH = 100


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, and it is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str, **env: str) -> Result:
    result = CliRunner().invoke(
        cli, arguments, env=env, standalone_mode=False, prog_name="shardnet", terminal_width=WIDTH
    )
    assert result.exception is None, result.exception
    return result


def test_help_of_run_is_short_grouped_and_has_examples() -> None:
    lines = command("run", "--help").stdout.splitlines()
    assert len(lines) <= HELP_LINES_MAX
    assert max(map(len, lines)) <= WIDTH
    headings = [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [*(group.value for group in Group), "Configuration"]
    assert "  Examples:" in lines


def test_help_of_run_shows_each_flag_in_one_place() -> None:
    text = command("run", "--help").stdout
    for setting in SETTINGS:
        if setting.name != "app":
            name = setting.flag.removeprefix("--")
            assert text.count(f"\n  --{name} ") + text.count(f"\n  --[no-]{name} ") == 1, name


@pytest.mark.parametrize("arguments", [[], ["config"]], ids=str)
def test_command_without_subcommand_shows_its_help(arguments: list[str]) -> None:
    assert command(*arguments).stdout == command(*arguments, "--help").stdout


def test_show_prints_each_setting_and_where_it_is_from(folder: Path) -> None:
    (folder / "shardnet.toml").write_text("\nbacklog = 7\n")
    shown = command("config", "show", "app:handler", "--workers", "3", "--no-debug", SHARDNET_SWAP_SIZE="8192").stdout
    rows = [line.rpartition(" # ") for line in shown.splitlines()]
    where = {left.strip(): right for left, _, right in rows}
    assert where['app = "app:handler"'] == "argument"
    assert where["workers = 3"] == "--workers"
    assert where["debug = false"] == "--debug"
    assert where["swap_size = 8192"] == "SHARDNET_SWAP_SIZE"
    assert where["backlog = 7"] == "shardnet.toml:2"
    assert where['bind = ["127.0.0.1:9000"]'] == "default"
    assert where["# unix_mode is not set"] == "default"
    assert len(where) == len(SETTINGS)


def test_show_prints_a_file_that_means_the_same(folder: Path) -> None:
    shown = command("config", "show", "--bind", "unix:a b.sock", "--bind", ":0", "--drain-timeout", "0.5").stdout
    (folder / "shardnet.toml").write_text(shown)
    again = json.loads(command("config", "show", "--json").stdout)
    assert tomllib.loads(shown)["bind"] == ["unix:a b.sock", ":0"]
    assert again["bind"]["value"] == ["unix:a b.sock", ":0"]
    assert again["drain_timeout"]["value"] == 0.5


def test_show_prints_json_for_programs(folder: Path) -> None:
    shown = json.loads(command("config", "show", "--json", SHARDNET_BIND=":0,:1").stdout)
    assert list(shown) == [setting.key for setting in SETTINGS]
    assert shown["bind"] == {"value": [":0", ":1"], "source": "env", "where": "SHARDNET_BIND"}
    assert shown["unix_mode"] == {"value": None, "source": "default", "where": None}


def test_init_writes_a_file_that_changes_nothing_and_prints_the_same(folder: Path) -> None:
    printed = command("config", "init", "-").stdout
    said = command("config", "init").stdout
    assert said == "wrote shardnet.toml: every setting at its default, commented out\n"
    assert (folder / "shardnet.toml").read_text() == printed
    assert tomllib.loads(printed) == {}


def test_init_writes_a_table_into_a_pyproject(folder: Path) -> None:
    command("config", "init", "pyproject.toml")
    assert tomllib.loads((folder / "pyproject.toml").read_text()) == {"tool": {"shardnet": {}}}


def test_schema_is_printed_as_json() -> None:
    printed = json.loads(command("config", "schema").stdout)
    assert set(printed["properties"]) == {setting.key for setting in SETTINGS}


def test_check_takes_the_app_from_the_settings(folder: Path) -> None:
    (folder / "shardnet.toml").write_text('app = "examples.echo:handler"\n')
    assert command("check").stdout.startswith("examples.echo:handler is ")
    assert command("check", SHARDNET_APP="examples.echo:on_data").stdout.startswith("examples.echo:on_data is ")
