"""The `shardnet` command as a process: from its first descriptor to its exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Final, NoReturn

import click

from shardnet.cli.commands import Debugging, cli
from shardnet.errors import AddressInUse, AppError, ConfigError, ExitCode, NotRunning, ShardnetError, UsageError
from shardnet.holder import with_holder
from shardnet.serve import resume_if_handed_over
from shardnet.supervisor.supervisor import NobodyServed

STDERR: Final = 2


def main() -> NoReturn:
    """The `shardnet` command."""
    _open_standard_streams()
    debugging = Debugging()
    try:
        status = resume_if_handed_over()
        if status is None:
            status = cli.main(prog_name="shardnet", standalone_mode=False, obj=debugging)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "shardnet"
        _complain(f"{command}: {error.format_message().rstrip('.')}; see {command} --help")
        status = ExitCode.USAGE
    except click.Abort:  # Ctrl-C before the server had set up its own answer to it.
        status = ExitCode.FAILED
    except ShardnetError as error:
        _explain(error, debugging)
        _complain(f"shardnet: {with_holder(error)}")
        status = _exit_code(error)
    except OSError as error:  # Of descriptors or memory too few even to start, or nobody reads what we print.
        _explain(error, debugging)
        name = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        _complain(f"shardnet: {error.strerror or error}{name}")
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


def _explain(error: BaseException, debugging: Debugging) -> None:
    if debugging.on:
        traceback.print_exception(error)


def _complain(line: str) -> None:
    """Say what went wrong. If that cannot be written, the exit status still tells."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _exit_code(error: ShardnetError) -> ExitCode:
    match error:
        case AppError():
            return ExitCode.APP
        case ConfigError():
            return ExitCode.CONFIG
        case UsageError():
            return ExitCode.USAGE
        case AddressInUse():
            return ExitCode.ADDRESS
        case NotRunning():
            return ExitCode.NOT_RUNNING
        case NobodyServed():
            return ExitCode.UNSERVED
        case _:
            return ExitCode.FAILED
