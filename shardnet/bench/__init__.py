"""The load generator behind `shardnet bench`: connections that send messages and expect them back.

On shardnet's own engine, and without asyncio: when the engine is compiled, it gets faster, too.

Lives here: making a load, measuring it, and saying what came of it. Must not live here: the command line.
"""

from __future__ import annotations

import sys

from shardnet.bench.crew import Crew
from shardnet.bench.options import SIZE_MAX_BYTES, Options, checked_message, parse_target, random_messages
from shardnet.bench.progress import Progress
from shardnet.bench.report import Report, as_json, as_text, collect
from shardnet.filelimit import raise_file_limit
from shardnet.watcher import ENGINE

__all__ = [
    "SIZE_MAX_BYTES",
    "Options",
    "Report",
    "as_json",
    "as_text",
    "bench",
    "checked_message",
    "parse_target",
    "random_messages",
]


def bench(options: Options) -> Report:
    """Make the load in processes of its own, and wait until it is over or a signal has ended it.

    For the main thread of a process without others: it forks, and handles SIGINT and SIGTERM meanwhile. Shows how it
    goes where stderr is a terminal. Raises `SystemFault` when so many connections cannot be had.
    """
    options.check_files(raise_file_limit())
    progress = Progress(sys.stderr, options) if sys.stderr.isatty() else None
    with Crew(options) as crew:
        sheets = [member.sheet for member in crew.members]

        def look() -> None:
            if progress:
                progress.look(sheets, crew.begun)

        try:
            crew.run(look)
        finally:
            if progress:
                progress.clear()
    return collect(options, sheets, ENGINE, crew.details, crew.lost(), crew.stopped_by, killed=crew.killed)
