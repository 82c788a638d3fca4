"""What has been declared, and where it is counted: in memory of its own, until the process has a row of the board.

Lives here: names, the room for series, moving to the row. Must not live here: what is added to which cell.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from shardnet.board import Metric, Row
from shardnet.errors import UsageError

__all__ = ["REGISTRY", "Place", "Registry"]

RESERVED_PREFIX: Final = "shardnet_"
RESERVED_LABEL: Final = "shard"


class Place:
    """Where one series is counted: cells from `first` on. Whoever counts is told of a new place by `moved`."""

    __slots__ = ("counts", "first", "label_values", "metric", "moved", "values")

    def __init__(self, metric: Metric, label_values: tuple[str, ...], moved: Callable[[Place], object]) -> None:
        cells = memoryview(array("Q", [0] * len(metric.cell_types)))
        self.metric = metric
        self.label_values = label_values
        self.moved = moved
        self.counts = cells
        self.values = cells.cast("B").cast("d")
        self.first = 0

    def move(self, row: Row) -> None:
        """Count in the row from now on, beginning with what is counted already.

        Raises:
            SystemFault: the row has no room left.
        """
        first = row.declare(self.metric, [self.label_values])
        for offset in range(len(self.metric.cell_types)):
            row.counts[first + offset] = self.counts[self.first + offset]
        self.counts, self.values, self.first = row.counts, row.values, first
        self.moved(self)


class Registry:
    """Every metric of the app in this process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._places: list[Place] = []
        self._row: Row | None = None

    def add(self, metric: Metric) -> None:
        """Take a metric on.

        Raises:
            UsageError: its name or a label is not to be had.
        """
        name = metric.name
        if name.startswith(RESERVED_PREFIX):
            raise UsageError(f"metric {name}: names that begin with {RESERVED_PREFIX} are the server's own")
        if RESERVED_LABEL in metric.labels:
            raise UsageError(f"metric {name}: the label {RESERVED_LABEL} is there already, each worker's number")
        if name in self._metrics:
            raise UsageError(f"metric {name} is declared already: declare it once, and import it where it is used")
        self._metrics[name] = metric

    def place(self, metric: Metric, label_values: tuple[str, ...], moved: Callable[[Place], object]) -> Place:
        """Room for one series of the metric.

        Raises:
            SystemFault: the row has no room left.
        """
        place = Place(metric, label_values, moved)
        if self._row is not None:
            place.move(self._row)
        self._places.append(place)
        return place

    def bind(self, row: Row) -> None:
        """From now on this process counts in `row`, which is its own.

        Raises:
            SystemFault: what was declared does not fit the row.
        """
        for place in self._places:
            place.move(row)
        self._row = row


REGISTRY: Final = Registry()
