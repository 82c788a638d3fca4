"""What a cell of the board means: metrics, and the schema by which a row says which cells it holds.

A schema is a run of JSON lines, one for each declaration, only ever appended to. It travels in the row beside the
cells, so that a reader of other code, older or newer, knows what it reads, and a metric that users declare is as
good as one of ours. A line that a reader does not understand (a kind that came later) is skipped; the others stand.

Lives here: metrics, declarations, the line format. Must not live here: shared memory, processes, how metrics look
on the wire.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from shardnet.errors import UsageError

__all__ = [
    "CellType",
    "Declaration",
    "Kind",
    "Metric",
    "Number",
    "add_cells",
    "decode_cell",
    "encode_cell",
    "encode_declaration",
    "parse_schema",
    "sum_cells",
]

CellType = Literal["u64", "f64", "ns"]
Number = int | float

U64: Final = struct.Struct("Q")
F64: Final = struct.Struct("d")
U64_MODULUS: Final = 1 << 64
NS_PER_S: Final = 1e9
SCHEMAS_CACHED: Final = 256  # Workers of one generation say the same, but for what their app declares late.

METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


class Kind(enum.Enum):
    """How readers combine a metric's cells: counters and histograms outlive the worker that counted, gauges do not."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A named quantity.

    The name carries the unit, in Prometheus style (`_bytes`, `_seconds`), and a counter's ends in `_total`. `cell`
    is the native type of each value: `u64`, `f64`, or `ns`, which counts nanoseconds and is read as seconds. The label
    `shard` is not declared by workers: the reader adds it.

    A histogram has a cell for each of its `buckets`, the upper bounds in ascending order, one for what is above the
    last, and one for the sum, which alone is of type `cell`. Its buckets are counted apart, not one in the other.

    Raises:
        UsageError: a name that Prometheus would refuse, a counter without `_total`, or buckets that are none.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    cell: CellType = "u64"
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, Kind, tuple[str, ...], CellType, tuple[float, ...]]:
        """What tells cells of this metric from another's: all but the help text, which may be reworded."""
        return self.name, self.kind, self.labels, self.cell, self.buckets

    @property
    def cell_types(self) -> tuple[CellType, ...]:
        """Of the cells that hold one value of the metric."""
        if self.kind is Kind.HISTOGRAM:
            counts: list[CellType] = ["u64" for _ in range(len(self.buckets) + 1)]
            return (*counts, self.cell)
        return (self.cell,)

    def __post_init__(self) -> None:
        if not METRIC_NAME.fullmatch(self.name):
            raise UsageError(f"metric name {self.name!r}: use letters, digits and _, no digit first")
        if (self.kind is Kind.COUNTER) != self.name.endswith("_total"):
            raise UsageError(f"metric name {self.name!r}: counters, and only they, end in _total")
        if len(set(self.labels)) != len(self.labels):
            raise UsageError(f"metric {self.name}: a label name occurs twice in {self.labels}")
        for label in self.labels:
            if not LABEL_NAME.fullmatch(label):
                raise UsageError(
                    f"metric {self.name}, label {label!r}: use letters, digits and _, no digit or __ first"
                )
        if self.cell not in ("u64", "f64", "ns"):
            raise UsageError(f"metric {self.name}: a cell is 'u64', 'f64' or 'ns', not {self.cell!r}")
        self._check_buckets()

    def _check_buckets(self) -> None:
        if (self.kind is Kind.HISTOGRAM) != bool(self.buckets):
            raise UsageError(f"metric {self.name}: histograms, and only they, have buckets")
        if not all(map(math.isfinite, self.buckets)):
            raise UsageError(f"metric {self.name}: the bounds of buckets are finite; the last, +Inf, is always there")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise UsageError(f"metric {self.name}: the bounds of buckets ascend, each once; these are {self.buckets}")
        if self.kind is Kind.HISTOGRAM and "le" in self.labels:
            raise UsageError(f"metric {self.name}: the label le is the histogram's own")


@dataclass(frozen=True, slots=True)
class Declaration:
    """The cells of one value, as many as the metric's kind needs, for each tuple of label values, side by side from
    `first_cell` on.

    Raises:
        UsageError: a tuple of label values does not match the metric's labels, or occurs twice.
    """

    metric: Metric
    label_values: tuple[tuple[str, ...], ...]
    first_cell: int

    def __post_init__(self) -> None:
        for values in self.label_values:
            if len(values) != len(self.metric.labels):
                raise UsageError(f"metric {self.metric.name}: {values} are no values for {self.metric.labels}")
        if len(set(self.label_values)) != len(self.label_values):
            raise UsageError(f"metric {self.metric.name}: the same label values occur twice")

    @property
    def cell_count(self) -> int:
        """How many cells these are in all."""
        return len(self.label_values) * len(self.metric.cell_types)

    def cells(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Each tuple of label values with the number of its first cell."""
        cells = range(self.first_cell, self.first_cell + self.cell_count, len(self.metric.cell_types))
        return zip(self.label_values, cells, strict=True)

    def homes(self) -> Iterator[tuple[tuple[object, ...], int]]:
        """What tells each series from all others, with the number of its first cell."""
        return (((self.metric.series, values), cell) for values, cell in self.cells())


def decode_cell(raw: int, cell: CellType) -> Number:
    """What eight bytes, read as u64, mean."""
    if cell == "u64":
        return raw
    if cell == "ns":
        return raw / NS_PER_S
    value: float = F64.unpack(U64.pack(raw))[0]
    return value


def encode_cell(value: Number, cell: CellType) -> int:
    """The eight bytes, as u64, that mean `value`. A count past the end of u64 starts over at 0."""
    if cell == "u64":
        return int(value) % U64_MODULUS
    if cell == "ns":
        return round(value * NS_PER_S) % U64_MODULUS
    raw: int = U64.unpack(F64.pack(value))[0]
    return raw


def add_cells(raw: int, other: int, cell: CellType) -> int:
    """The eight bytes, as u64, that mean the sum of what these two mean; of doubles never less than that.

    Two counters become one when a worker is folded. Were their sum rounded down, a reader would see it go back by a
    hair, and Prometheus take that for a restart from zero.
    """
    if cell != "f64":
        return (raw + other) % U64_MODULUS
    parts = decode_cell(raw, cell), decode_cell(other, cell)
    total = sum(parts)
    if math.isfinite(total) and math.fsum((*parts, -total)) > 0.0:
        total = math.nextafter(total, math.inf)
    return encode_cell(total, cell)


def sum_cells(cells: list[int], cell: CellType) -> Number:
    """What these cells mean together, rounded once: so it does not depend on how they are divided up."""
    if len(cells) == 1:  # Of nearly all.
        return decode_cell(cells[0], cell)
    if cell == "f64":
        parts = [decode_cell(raw, cell) for raw in cells]
        return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)
    return decode_cell(sum(cells) % U64_MODULUS, cell)


def encode_declaration(declaration: Declaration) -> bytes:
    """The declaration as one line of schema, its newline included."""
    metric = declaration.metric
    line = {
        "name": metric.name,
        "kind": metric.kind.value,
        "help": metric.help,
        "labels": metric.labels,
        "cell": metric.cell,
        "buckets": metric.buckets,
        "first": declaration.first_cell,
        "values": declaration.label_values,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


@functools.lru_cache(maxsize=SCHEMAS_CACHED)
def parse_schema(schema: bytes, cells: int) -> tuple[Declaration, ...]:
    """The declarations of a row with so many cells, without the lines that this version does not understand."""
    declarations = []
    for line in schema.splitlines():
        # A line may be another version's, or user code may have scribbled over the row: what cannot be named cannot
        # be exported, and nobody but the row's owner could mend it.
        with contextlib.suppress(ValueError, TypeError, LookupError, UsageError):
            declarations.append(_parse_line(line, cells))
    return tuple(declarations)


def _parse_line(line: bytes, cells: int) -> Declaration:
    fields = json.loads(line)
    metric = Metric(
        name=str(fields["name"]),
        kind=Kind(fields["kind"]),
        help=str(fields["help"]),
        labels=tuple(map(str, fields["labels"])),
        cell=fields["cell"],
        buckets=tuple(map(float, fields["buckets"])),
    )
    label_values = tuple(tuple(map(str, values)) for values in fields["values"])
    declaration = Declaration(metric, label_values, int(fields["first"]))
    if not 0 <= declaration.first_cell <= cells - declaration.cell_count:
        raise ValueError(f"cells {declaration.first_cell} and on are none of this row's")
    return declaration
