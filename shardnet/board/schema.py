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
import json
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
    "decode_cell",
    "encode_cell",
    "encode_declaration",
    "parse_schema",
]

CellType = Literal["u64", "f64"]
Number = int | float

U64: Final = struct.Struct("Q")
F64: Final = struct.Struct("d")
U64_MODULUS: Final = 1 << 64

METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


class Kind(enum.Enum):
    """How readers combine a metric's cells: counters outlive the worker that counted, gauges do not."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A named quantity.

    The name carries the unit, in Prometheus style (`_bytes`, `_seconds`), and a counter's ends in `_total`. `cell`
    is the native type of each value. The label `shard` is not declared by workers: the reader adds it.

    Raises:
        UsageError: a name that Prometheus would refuse, or a counter without `_total`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    cell: CellType = "u64"

    @property
    def series(self) -> tuple[str, tuple[str, ...], CellType]:
        """What tells cells of this metric from another's: all but the help text, which may be reworded."""
        return self.name, self.labels, self.cell

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
        if self.cell not in ("u64", "f64"):
            raise UsageError(f"metric {self.name}: a cell is 'u64' or 'f64', not {self.cell!r}")


@dataclass(frozen=True, slots=True)
class Declaration:
    """One cell for each tuple of label values, side by side from `first_cell` on.

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

    def cells(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Each tuple of label values with the number of its cell."""
        return zip(self.label_values, range(self.first_cell, self.first_cell + len(self.label_values)), strict=True)


def decode_cell(raw: int, cell: CellType) -> Number:
    """What eight bytes, read as u64, mean."""
    if cell == "u64":
        return raw
    value: float = F64.unpack(U64.pack(raw))[0]
    return value


def encode_cell(value: Number, cell: CellType) -> int:
    """The eight bytes, as u64, that mean `value`. A count past the end of u64 starts over at 0."""
    if cell == "u64":
        return int(value) % U64_MODULUS
    raw: int = U64.unpack(F64.pack(value))[0]
    return raw


def encode_declaration(declaration: Declaration) -> bytes:
    """The declaration as one line of schema, its newline included."""
    metric = declaration.metric
    line = {
        "name": metric.name,
        "kind": metric.kind.value,
        "help": metric.help,
        "labels": metric.labels,
        "cell": metric.cell,
        "first": declaration.first_cell,
        "values": declaration.label_values,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


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
    )
    label_values = tuple(tuple(map(str, values)) for values in fields["values"])
    first_cell = int(fields["first"])
    if not 0 <= first_cell <= cells - len(label_values):
        raise ValueError(f"cells {first_cell} and on are none of this row's")
    return Declaration(metric, label_values, first_cell)
