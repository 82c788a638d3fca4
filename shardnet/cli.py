"""The command line: `shardnet run` and `shardnet check`.

Lives here: reading flags, wiring supervisor, workers and exporter together, and saying in one line what went wrong.
Must not live here: anything that goes on after the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from shardnet import __version__
from shardnet.app import split_name
from shardnet.board import Board
from shardnet.check import check_app
from shardnet.config import AUTO, OFF, Declaration, Settings, declarations
from shardnet.cpus import usable_cpus
from shardnet.errors import AddressInUse, AppError, ExitCode, ShardnetError, UsageError
from shardnet.filelimit import check_supervisor_fits, connections_within, raise_file_limit
from shardnet.holder import name_holder
from shardnet.listen import Address, AddressHeld, ListenerBank, SocketOptions, open_metrics_listener, parse_address
from shardnet.log import get_logger, set_up
from shardnet.seats import ExporterSeat
from shardnet.supervisor.supervisor import NobodyServed, SupervisorOptions, supervise
from shardnet.watcher import ENGINE
from shardnet.worker import WorkerOptions, run_worker

STDERR: Final = 2
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

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
        ctx.exit(_serve(app, settings, metrics_required=asked_for_metrics))


@cli.command(short_help="Load an app and say what it is, or what is wrong with it.")
@click.argument("app", metavar="MODULE:NAME")
@_with_settings("app_dir", "debug")
def check(app: str, app_dir: Path, debug: bool) -> None:
    """Load an app in a child process and say what it is, or what is wrong with it (exit status 4)."""
    with _one_line_errors(debug):
        split_name(app)
        click.echo(f"{app} is a handler: {check_app(app, _absolute(app_dir))}")


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


def _absolute(app_dir: Path) -> Path:
    """Asked at the start, once: later the current directory may be gone, and a worker is forked at any time."""
    try:
        return app_dir.absolute()
    except OSError as exc:
        raise UsageError("the current directory is gone: change to another one, or give --app-dir DIR") from exc


def _serve(app: str, settings: Settings, *, metrics_required: bool) -> ExitCode:
    set_up("debug" if settings.debug else "info")
    log = get_logger("supervisor")
    shards = settings.workers or usable_cpus()
    file_limit = raise_file_limit()
    connections_max = connections_within(file_limit, settings.max_connections)
    if settings.max_connections is not None and connections_max < settings.max_connections:
        log.warning(
            f"file limit {file_limit} is low for --max-connections {settings.max_connections}: "
            f"each worker stops accepting at {connections_max}; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        )
    addresses = [parse_address(text) for text in settings.bind]
    check_supervisor_fits(file_limit, shards, len(addresses))
    app_dir = _absolute(settings.app_dir)
    with contextlib.ExitStack() as opened:
        bank = ListenerBank.open(addresses, shards, SocketOptions(backlog=settings.backlog))
        opened.callback(bank.close)
        if bank.backlog_effective < settings.backlog:
            log.warning(
                f"the kernel cuts --backlog {settings.backlog} to {bank.backlog_effective}: "
                f"raise it with sysctl net.core.somaxconn={settings.backlog}"
            )
        metrics = _open_metrics(settings.metrics_bind, bank.addresses, required=metrics_required)
        if metrics is not None:
            opened.callback(metrics.close)
        board = Board.create(shards)
        options = WorkerOptions(
            app=app,
            app_dir=app_dir,
            listeners=tuple(map(str, bank.addresses)),
            connections_max=connections_max,
            swap_size_bytes=settings.swap_size_bytes,
            drain_timeout_s=settings.drain_timeout_s,
        )
        # Delivered while the supervisor runs, which unblocks them. Afterwards only the interpreter comes to its end: a
        # second Ctrl-C that is a little late would make that a death by signal, and the exit status wrong.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        return supervise(
            bank,
            board,
            SupervisorOptions(shards, settings.drain_timeout_s, settings.boot_timeout_s),
            partial(run_worker, options),
            _run_exporter,
            metrics,
            partial(_say_serving, app, bank, shards, metrics),
        )


def _open_metrics(text: str, served: Iterable[Address], *, required: bool) -> socket.socket | None:
    """The exporter's listener. A default address that is taken costs the metrics, not the service."""
    if text == OFF:
        return None
    address = parse_address(text)
    try:
        if any(ours.covers(address) or address.covers(ours) for ours in served):
            raise AddressInUse(f"address {address} is among those of --bind: give --metrics-bind another port")
        return open_metrics_listener(address)
    except AddressInUse as error:
        if required:
            raise
        get_logger("supervisor").warning(f"no metrics: {_with_holder(error)}", hint="--metrics-bind HOST:PORT or off")
        return None


def _run_exporter(seat: ExporterSeat) -> int:
    # Imported in the exporter alone: what the supervisor imports, every worker pays for.
    from shardnet.exporter import run_exporter

    return run_exporter(seat, version=__version__, engine=ENGINE)


def _say_serving(app: str, bank: ListenerBank, shards: int, metrics: socket.socket | None) -> None:
    on = ", ".join(map(str, bank.addresses))
    noun = "shard" if shards == 1 else "shards"
    line = f"shardnet {__version__} serving {app} on {on}, {shards} {noun}, engine {ENGINE}"
    if metrics is not None:
        line += f", metrics on {Address(metrics.family, *metrics.getsockname()[:2])}"
    with contextlib.suppress(OSError):  # Whoever read the line is gone: serve all the same.
        click.echo(line)


# What goes wrong.


@contextlib.contextmanager
def _one_line_errors(debug: bool) -> Iterator[None]:
    """End the process with one line on stderr and the exit status that the error stands for."""
    try:
        yield
    except ShardnetError as error:
        if debug:
            traceback.print_exception(error)
        _complain(f"shardnet: {_with_holder(error)}")
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


def _with_holder(error: ShardnetError) -> str:
    if isinstance(error, AddressHeld) and error.holder_pid is None:
        return f"{error}{name_holder(error.address.host, error.address.port)}"
    return str(error)
