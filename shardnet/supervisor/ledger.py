"""The supervisor's part of the board: who has which row, what became of whom, and its own heartbeat.

Lives here: claiming a row before a worker is forked, folding it when the worker has ended, the supervisor's own
metrics. Must not live here: deciding anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shardnet.board import Board, Role, Row
from shardnet.metrics import SHARD_STATES, SupervisorCells, declare_supervisor_metrics
from shardnet.supervisor.events import Reason
from shardnet.supervisor.slot import Slot

__all__ = ["Ledger"]

NANOSECONDS: Final = 1_000_000_000


class Ledger:
    """Writes the supervisor's row of a board, and the directory. Times are given in nanoseconds, as the board has
    them: `started_ns` of the Unix clock, `now_ns` of CLOCK_MONOTONIC."""

    def __init__(self, board: Board, own: Row, cells: SupervisorCells, rows: dict[int, int]) -> None:
        """Use `open()` or `take_over()`."""
        self._board = board
        self._own = own
        self.cells = cells
        self.rows = rows  # By child.

    @classmethod
    def open(cls, board: Board, shards: int, *, pid: int, generation: int, started_ns: int) -> Ledger:
        """Take the supervisor's row of a board that has none yet."""
        own = board.row(board.claim(Role.SUPERVISOR, 0, generation, 0, started_ns))
        own.publish_pid(pid)
        ledger = cls(board, own, declare_supervisor_metrics(own, shards), {})
        own.counts[ledger.cells.shards_configured] = shards
        own.values[ledger.cells.start_time] = started_ns / NANOSECONDS
        return ledger

    @classmethod
    def take_over(cls, board: Board, cells: SupervisorCells, rows: dict[int, int]) -> Ledger:
        """Go on with the row that this process had when it ran another program."""
        index = next(occupant.row for occupant in board.occupants() if occupant.role is Role.SUPERVISOR)
        return cls(board, board.row(index), cells, rows)

    def claim(self, child: int, shard: int, generation: int, *, started_ns: int) -> int:
        """A row for a worker about to be forked.

        Raises:
            SystemFault: There is none left.
        """
        row = self._board.claim(Role.WORKER, shard, generation, child, started_ns)
        self.rows[child] = row
        return row

    def fold(self, child: int) -> int:
        """Keep what an ended worker has counted, and free its row; also for one whose fork failed. Returns how many
        counters found no room among the retired."""
        row = self.rows.pop(child, None)
        return 0 if row is None else self._board.fold(row)

    def count_restart(self, shard: int, reason: Reason) -> None:
        self._own.counts[self.cells.restarts(shard, reason.value)] += 1

    def promise(self, until_ns: int) -> None:
        """State that the supervisor will be silent until then at most, and is well."""
        self._own.beat(until_ns)

    def count_reload(self, outcome: str) -> None:
        """`outcome` is one of RELOAD_OUTCOMES."""
        self._own.counts[self.cells.reload(outcome)] += 1

    def show(self, slots: Iterable[Slot], generation: int, now_ns: int) -> None:
        """State each shard's state, the generation that serves, and that the supervisor's loop turns."""
        self._own.counts[self.cells.generation] = generation
        for slot in slots:
            if slot.shard is not None:
                for state in SHARD_STATES:
                    self._own.counts[self.cells.state(slot.shard, state)] = state == slot.state
        self._own.beat(now_ns)
