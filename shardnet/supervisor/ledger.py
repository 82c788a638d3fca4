"""The supervisor's part of the board: who has which row, what became of whom, and its own heartbeat.

Lives here: claiming a row before a worker is forked, folding it when the worker has ended, the supervisor's own
metrics. Must not live here: deciding anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

from shardnet.board import Board, Role, Row
from shardnet.catalogue.cells import (
    ShardCells,
    SupervisorCells,
    declare_shard_metrics,
    declare_supervisor_metrics,
    lay_out_shard_cells,
    lay_out_supervisor_cells,
)
from shardnet.catalogue.families import (
    CONNECTIONS_ACCEPTED,
    CONNECTIONS_ACTIVE,
    RELOAD_OUTCOMES,
    SHARD_STATES,
    UNASKED_REASONS,
)
from shardnet.supervisor.events import Reason
from shardnet.supervisor.slot import Slot

__all__ = ["Ledger"]

NANOSECONDS: Final = 1_000_000_000


class Ledger:
    """Writes the supervisor's row of a board, those of the shards, and the directory. Times are given in nanoseconds,
    as the board has them: `started_ns` of the Unix clock, `now_ns` of CLOCK_MONOTONIC."""

    def __init__(
        self, board: Board, own: Row, cells: SupervisorCells, shards: ShardCells, rows: dict[int, int]
    ) -> None:
        """Use `open()` or `take_over()`."""
        self._board = board
        self._own = own
        self._cells = cells
        self._of_shard = shards
        self.rows = rows  # By child.
        self._active_cells: dict[int, list[int]] = {}  # Where a child's row says how many connections it has.

    @classmethod
    def open(cls, board: Board, listeners: Sequence[str], *, pid: int, generation: int, started_ns: int) -> Ledger:
        """Take the supervisor's row of a board that has none yet, and those of its shards, which accept on these
        addresses."""
        own = board.row(board.claim(Role.SUPERVISOR, 0, generation, 0, started_ns))
        own.publish_pid(pid)
        cells = declare_supervisor_metrics(own)
        own.values[cells.start_time] = own.values[cells.reload_last_success_time] = started_ns / NANOSECONDS
        own.counts[cells.reload_last_successful] = 1
        for shard in range(board.shards_max):
            declare_shard_metrics(board.shard_row(shard), listeners)
        return cls(board, own, cells, lay_out_shard_cells(len(listeners)), {})

    @classmethod
    def take_over(cls, board: Board, listener_count: int, rows: dict[int, int]) -> Ledger:
        """Go on with the rows that this process had when it ran another program."""
        index = next(occupant.row for occupant in board.occupants() if occupant.role is Role.SUPERVISOR)
        return cls(board, board.row(index), lay_out_supervisor_cells(), lay_out_shard_cells(listener_count), rows)

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
        series found no room in its shard's row."""
        row = self.rows.pop(child, None)
        return 0 if row is None else self._board.fold(row)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[int, ...]]:
        """A descriptor of the board that cannot be written through, for the `with`; none where there is none left."""
        try:
            fds = (os.open(f"/proc/self/fd/{self._board.fd}", os.O_RDONLY | os.O_CLOEXEC),)
        except OSError:
            yield ()
            return
        try:
            yield fds
        finally:
            os.close(fds[0])

    def heartbeat(self, child: int) -> int:
        """The child's heartbeat: another number, whenever its loop has turned."""
        return self._board.row(self.rows[child]).heartbeat[0]

    def connections(self, child: int) -> int:
        """How many connections the child has open, as its own row says it: no copy of the board is made."""
        row = self._board.row(self.rows[child])
        if child not in self._active_cells:
            self._active_cells = {one: cells for one, cells in self._active_cells.items() if one in self.rows}
            self._active_cells[child] = [
                declaration.first_cell + number
                for declaration in row.declarations()
                if declaration.metric.name == CONNECTIONS_ACTIVE.name
                for number in range(len(declaration.label_values))
            ]
        return sum(row.counts[cell] for cell in self._active_cells[child])

    def reloads(self) -> tuple[int, int]:
        """How many have succeeded, and how many have failed."""
        ok, failed = (self._own.counts[self._cells.reload(outcome)] for outcome in RELOAD_OUTCOMES)
        return ok, failed

    def figures(self) -> dict[int, dict[str, int]]:
        """What an operator wants to know of each shard that is in use, or was: connections and restarts."""
        found: dict[int, dict[str, int]] = {}
        families = self._board.snapshot().families
        for name, metric in (("connections", CONNECTIONS_ACTIVE), ("accepted", CONNECTIONS_ACCEPTED)):
            for labels, value in families[metric.name].values.items() if metric.name in families else ():
                figures = found.setdefault(int(labels.pairs["shard"]), {})
                figures[name] = figures.get(name, 0) + int(value)
        for shard, figures in found.items():
            row = self._board.shard_row(shard)
            figures["restarts"] = sum(row.counts[self._of_shard.restarts(reason)] for reason in UNASKED_REASONS)
        return found

    def count_restart(self, shard: object, reason: Reason) -> None:
        """`shard` is the worker's; what is no number, as of the exporter, is not counted."""
        if isinstance(shard, int):
            self._board.shard_row(shard).counts[self._of_shard.restarts(reason.value)] += 1

    def count_loan(self, shard: int) -> None:
        self._board.shard_row(shard).counts[self._of_shard.listener_loans] += 1

    def promise(self, until_ns: int) -> None:
        """State that the supervisor will be silent until then at most, and is well."""
        self._own.beat(until_ns)

    def count_reload(self, outcome: str, at_ns: int, renewed: Sequence[Slot] = ()) -> None:
        """`outcome` is one of RELOAD_OUTCOMES; `at_ns` is Unix time; `renewed` has new workers for it."""
        own, cells = self._own, self._cells
        own.counts[cells.reload(outcome)] += 1
        own.counts[cells.reload_last_successful] = outcome == "ok"
        if outcome == "ok":
            own.values[cells.reload_last_success_time] = at_ns / NANOSECONDS
        for slot in renewed:
            if slot.in_size:
                self.count_restart(slot.shard, Reason.RELOAD)

    def show(self, slots: Sequence[Slot], generation: int, now_ns: int, *, lame_duck: bool) -> None:
        """State how many shards are wanted, each one's state (none for a vacant one) and whether it is lent, the
        generation that serves, and that the supervisor's loop turns."""
        own, cells, of_shard = self._own, self._cells, self._of_shard
        own.counts[cells.generation] = generation
        own.counts[cells.lame_duck] = lame_duck
        own.counts[cells.shards_configured] = sum(slot.in_size for slot in slots)
        for slot in slots:
            if slot.shard is not None:
                counts = self._board.shard_row(slot.shard).counts
                for state in SHARD_STATES:
                    counts[of_shard.state(state)] = state == slot.state
                counts[of_shard.listeners_lent] = any(loan.answered for loan in slot.loans)
        own.beat(now_ns)

    def show_queues(self, shard: int, queues: Sequence[tuple[int, int]]) -> None:
        """State how many connections wait at each of the shard's listeners, and how many may."""
        counts = self._board.shard_row(shard).counts
        for number, (depth, capacity) in enumerate(queues):
            counts[self._of_shard.accept_queue_depth + number] = depth
            counts[self._of_shard.accept_queue_capacity + number] = capacity

    def show_steering(self, shares: Sequence[float]) -> None:
        """State which part of the next connections each shard is to get."""
        for shard, share in enumerate(shares):
            self._board.shard_row(shard).values[self._of_shard.steering_share] = share
