"""A snapshot of the board as Prometheus and OpenMetrics want to read it.

Lives here: families of prometheus-client made of ours, and the few metrics that are worked out of the board's
directory. Must not live here: HTTP, what the metrics are, clocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from shardnet.board import Family, Kind, Snapshot
from shardnet.metrics import SHARD_HEARTBEAT, SHARD_START_TIME

__all__ = ["Build", "expose"]

NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class Build:
    """What is running."""

    version: str
    python: str
    engine: str


def expose(snapshot: Snapshot, build: Build, monotonic_zero_ns: int, accept: str) -> tuple[bytes, str]:
    """The body and content type of the answer to a scrape.

    Args:
        snapshot: The board.
        build: What is running.
        monotonic_zero_ns: The Unix time at which CLOCK_MONOTONIC was 0; heartbeats are counted from there.
        accept: The client's Accept header; "" if it sent none.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # A version that is no version: "version=zz".
        encode, content_type = choose_encoder("")
    return encode(_Collector(snapshot, build, monotonic_zero_ns)), content_type


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot, build: Build, monotonic_zero_ns: int) -> None:
        self._snapshot = snapshot
        self._build = build
        self._monotonic_zero_ns = monotonic_zero_ns

    def collect(self) -> Iterator[MetricFamily]:
        yield InfoMetricFamily(
            "shardnet_build",
            "What is running: version, interpreter, and the watcher's engine.",
            {"version": self._build.version, "python": self._build.python, "engine": self._build.engine},
        )
        for family in (*self._snapshot.families.values(), *self._shard_times()):
            yield _metric_family(family)

    def _shard_times(self) -> Iterator[Family]:
        starts, beats = Family(SHARD_START_TIME, {}), Family(SHARD_HEARTBEAT, {})
        for worker in self._snapshot.workers:  # The youngest of a shard comes last, and overwrites.
            labels = (("shard", str(worker.shard)),)
            starts.values[labels] = worker.started_ns / NS_PER_S
            if worker.heartbeat_ns:
                beat_s = (self._monotonic_zero_ns + worker.heartbeat_ns) / NS_PER_S
                beats.values[labels] = max(beat_s, beats.values.get(labels, 0.0))
        yield from (starts, beats)


def _metric_family(family: Family) -> MetricFamily:
    metric = family.metric
    match metric.kind:
        case Kind.COUNTER:
            # OpenMetrics calls the family by the name without _total, and the sample by the whole name.
            made = MetricFamily(metric.name.removesuffix("_total"), metric.help, "counter")
        case Kind.GAUGE:
            made = MetricFamily(metric.name, metric.help, "gauge")
        case _:
            assert_never(metric.kind)
    for labels, value in family.values.items():
        made.add_sample(metric.name, dict(labels), value)
    return made
