"""Flags made from the declared settings, and a help that shows them in groups.

Lives here: what click is told. Must not live here: what is done with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from shardnet.config import FILE_NAME, PYPROJECT, SETTINGS, Group, Kind, Resolved, Setting, Unfit, resolve
from shardnet.config.render import default_text

__all__ = ["GroupedCommand", "resolved", "with_settings"]

CONFIGURATION: Final = "Configuration"
HELP_WIDTH: Final = 100
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Value(click.ParamType):  # type: ignore[type-arg]  # at run time, older versions take none
    """The text of a flag, read and checked as the text of a variable is."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.key
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if self._setting.kind is Kind.LIST:
                return self._setting.check((value,))[0]  # One at a time, and whole: a path may have commas.
            return self._setting.read(value) if isinstance(value, str) else value
        except Unfit as exc:
            self.fail(f"{exc}.", param, ctx)


class _Flag(click.Option):
    """The flag of a setting; None when it is not given."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        options: dict[str, Any] = {"help": setting.help, "default": None}
        name = setting.flag
        if setting.kind is Kind.BOOL:
            name = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        else:
            options |= {"type": _Value(setting), "metavar": setting.metavar, "multiple": setting.kind is Kind.LIST}
        super().__init__([name, setting.name], **options)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        setting = self.setting
        name = setting.flag.removeprefix("--")
        left = f"--[no-]{name}" if setting.kind is Kind.BOOL else f"{setting.flag} {setting.metavar}"
        help_ = setting.help
        if setting.choices:
            help_ = f"{help_.rstrip('.')}: {', '.join(setting.choices)}."
        default = default_text(setting)
        return left, help_ + (f" [{default}]" if default else "")


class _Argument(click.Argument):
    """A setting as an argument."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        super().__init__([setting.name], type=_Value(setting), required=False, metavar=f"[{setting.metavar}]")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.setting.metavar, f"{self.setting.help} May stand in the file, or in {self.setting.env}."


def with_settings(*names: str) -> Decorator:
    """The flags of these settings (of all of them when none is named), `--config`, and the app as an argument."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        place = f"The file to read instead of {FILE_NAME} or {PYPROJECT}."
        command = click.option("--config", metavar="FILE", help=place)(command)
        parameters: list[click.Parameter] = []
        for setting in SETTINGS:
            if setting.name == "app":
                parameters.append(_Argument(setting))
            elif not names or setting.name in names:
                parameters.append(_Flag(setting))
        # click collects what decorators add, last one first, in this attribute.
        command.__click_params__ += reversed(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def resolved(values: Mapping[str, Any]) -> Resolved:
    """The settings that count, given what the flags of `with_settings` were given. Raises `ConfigError`."""
    flags = {name: value for name, value in values.items() if name != "config" and value not in (None, ())}
    return resolve(flags, config=values["config"])


class GroupedCommand(click.Command):
    """A command whose help shows its flags under the headings of their settings, in one column."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in Group}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.setting.group if isinstance(parameter, _Flag | _Argument) else CONFIGURATION
                groups.setdefault(heading, []).append(record)
        width = max(len(flag) for rows in groups.values() for flag, _ in rows)
        for heading, rows in groups.items():
            if not rows:
                continue
            with formatter.section(heading):
                formatter.write_dl([(flag.ljust(width), help_) for flag, help_ in rows], col_max=width)
