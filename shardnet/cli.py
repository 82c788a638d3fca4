"""The command line: `shardnet run` and `shardnet check`.

Lives here: reading flags, and saying in one line what went wrong. Must not live here: what a start does (see `serve`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from shardnet import __version__
from shardnet.app import split_name
from shardnet.check import check_app
from shardnet.config import AUTO, Declaration, Settings, declarations
from shardnet.errors import AddressInUse, AppError, ExitCode, ShardnetError, UsageError
from shardnet.holder import with_holder
from shardnet.serve import absolute, serve
from shardnet.supervisor.supervisor import NobodyServed

STDERR: Final = 2

EXAMPLES: Final = """\b
Examples:
  shardnet run app:handler
  shardnet run app:handler --workers 8 --bind 0.0.0.0:9000 --bind '[::]:9000'
  shardnet run chat.server:on_data --app-dir src --metrics-bind 0.0.0.0:9464

\b
Signals to the supervisor: TERM, INT and HUP stop gracefully, a second one or QUIT at once.
Exit status: 0 stopped as asked, 2 usage, 4 the app cannot be loaded, 5 address in use, 70 nobody could serve."""


class AutoOr(click.IntRange):
    """A number, or `auto`, which is None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == AUTO:
            return None
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            most = f" to {self.max}" if self.max is not None else ""
            self.fail(f"{value!r} is neither {AUTO} nor a whole number from {self.min}{most}.", param, ctx)


def _option(declaration: Declaration) -> Callable[..., Any]:
    """The flag of a declared setting."""
    meta = declaration.meta
    options: dict[str, Any] = {"help": meta.help, "default": declaration.default, "show_default": True}
    match declaration.type:
        case "bool":
            options |= {"is_flag": True, "show_default": False}
        case "tuple[str, ...]":
            options |= {"multiple": True, "metavar": meta.metavar}
        case "Path":
            folder = click.Path(exists=True, file_okay=False, path_type=Path)
            options |= {"type": folder, "show_default": "here", "metavar": meta.metavar}
        case "int | None":
            options |= {"type": AutoOr(_whole(meta.least), _whole(meta.most)), "default": AUTO, "metavar": meta.metavar}
        case "int":
            options |= {"type": click.IntRange(_whole(meta.least), _whole(meta.most)), "metavar": meta.metavar}
        case "float":
            options |= {"type": click.FloatRange(meta.least, meta.most), "metavar": meta.metavar}
        case _:
            options |= {"metavar": meta.metavar}
    return click.option(declaration.flag, declaration.name, **options)


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _with_settings(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flags of these settings; of all of them when none is named."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for declaration in reversed(list(declarations())):
            if not names or declaration.name in names:
                command = _option(declaration)(command)
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.pass_context
@click.version_option(__version__, prog_name="shardnet", message="%(prog)s %(version)s")
def cli(ctx: click.Context) -> None:
    """Serve TCP with one worker process per core, and lose no connection that waits in a queue."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(epilog=EXAMPLES, short_help="Serve a handler.")
@click.argument("app", metavar="MODULE:NAME")
@_with_settings()
@click.pass_context
def run(ctx: click.Context, /, app: str, **values: Any) -> None:
    """Serve the handler NAME of MODULE: `async def handler(conn)` or `def on_data(conn, data)`."""
    settings = Settings(**values)
    asked_for_metrics = ctx.get_parameter_source("metrics_bind") is not ParameterSource.DEFAULT
    with _one_line_errors(settings.debug):
        split_name(app)
        ctx.exit(serve(app, settings, metrics_required=asked_for_metrics))


@cli.command(short_help="Load an app and say what it is, or what is wrong with it.")
@click.argument("app", metavar="MODULE:NAME")
@_with_settings("app_dir", "debug")
def check(app: str, app_dir: Path, debug: bool) -> None:
    """Load an app in a child process and say what it is, or what is wrong with it (exit status 4)."""
    with _one_line_errors(debug):
        split_name(app)
        click.echo(f"{app} is a handler: {check_app(app, absolute(app_dir))}")


def main() -> NoReturn:
    """The `shardnet` command."""
    _open_standard_streams()
    try:
        status = cli.main(prog_name="shardnet", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "shardnet"
        _complain(f"{command}: {error.format_message().rstrip('.')}; see {command} --help")
        status = ExitCode.USAGE
    except click.Abort:  # Ctrl-C before the server had set up its own answer to it.
        status = ExitCode.FAILED
    sys.exit(status)


def _open_standard_streams() -> None:
    """Give descriptors 0, 1 and 2 something to be, where whoever started us has closed them.

    Otherwise the next descriptors that are opened get these numbers, and the log goes to a listener, an eventfd, or a
    client's connection.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)


# What goes wrong.


@contextlib.contextmanager
def _one_line_errors(debug: bool) -> Iterator[None]:
    """End the process with one line on stderr and the exit status that the error stands for."""
    try:
        yield
    except ShardnetError as error:
        if debug:
            traceback.print_exception(error)
        _complain(f"shardnet: {with_holder(error)}")
        sys.exit(_exit_code(error))
    except OSError as error:  # Of descriptors or memory too few even to start, or nobody reads what we print.
        if debug:
            traceback.print_exception(error)
        _complain(f"shardnet: {error.strerror or error}")
        sys.exit(ExitCode.FAILED)


def _complain(line: str) -> None:
    """Say what went wrong. If that cannot be written, the exit status still tells."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _exit_code(error: ShardnetError) -> ExitCode:
    match error:
        case AppError():
            return ExitCode.APP
        case UsageError():
            return ExitCode.USAGE
        case AddressInUse():
            return ExitCode.ADDRESS
        case NobodyServed():
            return ExitCode.UNSERVED
        case _:
            return ExitCode.FAILED
