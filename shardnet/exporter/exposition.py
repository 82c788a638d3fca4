"""The formats of a scrape: Prometheus' text format 0.0.4, and OpenMetrics 1.0.0.

Written out by hand: a server of 64 shards has ten thousand series, and a library that makes an object of each takes
several times as long as Prometheus should have to wait. (https://prometheus.io/docs/instrumenting/exposition_formats/,
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md)

Lives here: which format, and how it is written. Must not live here: what there is to be told.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final, assert_never

from shardnet.board import Family, Kind, Metric, Number

__all__ = ["expose"]

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text"
OPENMETRICS_TYPE: Final = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
HISTOGRAMS_CACHED: Final = 4096  # Five of each shard, and the app's.
ZERO: Final = ("0", "0.0", "0.00", "0.000")
OPENMETRICS_VERSIONS: Final = ("", "1.0.0", "0.0.1")  # That differ in nothing we write. "": any.


def expose(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The body and content type of the answer to a scrape. `accept` is the client's Accept header, "" without one."""
    openmetrics = _wants_openmetrics(accept)
    lines: list[str] = []
    for family in families:
        lines += _head(family.metric, openmetrics)
        lines += _samples(family)
    lines.append("# EOF\n" if openmetrics else "")
    return "\n".join(lines).encode(), OPENMETRICS_TYPE if openmetrics else TEXT


def _wants_openmetrics(accept: str) -> bool:
    for offer in accept.split(","):
        kind, *parameters = (part.strip() for part in offer.lower().split(";"))
        values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if kind == OPENMETRICS and values.get("version", "") in OPENMETRICS_VERSIONS and values.get("q") not in ZERO:
            return True
    return False


def _samples(family: Family) -> Iterable[str]:
    name, kind = family.metric.name, family.metric.kind
    match kind:
        case Kind.COUNTER | Kind.GAUGE:
            return [
                f"{name}{labels.braced} {value if type(value) is int else _number(value)}"
                for labels, value in family.values.items()
            ]
        case Kind.HISTOGRAM:
            return _histogram(family)
        case _:
            assert_never(kind)


def _head(metric: Metric, openmetrics: bool) -> tuple[str, str]:
    # OpenMetrics calls a counter's family by the name without _total, and the sample by the whole name.
    name = metric.name.removesuffix("_total") if openmetrics and metric.kind is Kind.COUNTER else metric.name
    text = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    if openmetrics:
        text = text.replace('"', '\\"')
    return f"# HELP {name} {text}", f"# TYPE {name} {metric.kind.value}"


def _histogram(family: Family) -> Iterator[str]:
    name, buckets = family.metric.name, family.metric.buckets
    for labels, distribution in family.distributions.items():
        yield from map(str.__add__, _before_buckets(name, labels, buckets), map(str, accumulate(distribution.counts)))
        yield f"{name}_count{labels.braced} {distribution.count}"
        yield f"{name}_sum{labels.braced} {_number(distribution.total)}"


@functools.lru_cache(maxsize=HISTOGRAMS_CACHED)
def _before_buckets(name: str, labels: str, buckets: tuple[float, ...]) -> tuple[str, ...]:
    """What stands before the numbers of a histogram's buckets."""
    bounds = [*map(_number, buckets), "+Inf"]
    return tuple(f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} ' for bound in bounds)


def _number(value: Number) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
