"""The board: one piece of shared memory in which every process of a server counts.

`board` is the memory and who has which row, `row` what one process counts in, `schema` what a row says about itself,
`snapshot` what a reader gets.
"""

from shardnet.board.board import LAYOUT_VERSION, Board
from shardnet.board.row import Row
from shardnet.board.schema import CellType, Kind, Metric, Number
from shardnet.board.snapshot import Distribution, Family, Labels, Occupant, Role, Snapshot

__all__ = [
    "LAYOUT_VERSION",
    "Board",
    "CellType",
    "Distribution",
    "Family",
    "Kind",
    "Labels",
    "Metric",
    "Number",
    "Occupant",
    "Role",
    "Row",
    "Snapshot",
]
