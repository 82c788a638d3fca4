"""The targets, as data, and whether results meet them.

Lives here: the table, and judging one line of it. Must not live here: how a verdict is shown.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from bench.records import Results, Scenario
from bench.servers import C_EPOLL
from bench.stats import Line, Spread, ratio, regress, spread

__all__ = ["TARGETS", "Bound", "Target", "Verdict", "judge", "storm_line"]


class Bound(enum.Enum):
    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of `server` is bounded by `limit`: as a ratio to that of `against`, or, without one, by itself.

    `value` names a figure of the records; "r_squared" is that of storm times against connections.
    """

    server: str
    scenario: Scenario
    value: str
    bound: Bound
    limit: float
    against: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured of a target; `found` and `met` are None, and `missing` says why, when nothing was."""

    target: Target
    found: Spread | None
    met: bool | None
    missing: str = ""


AT_MOST: Final = Bound.AT_MOST
AT_LEAST: Final = Bound.AT_LEAST
LINEAR: Final = 0.99  # Of R²: over this range, a time that grows as n ** 1.4 falls below.

TARGETS: Final = (
    Target("shardnet-callback", Scenario.PING, "cpu_us", AT_MOST, 1.08, C_EPOLL),
    Target("shardnet-conn", Scenario.PING, "cpu_us", AT_MOST, 1.00, "uvloop-protocol"),
    Target("shardnet-for", Scenario.PING, "cpu_us", AT_MOST, 1.00, "uvloop-protocol"),
    Target("shardnet-protocol", Scenario.PING, "cpu_us", AT_MOST, 0.92, "uvloop-protocol"),
    Target("shardnet-streams", Scenario.PING, "cpu_us", AT_MOST, 0.70, "uvloop-streams"),
    Target("shardnet-callback", Scenario.BULK, "mb_per_s", AT_LEAST, 0.97, C_EPOLL),
    Target("shardnet-callback", Scenario.BULK, "mb_per_s", AT_LEAST, 1.00, "uvloop-protocol"),
    Target("shardnet-callback", Scenario.IDLE, "bytes_each", AT_MOST, 300),
    Target("shardnet-conn", Scenario.IDLE, "bytes_each", AT_MOST, 1400),
    Target("shardnet-callback", Scenario.STORM, "seconds", AT_MOST, 1.00, C_EPOLL),
    Target("shardnet-conn", Scenario.STORM, "seconds", AT_MOST, 1.00, C_EPOLL),
    Target("shardnet-callback", Scenario.STORM, "r_squared", AT_LEAST, LINEAR),
    Target("shardnet-conn", Scenario.STORM, "r_squared", AT_LEAST, LINEAR),
)


def storm_line(results: Results, server: str) -> Line | None:
    """Seconds against connections, of the medians of a server's storms."""
    medians = {}
    for size in results.sizes(server, Scenario.STORM):
        if middle := spread(results.by_round(server, Scenario.STORM, "seconds", size).values()):
            medians[size] = middle.middle
    return regress(medians)


def judge(results: Results, target: Target) -> Verdict:
    """Whether results meet a target."""
    for name in filter(None, (target.server, target.against)):
        if name not in results.servers:
            return Verdict(target, None, None, f"{name}: {results.skipped.get(name, 'left out')}")
    found = _find(results, target)
    if found is None:
        return Verdict(target, None, None, "not measured")
    if target.bound is Bound.AT_MOST:
        return Verdict(target, found, found.middle <= target.limit)
    return Verdict(target, found, found.middle >= target.limit)


def _find(results: Results, target: Target) -> Spread | None:
    if target.value == "r_squared":
        line = storm_line(results, target.server)
        return None if line is None else Spread(line.r_squared, line.r_squared, line.r_squared)
    size = None
    if target.scenario is Scenario.STORM:
        # The crowd, and not the greatest of the storms: it is what everybody was measured with.
        size = results.crowd
    mine = results.by_round(target.server, target.scenario, target.value, size)
    if not target.against:
        return spread(mine.values())
    return ratio(mine, results.by_round(target.against, target.scenario, target.value, size))
