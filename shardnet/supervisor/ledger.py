"""The supervisor's part of the board: who has which row, what became of whom, and its own heartbeat.

Lives here: claiming a row before a worker is forked, folding it when the worker has ended, the supervisor's own
metrics. Must not live here: deciding anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shardnet.board import Board, Role
from shardnet.metrics import SHARD_STATES, declare_supervisor_metrics
from shardnet.supervisor.events import Reason
from shardnet.supervisor.slot import Slot

__all__ = ["Ledger"]

NANOSECONDS: Final = 1_000_000_000


class Ledger:
    """Writes the supervisor's row of a board, and the directory. Times are given in nanoseconds, as the board has
    them: `started_ns` of the Unix clock, `now_ns` of CLOCK_MONOTONIC."""

    def __init__(self, board: Board, shards: int, *, pid: int, generation: int, started_ns: int) -> None:
        self._board = board
        self._rows: dict[int, int] = {}
        row = board.claim(Role.SUPERVISOR, 0, generation, 0, started_ns)
        self._own = board.row(row)
        self._own.publish_pid(pid)
        self._cells = declare_supervisor_metrics(self._own, shards)
        self._own.counts[self._cells.shards_configured] = shards
        self._own.counts[self._cells.generation] = generation
        self._own.values[self._cells.start_time] = started_ns / NANOSECONDS

    def claim(self, child: int, shard: int, generation: int, *, started_ns: int) -> int:
        """A row for a worker about to be forked.

        Raises:
            SystemFault: There is none left.
        """
        row = self._board.claim(Role.WORKER, shard, generation, child, started_ns)
        self._rows[child] = row
        return row

    def fold(self, child: int) -> int:
        """Keep what an ended worker has counted, and free its row; also for one whose fork failed. Returns how many
        counters found no room among the retired."""
        row = self._rows.pop(child, None)
        return 0 if row is None else self._board.fold(row)

    def count_restart(self, shard: int, reason: Reason) -> None:
        self._own.counts[self._cells.restarts(shard, reason.value)] += 1

    def show(self, slots: Iterable[Slot], now_ns: int) -> None:
        """State each shard's state, and that the supervisor's loop turns."""
        for slot in slots:
            if slot.shard is not None:
                for state in SHARD_STATES:
                    self._own.counts[self._cells.state(slot.shard, state)] = state == slot.state
        self._own.beat(now_ns)
