"""What the board says at one moment: its rows, copied, then added up.

Lives here: occupants, images of rows, and the sums over them. Must not live here: shared memory (the copies were
taken before), clocks, how metrics look on the wire.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shardnet.board.schema import Kind, Metric, Number, parse_schema, sum_cells

__all__ = ["Distribution", "Family", "Labels", "Occupant", "Role", "RowImage", "Snapshot", "summarise"]

SCHEMAS_CACHED: Final = 1024  # Two for each shard are in use; a scrape that parses anew costs 0.1 ms each.


class Role(enum.IntEnum):
    """What a row is for."""

    FREE = 0  # Zero, because memory that nobody has touched reads so.
    SUPERVISOR = 1
    WORKER = 2
    SHARD = 3  # What the supervisor knows of a shard, and what its ended workers have counted.


class Labels(str):
    """Names and values of labels as expositions write them, sorted by name: `listener="127.0.0.1:9000",shard="0"`.

    A string, because that is what a scrape wants of it thousands of times. `braced` is what stands behind a metric's
    name: nothing when there are no labels. `pairs` has the values as they are.
    """

    __slots__ = ("braced", "pairs")
    braced: str
    pairs: Mapping[str, str]

    @classmethod
    def of(cls, pairs: Mapping[str, str]) -> Labels:
        ordered = dict(sorted(pairs.items()))
        labels = cls(",".join(f'{name}="{_escaped(value)}"' for name, value in ordered.items()))
        labels.braced = f"{{{labels}}}" if labels else ""
        labels.pairs = ordered
        return labels


@dataclass(slots=True)
class Distribution:
    """The value of a histogram: how many fell into each bucket, and into none but +Inf; and the sum of all."""

    counts: list[int]
    total: Number

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Occupant:
    """Whom a row belongs to."""

    row: int
    role: Role
    shard: int
    generation: int
    incarnation: int
    started_ns: int  # Unix time.
    pid: int  # 0 until it is known.
    heartbeat_ns: int  # CLOCK_MONOTONIC, the same in every process of the machine; 0 before the first beat.


@dataclass(frozen=True, slots=True)
class RowImage:
    """A row, copied."""

    occupant: Occupant
    schema: bytes
    cells: list[int]  # Raw: eight bytes each, read as u64.


@dataclass(frozen=True, slots=True)
class Family:
    """Every value of one metric, by labels: of a histogram `distributions`, of any other kind `values`."""

    metric: Metric
    values: dict[Labels, Number] = field(default_factory=dict)
    distributions: dict[Labels, Distribution] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The board at one moment: families by metric name, and who was there."""

    families: Mapping[str, Family]
    workers: tuple[Occupant, ...]  # In the order of their shards, and of their incarnations within one.
    supervisor: Occupant | None

    def value(self, metric: Metric, **labels: str) -> Number:
        """The value under exactly these labels; 0 when nobody has declared it."""
        family = self.families.get(metric.name)
        return family.values.get(Labels.of(labels), 0) if family else 0

    def distribution(self, metric: Metric, **labels: str) -> Distribution:
        """The histogram's value under exactly these labels; empty when nobody has declared it."""
        family = self.families.get(metric.name)
        empty = Distribution([0] * (len(metric.buckets) + 1), 0)
        return family.distributions.get(Labels.of(labels), empty) if family else empty


class _Declared(NamedTuple):
    """The series of one declaration, side by side from a first cell on."""

    metric: Metric
    names: tuple[Labels, ...]
    first: int


def summarise(images: Iterable[RowImage]) -> Snapshot:
    """Adds the images up by metric and labels.

    Two generations may serve one shard for a while, and the shard's own row stands beside the living: counters,
    histograms and gauges alike are sums over rows (gauges of the dead are gone with their rows). Where code before this
    one meant something else by a metric's name, another kind or other buckets, that is left out.
    """
    # The shards' own rows come last, so that a help text is that of the code now running.
    ordered = sorted(images, key=lambda i: (i.occupant.role, i.occupant.shard, i.occupant.incarnation))
    families: dict[str, Family] = {}
    raw: dict[tuple[str, Labels], list[int]] = {}  # Cells that are added up in the end: see `sum_cells`.
    for image in ordered:
        shard = None if image.occupant.role is Role.SUPERVISOR else str(image.occupant.shard)
        cells = image.cells
        for metric, names, first in _declared(image.schema, len(cells), shard):
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = Family(metric)
            elif family.metric is not metric and not _agree(family.metric, metric):
                continue
            if metric.kind is Kind.HISTOGRAM:
                width = len(metric.buckets) + 1
                for cell, labels in zip(range(first, len(cells), width + 1), names, strict=False):
                    counts = cells[cell : cell + width]
                    distribution = family.distributions.get(labels)
                    if distribution is not None:
                        counts = [ours + theirs for ours, theirs in zip(distribution.counts, counts, strict=True)]
                    family.distributions[labels] = Distribution(counts, 0)
                    raw.setdefault((metric.name, labels), []).append(cells[cell + width])
            elif metric.cell == "u64":  # By far the most.
                _add(family.values, names, cells[first : first + len(names)])
            else:
                for cell, labels in enumerate(names, start=first):
                    family.values[labels] = 0
                    raw.setdefault((metric.name, labels), []).append(cells[cell])
    for (name, labels), parts in raw.items():
        family = families[name]
        total = sum_cells(parts, family.metric.cell)
        if family.metric.kind is Kind.HISTOGRAM:
            family.distributions[labels].total = total
        else:
            family.values[labels] = total
    occupants = [image.occupant for image in ordered]
    return Snapshot(
        families=families,
        workers=tuple(o for o in occupants if o.role is Role.WORKER),
        supervisor=next((o for o in occupants if o.role is Role.SUPERVISOR), None),
    )


def _agree(one: Metric, other: Metric) -> bool:
    return (one.kind, one.buckets) == (other.kind, other.buckets)


def _add(values: dict[Labels, Number], names: tuple[Labels, ...], cells: list[int]) -> None:
    if values.keys().isdisjoint(names):  # As with all rows but those that share a shard.
        values.update(zip(names, cells, strict=True))
    else:
        for labels, cell in zip(names, cells, strict=True):
            values[labels] = values.get(labels, 0) + cell


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@functools.lru_cache(maxsize=SCHEMAS_CACHED)
def _declared(schema: bytes, cells: int, shard: str | None) -> tuple[_Declared, ...]:
    found = []
    for declaration in parse_schema(schema, cells):
        metric = declaration.metric
        names = []
        for values in declaration.label_values:
            labels = dict(zip(metric.labels, values, strict=True))
            if shard is not None:
                labels.setdefault("shard", shard)
            names.append(Labels.of(labels))
        found.append(_Declared(metric, tuple(names), declaration.first_cell))
    return tuple(found)
