"""A row of the board: where one process declares what it counts, and counts.

A row is a schema area, then cells of eight bytes, and an entry of words in the board's directory. Every cell and
every word has one writer and is stored whole, so no reader sees half a value; the order of stores sees to the rest.

Lives here: the layout of a row, declaring, counting, copying. Must not live here: which rows there are, and who
gets one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shardnet.board.schema import Declaration, Metric, encode_declaration, parse_schema
from shardnet.errors import SystemFault

__all__ = ["CELLS_MAX", "CELL_BYTES", "ENTRY_WORDS", "ROW_BYTES", "SCHEMA_MAX_BYTES", "Row"]

CELL_BYTES: Final = 8
# A worker counts in some 150 cells, with 8 KiB of names; the others are there for what its app declares.
SCHEMA_MAX_BYTES: Final = 128 * 1024
CELLS_MAX: Final = 8 * 1024
ROW_BYTES: Final = SCHEMA_MAX_BYTES + CELLS_MAX * CELL_BYTES

ENTRY_WORDS: Final = 16  # Two cache lines, which processors fetch together: no two writers share them.
# Written by the supervisor, when the row changes hands.
AT_ROLE, AT_SHARD, AT_GENERATION, AT_INCARNATION, AT_STARTED = range(5)
# Written by the row's owner.
AT_PID, AT_HEARTBEAT, AT_SCHEMA_BYTES, AT_CELLS_USED = range(5, 9)


class Row:
    """A row of the board: a window, without a state of its own.

    Only the row's owner declares and stores. `counts` and `values` are the same cells, as u64 and as double:
    `row.counts[i] += 1` counts, `row.values[i] = x` sets a gauge of cell type f64. They show whoever has the row
    now.
    """

    __slots__ = ("_copied", "_copied_of", "_entry", "_schema", "counts", "heartbeat", "index", "values")

    def __init__(self, index: int, entry: memoryview, schema: memoryview, cells: memoryview) -> None:
        self.index = index
        self.counts = cells.cast("Q")
        self.values = cells.cast("d")
        # One cell: the loop of a worker stores time.monotonic_ns() into heartbeat[0] on every turn.
        self.heartbeat = entry[AT_HEARTBEAT : AT_HEARTBEAT + 1]
        self._entry = entry
        self._schema = schema
        self._copied = b""  # What `copy` saw of the schema, and whose that was.
        self._copied_of = (0, 0, 0)

    def declare(self, metric: Metric, label_values: Sequence[tuple[str, ...]] = ((),)) -> int:
        """Gives the metric its cells, zero at first, for each tuple of label values; returns the first one's number.

        The cells of one call lie side by side, and those of successive calls too, from cell 0 on. One metric may
        be declared several times, with different label values.

        Raises:
            UsageError: the label values do not match the metric's labels.
            SystemFault: the row has no room left.
        """
        first_cell = self._entry[AT_CELLS_USED]
        declaration = Declaration(metric, tuple(label_values), first_cell)
        after = first_cell + declaration.cell_count
        line = encode_declaration(declaration)
        start = self._entry[AT_SCHEMA_BYTES]
        if after > CELLS_MAX or start + len(line) > SCHEMA_MAX_BYTES:
            raise SystemFault(
                f"no room on the board for metric {metric.name} with {len(label_values)} label combinations: "
                f"a process has {CELLS_MAX} cells and {SCHEMA_MAX_BYTES // 1024} KiB of names; declare fewer"
            )
        # The length is stored last: until then a reader sees nothing of the line, also if we die halfway.
        self._schema[start : start + len(line)] = line
        self._entry[AT_CELLS_USED] = after
        self._entry[AT_SCHEMA_BYTES] = start + len(line)
        return first_cell

    def beat(self, now_ns: int) -> None:
        """Says that the owner's loop turned at this time of CLOCK_MONOTONIC."""
        self.heartbeat[0] = now_ns

    @property
    def pid(self) -> int:
        """Which process has the row; 0 until it has said so, and when nobody has."""
        return self._entry[AT_PID]

    def publish_pid(self, pid: int) -> None:
        """Says which process has the row: called by that process."""
        self._entry[AT_PID] = pid

    def copy(self) -> tuple[bytes, list[int]]:
        """The schema, and the cells in use, read as u64."""
        # In this order: declare() stores the number of cells before the length of the schema that names them.
        entry = self._entry
        of = (entry[AT_INCARNATION], entry[AT_STARTED], entry[AT_SCHEMA_BYTES])
        if of != self._copied_of:  # Of one owner a schema only grows: the same bytes, hashed once, serve many readers.
            self._copied, self._copied_of = bytes(self._schema[: of[2]]), of
        schema = self._copied
        # tolist() loads each cell whole, as a copy of the bytes need not.
        return schema, self.counts[: self._entry[AT_CELLS_USED]].tolist()

    def declarations(self) -> tuple[Declaration, ...]:
        """What the row holds, as its own schema says."""
        return parse_schema(bytes(self._schema[: self._entry[AT_SCHEMA_BYTES]]), self._entry[AT_CELLS_USED])

    def release(self) -> None:
        """Gives the windows up; the row object is of no use afterwards."""
        for window in (self.counts, self.values, self.heartbeat, self._entry, self._schema):
            window.release()
