"""The command line of the suite: `python -m bench`, or `make bench`."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import click

from bench.building import BUILD
from bench.environment import describe
from bench.errors import BenchError
from bench.plots import draw
from bench.records import Results, Scenario, load_results
from bench.report import render, verdicts
from bench.servers import SERVERS, choose, command_of
from bench.suite import Settings, Suite

__all__ = ["main"]

RESULTS: Final = BUILD / "results"
QUICK: Final = Settings(
    rounds=2, seconds=0.2, crowd=1024, storms=(256, 512, 1024), idles=(250, 500, 1000), connections=200
)
INTERRUPTED: Final = 130
EXAMPLES: Final = """
\b
Examples:
  python -m bench                                    all of it, in about ten minutes
  python -m bench --quick                            whether everything works, in a minute
  python -m bench --only c-epoll,shardnet-callback --scenario ping --rounds 20
  SHARDNET_ENGINE=python python -m bench --only 'shardnet-*'
  python -m bench --from .tools/bench/results/results.json --output docs

\b
Exit status: 0 measured, 1 something failed (or, with --check, a target was missed), 2 usage, 130 interrupted; then
what was measured until then is reported and kept.
"""


def interrupt_once(signum: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, and ignore what comes while everything is being ended."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    raise KeyboardInterrupt


def list_servers() -> None:
    width = max(len(server.name) for server in SERVERS)
    for server in SERVERS:
        try:
            command_of(server)
            why = ""
        except BenchError as exc:
            why = f"  (cannot be had: {exc})"
        click.echo(f"{server.name:<{width}}  {server.title}{why}")


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--only", metavar="NAME,...", default="", help="These servers alone; shell patterns ('shardnet-*') do.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice([str(s) for s in Scenario]),
    help="This alone; may be repeated. ping: many connections, small messages; bulk: one, 64 KiB; storm: all connect"
    " at once; idle: memory.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), help="How often each server has its turn.  [40]")
@click.option("--seconds", type=click.FloatRange(0.05, 600), help="How long a run of ping or bulk takes.  [0.25]")
@click.option("--connections", type=click.IntRange(1, 20000), help="Of ping.  [200]")
@click.option("--size", "size_bytes", type=click.IntRange(1, 1 << 20), metavar="BYTES", help="Of ping.  [64]")
@click.option("--quick", is_flag=True, help="Few rounds, short runs, small crowds: no figures to quote.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    metavar="DIR",
    help="Where results.json, report.md and the plots go.  [.tools/bench/results]",
)
@click.option("--no-plots", is_flag=True, help="JSON and the report alone.")
@click.option("--check", is_flag=True, help="Exit with 1 unless every target that was measured is met.")
@click.option(
    "--from",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Measure nothing; report and draw these results.json.",
)
@click.option("--list", "listing", is_flag=True, help="Which servers there are, and which cannot be had here.")
def main(
    only: str,
    scenarios: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    connections: int | None,
    size_bytes: int | None,
    quick: bool,
    output: Path,
    no_plots: bool,
    check: bool,
    source: Path | None,
    listing: bool,
) -> None:
    """Measure shardnet's handler kinds beside bare C, uvloop and asyncio, in turns, on one machine.

    The reference servers and the load generator are built from C first, which takes gcc and a second. Servers run on
    one CPU and the load on another. Figures hold for ratios within one run; leave the machine alone meanwhile.
    """
    if listing:
        list_servers()
        return
    settings = QUICK if quick else Settings()
    settings = replace(
        settings,
        rounds=rounds or settings.rounds,
        seconds=seconds or settings.seconds,
        connections=connections or settings.connections,
        size_bytes=size_bytes or settings.size_bytes,
        scenarios=tuple(s for s in Scenario if s in scenarios) or settings.scenarios,
    )
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt_once)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if source is None:
            status, results = measure(settings, only, output)
        else:
            status, results = 0, load_results(source)
        show(results, output, no_plots)
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
    except OSError as exc:
        sys.exit(f"bench: cannot write to {output}: {exc.strerror}")
    if check and any(verdict.met is False for verdict in verdicts(results)):
        status = status or 1
    sys.exit(status)


def measure(settings: Settings, only: str, output: Path) -> tuple[int, Results]:
    """Run the suite: the exit status, and what was measured."""
    servers = choose([name.strip() for name in only.split(",") if name.strip()])
    results = Results(environment=describe())
    results.settings = {
        "rounds": str(settings.rounds),
        "ping": f"{settings.connections} connections, {settings.size_bytes} bytes, {settings.seconds:g} s a run",
    }
    suite = Suite(settings, servers, results, output / "results.json")
    try:
        suite.run()
    except KeyboardInterrupt:
        return INTERRUPTED, results
    return (1 if results.failures else 0), results


def show(results: Results, output: Path, no_plots: bool) -> None:
    """Print the report, and write it and the plots."""
    report = render(results)
    click.echo(report)
    (output / "report.md").write_text(report)
    if not no_plots:
        try:
            draw(results, output)
        except BenchError as exc:
            click.echo(f"bench: {exc}", err=True)
    click.echo(f"bench: raw results, report and plots are in {output}", err=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
