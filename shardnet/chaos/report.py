"""What a run has shown, for people and for programs.

Lives here: the verdict, and its forms. Must not live here: anything that is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from shardnet.chaos.server import Holdings
from shardnet.chaos.session import Outcome
from shardnet.chaos.tally import NO_FAULT, Counts

__all__ = ["Report", "as_json", "as_text"]

# Heading, and the outcome below it.
COLUMNS: Final = (
    ("refused", Outcome.REFUSED),
    ("reset", Outcome.RESET),
    ("hung", Outcome.HUNG),
    ("stalled", Outcome.STALLED),
    ("cut", Outcome.CUT),
)
MEGA: Final = 1e6
GENERATIONS_MAX: Final = 2


@dataclass(slots=True)
class Report:
    """One run. Its verdict is `troubles`: empty when nothing was lost."""

    app: str
    version: str
    by_fault: dict[str, Counts]
    seconds: float
    clients: int
    pause_worst_s: float
    before: Holdings | None = None
    after: Holdings | None = None
    generations_most: int = 0
    gave_up: str | None = None  # Why no more was injected, when that was not as planned.
    exit_status: int | None = None  # The server's, when it was told to stop.
    stopped_early: bool = False  # Ctrl-C.
    others: list[str] = field(default_factory=list)  # What else went wrong.

    @property
    def total(self) -> Counts:
        return sum(self.by_fault.values(), Counts())

    def troubles(self) -> list[str]:
        """What should not have been."""
        total = self.total
        found = [] if self.gave_up is None else [self.gave_up]
        if total.lost:
            found.append(f"{total.lost:,} of {total.attempted:,} connections were lost before any worker had them")
        if stalled := total.outcomes[Outcome.STALLED]:
            found.append(f"{stalled:,} connections were accepted, and neither answered nor ended")
        if not total.outcomes[Outcome.ANSWERED]:
            found.append("nobody was answered: does this app answer what it was sent? --text says what that is")
        if self.before and self.after and self.after.files > self.before.files:
            found.append(f"open files grew from {self.before.files} to {self.after.files}")
        if self.generations_most > GENERATIONS_MAX:
            found.append(f"{self.generations_most} generations had workers at a time")
        if self.exit_status:
            found.append(f"the server's exit status was {self.exit_status}")
        return found + self.others


def as_text(report: Report) -> str:
    """A table with a line for each fault, and what is to be said of them all."""
    heads = ["fault", "injected", "connections", *(head for head, _ in COLUMNS), "accepted by", "answered by"]
    rows = [_row(name, counts) for name, counts in report.by_fault.items() if counts.injections or name == NO_FAULT]
    total = report.total
    rows.append(_row("all", total))
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.append("")
    lines.append(
        f"{report.clients} clients for {report.seconds:.0f} s, {total.attempted / report.seconds:,.0f} connections/s"
    )
    lines.append(f"the clients themselves stood still for {_ms(report.pause_worst_s)} at worst")
    if report.before and report.after:
        before, after = report.before, report.after
        lines.append(f"open files {before.files} before, {after.files} after, of {after.processes} processes")
        lines.append(f"memory     {before.pss_bytes / MEGA:.1f} MB before, {after.pss_bytes / MEGA:.1f} MB after (PSS)")
    if report.generations_most:
        lines.append(f"workers    of {report.generations_most} generations at most at a time")
    troubles = report.troubles()
    verdict = [f"wrong      {trouble}" for trouble in troubles] or ["no connection was lost that waited in a queue"]
    return "\n".join([*lines, *verdict])


def _row(name: str, counts: Counts) -> list[str]:
    return [
        name,
        str(counts.injections) if name != NO_FAULT else "",
        f"{counts.attempted:,}",
        *(f"{counts.outcomes[outcome]:,}" for _, outcome in COLUMNS),
        _ms(counts.accept_worst_s),
        _ms(counts.answer_worst_s),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def as_json(report: Report) -> str:
    """One object, its keys ending in their units."""

    def counts_of(counts: Counts) -> dict[str, Any]:
        return {
            "injections": counts.injections,
            "connections": counts.attempted,
            **{outcome.name.lower(): count for outcome, count in counts.outcomes.items()},
            "accept_wait_worst_s": round(counts.accept_worst_s, 6),
            "answer_wait_worst_s": round(counts.answer_worst_s, 6),
        }

    def holdings_of(holdings: Holdings | None) -> dict[str, int] | None:
        if holdings is None:
            return None
        return {"open_files": holdings.files, "pss_bytes": holdings.pss_bytes, "processes": holdings.processes}

    document = {
        "app": report.app,
        "version": report.version,
        "clients": report.clients,
        "duration_s": round(report.seconds, 3),
        "faults": {name: counts_of(counts) for name, counts in report.by_fault.items()},
        "total": counts_of(report.total),
        "clients_pause_worst_s": round(report.pause_worst_s, 6),
        "before": holdings_of(report.before),
        "after": holdings_of(report.after),
        "generations_most": report.generations_most,
        "server_exit_status": report.exit_status,
        "stopped_early": report.stopped_early,
        "troubles": report.troubles(),
    }
    return json.dumps(document, indent=2)
