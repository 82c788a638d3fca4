"""What the board says at one moment: its rows, copied, then added up.

Lives here: occupants, images of rows, and the sums over them. Must not live here: shared memory (the copies were
taken before), clocks, how metrics look on the wire.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from shardnet.board.schema import Metric, Number, decode_cell, parse_schema

__all__ = ["Family", "Labels", "Occupant", "Role", "RowImage", "Snapshot", "summarise"]

Labels = tuple[tuple[str, str], ...]  # (name, value) pairs, sorted by name.

SCHEMAS_CACHED: Final = 1024  # Two for each shard are in use; a scrape that parses anew costs 0.1 ms each.


class Role(enum.IntEnum):
    """What a row is for."""

    FREE = 0  # Zero, because memory that nobody has touched reads so.
    SUPERVISOR = 1
    WORKER = 2
    RETIRED = 3  # What the ended workers of one shard have counted.


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
    """Every value of one metric, by labels."""

    metric: Metric
    values: dict[Labels, Number]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The board at one moment: families by metric name, and who was there."""

    families: Mapping[str, Family]
    workers: tuple[Occupant, ...]  # In the order of their shards, and of their incarnations within one.
    supervisor: Occupant | None

    def value(self, metric: Metric, **labels: str) -> Number:
        """The value under exactly these labels; 0 when nobody has declared it."""
        family = self.families.get(metric.name)
        return family.values.get(tuple(sorted(labels.items())), 0) if family else 0


class _Series(NamedTuple):
    metric: Metric
    labels: Labels
    cell: int


def summarise(images: Iterable[RowImage]) -> Snapshot:
    """Adds the images up by metric and labels.

    Two generations may serve one shard for a while, and a retired row stands beside the living: counters and gauges
    alike are sums over rows (gauges of the dead are gone with their rows).
    """
    # Retired rows come last, so that a help text is that of the code now running.
    ordered = sorted(images, key=lambda i: (i.occupant.role, i.occupant.shard, i.occupant.incarnation))
    families: dict[str, Family] = {}
    for image in ordered:
        shard = None if image.occupant.role is Role.SUPERVISOR else str(image.occupant.shard)
        for metric, labels, cell in _series(image.schema, len(image.cells), shard):
            family = families.setdefault(metric.name, Family(metric, {}))
            value = decode_cell(image.cells[cell], metric.cell)
            family.values[labels] = family.values.get(labels, 0) + value
    occupants = [image.occupant for image in ordered]
    return Snapshot(
        families=families,
        workers=tuple(o for o in occupants if o.role is Role.WORKER),
        supervisor=next((o for o in occupants if o.role is Role.SUPERVISOR), None),
    )


@functools.lru_cache(maxsize=SCHEMAS_CACHED)
def _series(schema: bytes, cells: int, shard: str | None) -> tuple[_Series, ...]:
    series = []
    for declaration in parse_schema(schema, cells):
        metric = declaration.metric
        for values, cell in declaration.cells():
            labels = dict(zip(metric.labels, values, strict=True))
            if shard is not None:
                labels.setdefault("shard", shard)
            series.append(_Series(metric, tuple(sorted(labels.items())), cell))
    return tuple(series)
