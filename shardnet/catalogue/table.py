"""The catalogue as a page of documentation.

Lives here: the tables. Must not live here: what they say of a metric (see `families`).
"""

from __future__ import annotations

from typing import Final

from shardnet.board import Metric
from shardnet.catalogue.families import (
    LABEL_VALUES,
    OF_ENGINE,
    OF_EXPORTER,
    OF_EXPORTER_BY_SHARD,
    OF_LISTENER,
    OF_SHARD,
    OF_SUPERVISOR,
    OF_WORKER,
    SERVER_CPU,
    SERVER_SWITCHES,
    WITH_SHARD,
)

__all__ = ["metrics_tables"]

# Title, what its metrics have in common, and the metrics.
CHAPTERS: Final[tuple[tuple[str, str, tuple[Metric, ...]], ...]] = (
    (
        "Completions, loop, swap buffer",
        "Of each shard. A worker's engine counts them as it goes.",
        OF_ENGINE,
    ),
    ("Connections and bytes", "Of each shard and listener; `listener` is an address of `--bind`.", OF_LISTENER),
    ("Workers", "Of each shard.", OF_WORKER),
    (
        "Shards",
        "Of each shard, with a worker or without. The supervisor states them, queues and steering once a second. A "
        "listener that all shards share (a unix socket, `fd://`) is shown under shard 0; the kernel tells no queue of "
        "a unix socket.",
        OF_SHARD,
    ),
    (
        "Processes",
        "Of each shard, looked at when somebody scrapes; memory and open files at most every ten seconds. `shard` is "
        "also `supervisor` and `exporter` for those that serve no shard (with the two counters of processes above).",
        OF_EXPORTER_BY_SHARD,
    ),
    ("The server", "", tuple(metric for metric in OF_SUPERVISOR if metric not in (SERVER_CPU, SERVER_SWITCHES))),
    ("The host and the exporter", "", OF_EXPORTER),
)


def metrics_tables() -> str:
    """A table of the metrics for each chapter, in Markdown."""
    return "\n".join(_chapter(*chapter) for chapter in CHAPTERS)


def _chapter(title: str, common: str, metrics: tuple[Metric, ...]) -> str:
    lines = [f"## {title}", "", *([common, ""] if common else []), "| metric | kind | labels | |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.name}` | {metric.kind.value} | {_labels(metric)} | {metric.help}{_buckets(metric)} |"
        for metric in metrics
    ]
    return "\n".join([*lines, ""])


def _labels(metric: Metric) -> str:
    found = ["`shard`"] if metric in WITH_SHARD else []
    for label in metric.labels:
        values = LABEL_VALUES.get((metric.name, label))
        found.append(f"`{label}`: {', '.join(values)}" if values else f"`{label}`")
    return "; ".join(found)


def _buckets(metric: Metric) -> str:
    return f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
