"""What a run has shown: as a value, as text for people, and as JSON.

Lives here: numbers and their texts. Must not live here: processes, terminals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shardnet.bench.histogram import Distribution
from shardnet.bench.options import Options
from shardnet.bench.sheet import Cell, Kind, Sheet

PERCENTS: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0)
NS_PER_US: Final = 1000
NS_PER_S: Final = 1_000_000_000
BUSY: Final = 0.9  # Of the time: a load process that always has something to do may be slower than what it measures.
STARVED: Final = 0.05  # Of the time: more is worth telling.
LATE_PART: Final = 0.01  # Of all messages: a schedule that is broken more often is not the one that was asked for.
KIND_WIDTH: Final = 14


@dataclass(frozen=True, slots=True)
class Report:
    """One run."""

    options: Options
    engine: str
    opened: int  # Connections that were up.
    latencies: Distribution  # In nanoseconds.
    elapsed_s: float  # What was measured.
    errors: Mapping[Kind, int]
    details: Mapping[Kind, str] = field(default_factory=dict)  # What the first error of a kind said.
    cpu_shares: Sequence[float] = ()  # Of each load process, 1.0 for a whole CPU.
    starved_shares: Sequence[float] = ()  # How much of the time each had something to do, and no CPU.
    unasked: int = 0
    late: int = 0
    late_worst_ns: int = 0
    lost: Sequence[str] = ()  # Load processes that did not end well.
    stopped_by: int | None = None
    killed: bool = False  # The load was ended the hard way, and what it had measured is not known.

    @property
    def rate(self) -> float:
        """Messages echoed each second."""
        return self.latencies.count / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def failed(self) -> bool:
        return bool(self.errors or self.lost or not self.latencies.count)

    @property
    def exit_status(self) -> int:
        """0: every message came back; 1: not so; 128 and the signal that ended the run."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return int(self.failed)

    def cannot_connect(self) -> str | None:
        """The one line that says all, when not a single connection came up."""
        if self.opened or self.lost or self.stopped_by is not None or not self.errors:
            return None
        kind = max(self.errors, key=lambda each: self.errors[each])
        cure = "is the server running there?" if kind is Kind.REFUSED else "is the address right?"
        return f"cannot connect to {self.options.target.text}: {self.details.get(kind, kind)}: {cure}"


def collect(
    options: Options, sheets: Sequence[Sheet], engine: str, details: Mapping[Kind, str], lost: Sequence[str],
    stopped_by: int | None, *, killed: bool,
) -> Report:  # fmt: skip
    """The report of a run that has ended."""

    def each(cell: Cell) -> list[int]:
        return [sheet.cells[cell] for sheet in sheets]

    def shares(cell: Cell) -> list[float]:
        return [part / wall for part, wall in zip(each(cell), each(Cell.WALL_NS), strict=True) if wall]

    errors: dict[Kind, int] = {}
    for sheet in sheets:
        for kind, count in sheet.errors().items():
            errors[kind] = errors.get(kind, 0) + count
    return Report(
        options=options,
        engine=engine,
        opened=sum(each(Cell.OPENED)),
        latencies=Distribution([sheet.counts() for sheet in sheets]),
        elapsed_s=max(each(Cell.ELAPSED_NS)) / NS_PER_S,
        errors=errors,
        details=details,
        cpu_shares=shares(Cell.CPU_NS),
        starved_shares=shares(Cell.KEPT_WAITING_NS),
        unasked=sum(each(Cell.UNASKED)),
        late=sum(each(Cell.LATE)),
        late_worst_ns=max(each(Cell.LATE_WORST_NS)),
        lost=lost,
        stopped_by=stopped_by,
        killed=killed,
    )


def as_json(report: Report) -> str:
    """One object, its keys ending in their units."""
    options, latencies = report.options, report.latencies
    document: dict[str, Any] = {
        "target": options.target.text,
        "connections": options.connections,
        "connections_opened": report.opened,
        "processes": options.processes,
        "size_bytes": options.size_bytes,
        "loop": "closed" if options.rate is None else "open",
        "rate_wanted": options.rate,
        "checked": options.checked,
        "warmup_s": options.warmup_s,
        "duration_s": options.duration_s,
        "elapsed_s": round(report.elapsed_s, 6),
        "messages": latencies.count,
        "messages_per_s": round(report.rate, 1),
        "bytes_per_s_each_way": round(report.rate * options.size_bytes, 1),
        "latency_us": {
            "min": latencies.least() / NS_PER_US,
            "mean": round(latencies.mean() / NS_PER_US, 3),
            **{_percent_key(percent): latencies.at(percent) / NS_PER_US for percent in PERCENTS[:-1]},
            "max": latencies.at(100.0) / NS_PER_US,
        },
        "errors": dict(report.errors),
        "error_details": dict(report.details),
        "messages_not_sent": report.unasked,
        "messages_sent_late": report.late,
        "sent_late_worst_us": report.late_worst_ns / NS_PER_US,
        "load_cpu_shares": [round(share, 3) for share in report.cpu_shares],
        "load_starved_shares": [round(share, 3) for share in report.starved_shares],
        "load_processes_lost": list(report.lost),
        "engine": report.engine,
        "stopped_by_signal": report.stopped_by,
    }
    return json.dumps(document, indent=2)


def as_text(report: Report) -> str:
    """For people, a few lines."""
    options, latencies = report.options, report.latencies
    loop = "closed loop" if options.rate is None else f"open loop of {options.rate:,.6g} messages/s"
    lines = [
        f"{options.target.text}: {report.opened:,} connections, {loop}, {options.size_bytes:,} bytes a message",
        f"messages  {latencies.count:,} in {report.elapsed_s:.2f} s: {report.rate:,.0f}/s, "
        f"{report.rate * options.size_bytes / 1e6:,.1f} MB/s each way",
    ]
    if latencies.count:
        lines.append(f"latency   from {duration(latencies.least())}, mean {duration(latencies.mean())}")
        lines += [f"  {percent:>6g} %  {duration(latencies.at(percent)):>8}" for percent in PERCENTS]
    if report.errors or report.lost:
        lines.append("errors")
        lines += [
            f"  {kind.replace('_', ' '):<{KIND_WIDTH}}{count:>6,}  {report.details.get(kind, '')}".rstrip()
            for kind, count in report.errors.items()
        ]
        lines += [f"  {'load process':<{KIND_WIDTH}}{ending}" for ending in report.lost]
    else:
        lines.append("errors    none")
    return "\n".join([*lines, *_remarks(report)])


def _remarks(report: Report) -> list[str]:
    """About the load itself: how far it is to be believed."""
    lines = []
    busy = [sum(both) for both in zip(report.cpu_shares, report.starved_shares, strict=True)]
    if report.unasked:
        lines.append(f"not sent  {report.unasked:,} messages were due on connections that had failed")
    if report.cpu_shares:
        starved = max(report.starved_shares, default=0.0)
        waiting = f", kept waiting for one {starved:.0%} of the time" if starved > STARVED else ""
        lines.append(f"load      {_percents(report.cpu_shares)} of a CPU{waiting}, engine {report.engine}")
    if report.late > LATE_PART * max(1, report.latencies.count):
        lines.append(
            f"warning   {report.late:,} messages were sent over 1 ms late, at worst {duration(report.late_worst_ns)}: "
            "this machine is too busy, or --rate too much for so few --processes"
        )
    elif report.options.rate is None and max(busy, default=0.0) > BUSY:
        lines.append(
            "warning   the load may have been the limit, not the server: give it more --processes, or ask for less "
            "with --rate"
        )
    return lines


def duration(ns: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size * 0.9995:
            return f"{_three(ns / size)} {unit}"
    return f"{_three(ns / 1e3)} µs"


def _percents(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _percent_key(percent: float) -> str:
    return "p" + f"{percent:g}".replace(".", "_")
