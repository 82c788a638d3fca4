"""The command `shardnet bench`, and what its flags mean.

Lives here: flags and exit status. Must not live here: the load (see `shardnet.bench`).
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Final

import click

from shardnet.errors import SystemFault

SIZE_DEFAULT: Final = 64

EPILOG: Final = """\b
Examples:
  shardnet bench 127.0.0.1:9000
  shardnet bench '[::1]:9000' --connections 1000 --size 1024 --processes 2
  shardnet bench unix:/run/app.sock --text $'PING\\n'
  shardnet bench :9000 --rate 20000 --json > at-20000.json

\b
Without --rate, each connection sends its next message when the last one has come back (a closed
loop): how much the server can do. With it, messages are due at fixed times, and their latency
counts from when they were due (an open loop): what users meet at that load.

\b
Ctrl-C ends the run early and reports what was measured; a second one ends it at once.
Exit status: 0 all came back, 1 errors or nothing came back, 2 usage, 130 Ctrl-C, 143 TERM."""


@click.command(epilog=EPILOG, short_help="Put load on a server that echoes, and measure it.")
@click.argument("address", metavar="ADDRESS")
@click.option("--connections", type=int, default=50, metavar="N", help="Connections, of all processes. [50]")
@click.option("--size", type=int, metavar="BYTES", help=f"Size of a message of random bytes. [{SIZE_DEFAULT}]")
@click.option("--payload", type=click.File("rb"), metavar="FILE", help="Send what is in FILE instead; -: stdin.")
@click.option("--text", metavar="TEXT", help="Send TEXT instead.")
@click.option("--check/--no-check", default=True, help="Compare each byte that comes back, or only count them.")
@click.option("--duration", type=float, default=10.0, metavar="S", help="Seconds to measure. [10]")
@click.option("--warmup", type=float, default=1.0, metavar="S", help="Seconds of load before that. [1]")
@click.option("--timeout", type=float, default=10.0, metavar="S", help="Seconds to wait for a reply. [10]")
@click.option("--rate", type=float, metavar="R", help="Messages/s of all connections: an open loop. [a closed one]")
@click.option("--processes", type=int, default=1, metavar="N", help="Processes that make the load. [1]")
@click.option("--json", "in_json", is_flag=True, help="Report as a JSON object.")
@click.pass_context
def bench(
    ctx: click.Context, /, address: str, size: int | None, payload: BinaryIO | None, text: str | None,
    in_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Put load on the server at ADDRESS (HOST:PORT, [IPV6]:PORT or unix:PATH), which has to send back what it gets,
    and report messages/s, latencies and errors.
    """
    from shardnet import bench as load  # Not before it is needed: `shardnet run` would carry it into its workers.

    if sum(each is not None for each in (size, payload, text)) > 1:
        raise click.UsageError("--size, --payload and --text say what to send: give one of them", ctx)
    connections = values["connections"]
    if payload is not None:
        messages = [load.checked_message(payload.read(load.SIZE_MAX_BYTES + 1), "--payload")]
    elif text is not None:
        messages = [load.checked_message(os.fsencode(text), "--text")]
    else:
        messages = load.random_messages(SIZE_DEFAULT if size is None else size, connections)
    report = load.bench(
        load.Options(
            load.parse_target(address),
            messages,
            connections=connections,
            processes=values["processes"],
            duration_s=values["duration"],
            warmup_s=values["warmup"],
            timeout_s=values["timeout"],
            rate=values["rate"],
            checked=values["check"],
        )
    )
    if report.killed:
        ctx.exit(report.exit_status)
    trouble = report.cannot_connect()
    if in_json:
        click.echo(load.as_json(report))
    elif trouble is None:
        click.echo(load.as_text(report))
    if trouble is not None:
        raise SystemFault(trouble)
    ctx.exit(report.exit_status)
