"""The report: Markdown that also reads well on a terminal.

Lives here: which figures are shown, and how. Must not live here: how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.records import Results, Scenario
from bench.servers import C_EPOLL, SERVERS, Server
from bench.stats import Spread, ratio, spread
from bench.targets import TARGETS, Target, Verdict, judge, storm_line

__all__ = ["render", "table", "verdicts"]

MISSING = "-"
UNITS = {
    "cpu_us": "CPU per message",
    "mb_per_s": "MB/s at 64 KiB",
    "bytes_each": "bytes per idle connection",
    "seconds": "time to connect and echo",
    "r_squared": "R² of time against connections",
}


def verdicts(results: Results) -> list[Verdict]:
    return [judge(results, target) for target in TARGETS]


def render(results: Results) -> str:
    """All of it."""
    parts = [
        "# Benchmark of echo servers",
        "\n".join(f"- {name}: {value}" for name, value in (results.environment | results.settings).items()),
    ]
    if not results.complete:
        parts.append("**Interrupted**: what follows is what had been measured by then.")
    parts += ["## Servers", _servers(results), _legend(results)]
    parts += ["## Targets", _targets(results)]
    if any(storm_line(results, name) for name in results.servers):
        parts += ["## Time against connections", _storms(results)]
    remarks = [
        *(f"- skipped {name}: {why}" for name, why in results.skipped.items()),
        *(f"- {note}" for note in results.notes),
        *(f"- FAILED {failure.server}, {failure.what}: {failure.why}" for failure in results.failures),
    ]
    if remarks:
        parts += ["## Remarks", "\n".join(remarks)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned: the first column to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])


def _known(results: Results) -> list[Server]:
    return [server for server in SERVERS if server.name in results.servers]


def _servers(results: Results) -> str:
    """A row for each server, a column for each figure: medians of the rounds."""

    def column(
        scenario: Scenario, value: str, show: Callable[[float], str], size: int | None = None
    ) -> Callable[[str], str]:
        def cell(name: str) -> str:
            middle = spread(results.by_round(name, scenario, value, size).values())
            return MISSING if middle is None else show(middle.middle)

        return cell

    def times_c(name: str) -> str:
        mine, theirs = (results.by_round(of, Scenario.PING, "cpu_us") for of in (name, C_EPOLL))
        found = ratio(mine, theirs)
        return MISSING if found is None else f"{found.middle:.2f}"

    columns = {
        "CPU µs/msg": column(Scenario.PING, "cpu_us", "{:.2f}".format),
        "x C": times_c,
        "msg/s": column(Scenario.PING, "rate_per_s", "{:,.0f}".format),
        "p50 µs": column(Scenario.PING, "p50_us", "{:,.0f}".format),
        "p99 µs": column(Scenario.PING, "p99_us", "{:,.0f}".format),
        "p99.9 µs": column(Scenario.PING, "p999_us", "{:,.0f}".format),
        "server CPU": column(Scenario.PING, "server_share", "{:.0%}".format),
        "load CPU": column(Scenario.PING, "load_share", "{:.0%}".format),
        "MB/s 64 KiB": column(Scenario.BULK, "mb_per_s", "{:,.0f}".format),
        "B/idle conn": column(Scenario.IDLE, "bytes_each", "{:,.0f}".format),
        f"s for {results.crowd:,}": column(Scenario.STORM, "seconds", "{:.3f}".format, results.crowd),
        "CPU µs/conn": column(Scenario.STORM, "cpu_us", "{:.1f}".format, results.crowd),
    }
    rows = [[server.title, *(cell(server.name) for cell in columns.values())] for server in _known(results)]
    return table(["server", *columns], rows)


def _legend(results: Results) -> str:
    idle = max((size for name in results.servers for size in results.sizes(name, Scenario.IDLE)), default=0)
    return (
        "Medians of the rounds; half of the rounds lie within what is called the middle half. CPU is the server's, all"
        " its threads, from /proc/PID/task/*/schedstat; load CPU is the load generator's work, waiting left out: where"
        " both are near 100 %, neither limits the other."
        f" Idle connections: growth of private dirty memory with {idle:,} of them after one echo each."
        f" The last two columns: {results.crowd:,} connections at once, a 1 KiB message each, from first connect to"
        " last byte, and the server's CPU for each."
    )


def _targets(results: Results) -> str:
    rows = [
        [_named(v.target), f"{v.target.bound.value} {_figure(v.target, v.target.limit)}", *_found(v)]
        for v in verdicts(results)
    ]
    return table(["target", "wanted", "found", "middle half", ""], rows)


def _named(target: Target) -> str:
    against = f" / {target.against}" if target.against else ""
    return f"{UNITS[target.value]}: {target.server}{against}"


def _found(verdict: Verdict) -> list[str]:
    if verdict.found is None:
        return [MISSING, MISSING, verdict.missing]
    found = verdict.found
    spread_of = f"{_figure(verdict.target, found.low)} .. {_figure(verdict.target, found.high)}"
    return [_figure(verdict.target, found.middle), spread_of, "met" if verdict.met else "missed"]


def _figure(target: Target, value: float) -> str:
    return f"{value:,.0f}" if target.value == "bytes_each" else f"{value:.3f}"


def _storms(results: Results) -> str:
    """The regression of seconds against connections, and the medians it was made of."""
    sizes = sorted({size for name in results.servers for size in results.sizes(name, Scenario.STORM)})
    rows = []
    for server in _known(results):
        if (line := storm_line(results, server.name)) is None:
            continue
        times: list[Spread | None] = [
            spread(results.by_round(server.name, Scenario.STORM, "seconds", size).values()) for size in sizes
        ]
        cells = [MISSING if time is None else f"{time.middle:.3f}" for time in times]
        fit = [f"{line.slope * 1e6:.2f}", f"{line.intercept * 1e3:.2f}", f"{line.r_squared:.4f}"]
        rows.append([server.title, *cells, *fit])
    return table(["seconds", *(f"{size:,}" for size in sizes), "slope µs/conn", "intercept ms", "R²"], rows)
