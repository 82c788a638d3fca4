"""The command `shardnet chaos`, and what its flags mean.

Lives here: flags, progress and exit status. Must not live here: the harness (see `shardnet.chaos`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shardnet.errors import ExitCode, ShardnetError, SystemFault

if TYPE_CHECKING:
    from shardnet.chaos import Options, Report
    from shardnet.chaos.tally import Tally

ERASE_LINE: Final = "\r\x1b[K"
TOLD_EVERY_S: Final = 10.0  # Where stderr is no terminal.
INTERRUPTED: Final = 130

EPILOG: Final = """\b
Faults:
  kill          SIGKILL to a worker
  segfault      SIGSEGV to a worker
  stop          SIGSTOP to a worker, SIGCONT --stop-for later
  hang          SIGSTOP to a worker, for ever: the supervisor has to see it
  crash-loop    each worker of one shard is killed as soon as it is there, --loop-for long
  files         a worker may open no more files, --stop-for long
  reload        HUP to the supervisor
  reload-burst  20 HUP, 100 ms apart
  scale         down to 1 shard, and up again
  upgrade       USR2 to the supervisor

\b
Examples:
  shardnet chaos app:handler
  shardnet chaos app:handler --faults kill=100,reload=20 --clients 200 --rate 2000
  shardnet chaos web:app --text $'GET / HTTP/1.0\\r\\n\\r\\n'
  shardnet chaos app:handler --faults full --duration 3600 -- --preload --steering least

\b
Refused, reset and hung were never accepted: each is a connection lost. Stalled was accepted and
not answered. Cut was accepted, and its worker died; no server can help that.
Exit status: 0 nothing lost, 1 something was, 2 usage, 130 Ctrl-C."""


@click.command(epilog=EPILOG, short_help="Hurt a server under load, and count what is lost.")
@click.argument("app", metavar="MODULE:NAME")
@click.argument("run_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS OF run]")
@click.option("--faults", default="short", metavar="MIX", help="short, full, or like kill=5,reload,scale=2. [short]")
@click.option("--duration", type=float, metavar="S", help="Inject the mix again and again for so long.")
@click.option("--workers", type=int, default=4, metavar="N", help="Shards, at least 2. [4]")
@click.option("--clients", type=int, default=32, metavar="N", help="Clients, each a connection at a time. [32]")
@click.option("--rate", type=float, default=500.0, metavar="R", help="Connections/s of all clients. [500]")
@click.option("--text", default="shardnet\n", metavar="TEXT", help="What a client sends; any answer will do.")
@click.option("--timeout", type=float, default=10.0, metavar="S", help="When a client gives up. [10]")
@click.option("--stop-for", type=float, default=2.0, metavar="S", help="How long stop and files last. [2]")
@click.option("--loop-for", type=float, default=30.0, metavar="S", help="How long a crash loop lasts. [30]")
@click.option("--hang-timeout", type=float, default=3.0, metavar="S", help="The server's, for hang. [3]")
@click.option("--seed", type=int, default=1, metavar="N", help="Another order of faults, other victims. [1]")
@click.option("--log", metavar="FILE", help="Where the server logs. [a temporary file, kept if anything is lost]")
@click.option("--json", "in_json", is_flag=True, help="Report as a JSON object.")
@click.pass_context
def chaos(
    ctx: click.Context, /, app: str, run_flags: tuple[str, ...], faults: str, text: str, log: str | None, in_json: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Serve MODULE:NAME on a port of its own, have clients connect all the while, and do to the server what happens to
    servers: then say what became of every connection. Nothing that runs already is touched.
    """
    from shardnet import chaos as harness  # Not before it is needed: `shardnet run` would carry it into its workers.

    options = harness.Options(
        harness.parse_faults(faults),
        workers=values["workers"],
        clients=values["clients"],
        rate=values["rate"],
        request=os.fsencode(text),
        timeout_s=values["timeout"],
        stop_for_s=values["stop_for"],
        loop_for_s=values["loop_for"],
        hang_timeout_s=values["hang_timeout"],
        duration_s=values["duration"],
        seed=values["seed"],
    )
    path = _log_path(log)
    progress = Progress()
    try:
        report = harness.chaos(app, options, run_flags, path, progress)
    except ShardnetError:
        if log is None:
            path.unlink()  # Its last lines are in the error.
        raise
    except KeyboardInterrupt:  # Before there was anything to report, or while it ended.
        ctx.exit(INTERRUPTED)
    finally:
        progress.clear()
    troubles = report.troubles()
    click.echo(harness.as_json(report) if in_json else harness.as_text(report))
    if log is None and not troubles:
        path.unlink()
    elif troubles:
        click.echo(f"the server's log: {path}", err=True)
    ctx.exit(_exit_status(report))


def _exit_status(report: Report) -> int:
    if report.stopped_early:
        return INTERRUPTED
    return ExitCode.FAILED if report.troubles() else ExitCode.OK


def _log_path(log: str | None) -> Path:
    if log is not None:
        try:
            with Path(log).open("wb"):
                return Path(log)
        except OSError as exc:
            raise SystemFault(f"--log {log}: {exc.strerror}") from exc
    fd, name = tempfile.mkstemp(prefix="shardnet-chaos-", suffix=".log")
    os.close(fd)
    return Path(name)


class Progress:
    """How far a run is, on stderr: a line that is drawn over on a terminal, one now and then elsewhere."""

    def __init__(self) -> None:
        self._drawn_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def begin(self, address: str, options: Options, log: Path) -> None:
        click.echo(
            f"serving on {address}, {options.workers} shards; {options.clients} clients, {options.rate:g} "
            f"connections/s; the server logs to {log}",
            err=True,
        )

    def inject(self, done: int, planned: int | None, fault: str, tally: Tally) -> None:
        total = tally.total()
        of = "" if planned is None else f" of {planned}"
        line = f"fault {done + 1}{of}: {fault}; {total.attempted:,} connections, {total.lost:,} lost"
        now_s = time.monotonic()
        if self._is_terminal:
            click.echo(ERASE_LINE + line, err=True, nl=False)
        elif now_s - self._drawn_s >= TOLD_EVERY_S:
            self._drawn_s = now_s
            click.echo(line, err=True)

    def clear(self) -> None:
        if self._is_terminal:
            click.echo(ERASE_LINE, err=True, nl=False)
