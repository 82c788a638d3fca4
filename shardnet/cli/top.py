"""The command `top`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from shardnet.asking import Server
from shardnet.cli.operate import of_a_server
from shardnet.errors import SystemFault, UsageError

if TYPE_CHECKING:
    from shardnet.top.looking import Looking
    from shardnet.top.model import View

__all__ = ["top"]

ONCE_WIDTH: Final = 100
# What makes sense of all shards together.
ADD_UP: Final = (
    "connections", "completions_per_s", "received_bytes_per_s", "sent_bytes_per_s", "accept_queue",
    "accept_queue_capacity", "memory_bytes", "restarts",
)  # fmt: skip
EACH_ITS_OWN: Final = ("loop_use_ratio", "loop_lag_p99_s", "swap_peak_ratio")
EPILOG: Final = """\b
Keys: up, down (k, j) choose a shard; s, S sort by the next, the previous column, i inverts;
r restarts, d drains, u undrains the chosen shard, after a question; t shows its stacks;
b makes room for bars of completions/s where it is narrow; q, Ctrl-C leave.

\b
conns    open connections            compl/s  completions a second
in/s     bytes received a second     out/s    bytes sent a second
use      part of the time that the loop was at work
lag99    how late a timer would have run, in 99 of 100 cases
swap     the swap buffer: taken by the last batch of reads / most ever taken, of its size
queue    connections that wait to be accepted / as many as may
PSS      memory, shared pages in proportion
rst      restarts that nobody asked for: crash, signal, hang
all      sums; of use, lag99 and swap the highest
silent: its loop has not turned for 6 s; lent: another shard accepts for it

\b
Examples:
  shardnet top
  shardnet top --name chat --interval 0.5
  shardnet top --json | jq '.shards[] | select(.state != "serving")'

\b
Exit status: 0, 1 the terminal or the server's board is of no use, 2 usage, 6 no such server."""


@click.command(short_help="Watch the shards of a running server.", epilog=EPILOG)
@click.option("--once", is_flag=True, help="Print the table once: two looks, an interval apart.")
@click.option("--json", "as_json", is_flag=True, help="As --once, as a JSON object.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=60.0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@of_a_server
def top(server: Server, once: bool, as_json: bool, interval_s: float) -> None:
    """Watch the shards of a running server: connections, completions, bytes, loop use and lag, swap buffer, accept
    queue, memory, restarts.

    It reads the memory that the server's processes count in, which costs the workers nothing.
    """
    if not (once or as_json) and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError("no terminal here: shardnet top --once prints the table, --json an object")
    from shardnet.top.errands import run
    from shardnet.top.looking import Looking

    looking = Looking(server)
    run(server, looking.find())  # Where there is nobody, say so as the other commands do.
    if once or as_json:
        looking.look()
        time.sleep(interval_s)
        view = looking.look()
        if looking.has_doubts(view):
            run(server, looking.find())
        _print(looking, view, as_json=as_json)
        return
    try:
        from shardnet.top.live import watch
    except ImportError as exc:
        raise SystemFault(f"this Python has no curses ({exc}): shardnet top --once prints the table") from exc
    watch(server, looking, interval_s)


def _print(looking: Looking, view: View, *, as_json: bool) -> None:
    from shardnet.top.text import header, lines

    if as_json:
        click.echo(json.dumps(_object(looking.about, view), indent=2))
        return
    titles, rows, total = lines(view, ONCE_WIDTH)
    for line in (*header(view, looking.about, ONCE_WIDTH), "", titles, *(row for _, row in rows), total):
        click.echo(line)


def _object(about: dict[str, Any], view: View) -> dict[str, Any]:
    said = {key: about[key] for key in ("name", "app", "addresses", "version", "engine", "pid")}
    fields = dataclasses.asdict(view)
    shards = [{key: value for key, value in shard.items() if key != "history"} for shard in fields.pop("shards")]
    return {
        **said,
        **fields,
        "shards_serving": view.serving,
        "shards": shards,
        "all": {
            **{name: _over(shards, name, sum) for name in ADD_UP},
            **{f"{name}_max": _over(shards, name, max) for name in EACH_ITS_OWN},
        },
    }


def _over(shards: list[dict[str, Any]], name: str, how: Callable[[list[float]], float]) -> float | None:
    known = [shard[name] for shard in shards if shard[name] is not None]
    return how(known) if known else None
