"""What a dashboard consists of, as values.

Lives here: panels, rows, dashboards, and the words of queries. Must not live here: Grafana's JSON (see `rendering`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

__all__ = ["ALL", "ONE", "RATE", "Dashboard", "Kind", "Panel", "Query", "Row", "quantile", "rate"]

# Which series: of the servers that the variables choose, and of the shards.
ALL: Final = 'job=~"$job",instance=~"$instance"'
ONE: Final = f'{ALL},shard=~"$shard"'
RATE: Final = "[$__rate_interval]"


class Kind(enum.Enum):
    """How a panel draws."""

    STAT = "stat"
    LINES = "timeseries"
    STACK = "stacked timeseries"
    BARS = "bargauge"
    SHARDS_HEAT = "heatmap of shards"  # A row for each shard.
    BUCKETS_HEAT = "heatmap of buckets"  # A row for each bucket of a histogram.
    STATES = "state-timeline"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its series are called."""

    expr: str
    legend: str = ""
    mirrored: bool = False  # Drawn downwards.


@dataclass(frozen=True, slots=True)
class Panel:
    """One question, and what to do about the answer.

    `warn` and `alarm` are thresholds of the value; a lower `alarm` than `warn` means that less is worse.
    """

    title: str
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    shows: str
    cure: str
    width: int = 8
    height: int = 8
    warn: float | None = None
    alarm: float | None = None
    top: float | None = None  # The end of the axis.
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a headline. `each_shard`: folded, and repeated for each chosen shard."""

    title: str
    panels: tuple[Panel, ...]
    each_shard: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...] = field(default_factory=tuple)


def rate(metric: str, matchers: str = ONE, by: str = "", more: str = "") -> str:
    """The rate of a counter, added up by labels, or over all."""
    return f"sum{f' by ({by})' if by else ''}(rate({metric}{{{matchers}{more}}}{RATE}))"


def quantile(q: float, histogram: str, by: str = "", matchers: str = ONE) -> str:
    """A quantile of a histogram, by labels, or over all."""
    return (
        f"histogram_quantile({q}, sum by ({', '.join(filter(None, ('le', by)))})"
        f"(rate({histogram}_bucket{{{matchers}}}{RATE})))"
    )
