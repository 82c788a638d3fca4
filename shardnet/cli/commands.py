"""The commands, and what each does with its flags."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from shardnet import __version__
from shardnet.check import check_app
from shardnet.cli.bench import bench
from shardnet.cli.chaos import chaos
from shardnet.cli.flags import HELP_WIDTH, GroupedCommand, resolved, with_settings
from shardnet.cli.health import health
from shardnet.cli.operate import COMMANDS
from shardnet.cli.top import top
from shardnet.config import FILE_NAME, OFF, PYPROJECT, Resolved, changed, render
from shardnet.errors import SystemFault
from shardnet.listen.address import parse_address, parse_tcp_address, refuse_overlap
from shardnet.listen.unix import parse_owner
from shardnet.serve import absolute, handover_form, serve
from shardnet.supervisor.program import HANDOVER_FLAG

STDOUT_NAME: Final = "-"
CONTAINER_DRAIN_S: Final = 8.0  # As PID 1: `docker stop` kills after 10 s, unless it is told otherwise.

RUN_EPILOG: Final = """\b
Examples:
  shardnet run app:handler
  shardnet run app:handler --workers 8 --bind 0.0.0.0:9000 --bind '[::]:9000'
  shardnet run chat.server:on_data --app-dir src --watch --debug
  SHARDNET_LOG_FORMAT=json shardnet run app:handler --config /etc/shardnet.toml

\b
Signals: TERM, INT stop gracefully, QUIT or a second one at once; HUP reloads; USR2 upgrades;
USR1 reopens logs; TTIN, TTOU: one shard more, less;
WINCH: not ready, still serving.
Exit status: 0 stopped as asked, 2 usage, 3 configuration, 4 app, 5 address, 70 nobody served."""

SHOW_EPILOG: Final = """Later layers win: defaults, the file, SHARDNET_* variables, flags. The flags are those of
`shardnet run`."""


@dataclass(slots=True)
class Debugging:
    """Whether an error is to be shown with its traceback: known once the settings are."""

    on: bool = False


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    invoke_without_command=True,
)
@click.pass_context
@click.version_option(__version__, prog_name="shardnet", message="%(prog)s %(version)s")
@click.option(HANDOVER_FLAG, "asked_form", is_flag=True, hidden=True)  # A running server asks before it starts over.
def cli(ctx: click.Context, asked_form: bool) -> None:
    """Serve TCP with one worker process per core, and lose no connection that waits in a queue."""
    if asked_form:
        click.echo(handover_form())
        ctx.exit()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.add_command(bench)
cli.add_command(chaos)
cli.add_command(health)
cli.add_command(top)
for operation in COMMANDS:
    cli.add_command(operation)


@cli.command(cls=GroupedCommand, epilog=RUN_EPILOG, short_help="Serve a handler.")
@with_settings()
@click.pass_context
def run(ctx: click.Context, /, **values: Any) -> None:
    """Serve NAME of MODULE: an async def handler(conn) or (reader, writer), a def on_data(conn, data), an
    asyncio.Protocol class or factory, or an App.

    Each flag is a key of shardnet.toml as well (drain_timeout), and a variable (SHARDNET_DRAIN_TIMEOUT).
    """
    known = _settle(ctx, values)
    app = _app_of(ctx, known)
    settings = known.settings
    if os.getpid() == 1 and known.is_default("drain_timeout_s"):
        settings = changed(settings, drain_timeout_s=CONTAINER_DRAIN_S)
    asked_for_metrics = not known.is_default("metrics_bind")
    ctx.exit(serve(app, settings, metrics_required=asked_for_metrics, config=known.file))


@cli.command(cls=GroupedCommand, short_help="Load an app and say what it is, or what is wrong with it.")
@with_settings("app_dir", "debug")
@click.pass_context
def check(ctx: click.Context, /, **values: Any) -> None:
    """Load an app in a child process and say what it is, or what is wrong with it (exit status 4)."""
    known = _settle(ctx, values)
    app = _app_of(ctx, known)
    click.echo(f"{app} is a handler: {check_app(app, absolute(Path(known.settings.app_dir)))}")


@cli.group(short_help="Show, write or describe settings.", invoke_without_command=True)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Settings: those that count, a file to start from, a schema for editors."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@config.command(cls=GroupedCommand, epilog=SHOW_EPILOG, short_help="Print each setting and where it is from.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@with_settings()
@click.pass_context
def show(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Print each setting and where it is from, as `shardnet run` would have it, in the form of a file."""
    known = _settle(ctx, values)
    click.echo(render.as_json(known) if as_json else render.as_toml(known), nl=as_json)


@config.command(short_help="Write a commented file with every setting at its default.")
@click.argument("file", default=FILE_NAME, metavar="[FILE]")
def init(file: str) -> None:
    """Write a commented FILE (shardnet.toml) with every setting at its default; -: print it."""
    text = render.template("tool.shardnet" if Path(file).name == PYPROJECT else "")
    if file == STDOUT_NAME:
        click.echo(text, nl=False)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as exc:
        raise SystemFault(f"{file} exists already: name another one, or - to print") from exc
    click.echo(f"wrote {file}: every setting at its default, commented out")


@config.command(short_help="Print the JSON Schema of a settings file.")
def schema() -> None:
    """Print the JSON Schema of shardnet.toml, for editors and linters."""
    click.echo(json.dumps(render.schema(), indent=2, ensure_ascii=False))


def _settle(ctx: click.Context, values: dict[str, Any]) -> Resolved:
    """The settings that count, checked as far as that is possible without starting."""
    debugging = ctx.ensure_object(Debugging)
    debugging.on = bool(values["debug"])
    known = resolved(values)
    debugging.on = known.settings.debug
    with known.blame("bind"):
        refuse_overlap([parse_address(text) for text in known.settings.bind])
    if known.settings.metrics_bind != OFF:
        with known.blame("metrics_bind"):
            parse_tcp_address(known.settings.metrics_bind)
    with known.blame("unix_owner"):
        parse_owner(known.settings.unix_owner)
    return known


def _app_of(ctx: click.Context, known: Resolved) -> str:
    if known.settings.app is None:
        command = ctx.command_path
        raise click.UsageError(
            f"no app: name one, for example `{command} app:handler`, or set app in {FILE_NAME} or SHARDNET_APP", ctx
        )
    return known.settings.app
