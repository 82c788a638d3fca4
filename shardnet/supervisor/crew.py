"""Who the children are: what each is to run, and what it takes with it.

Lives here: seats, and the descriptors that belong to them. Must not live here: forking (`system`), and when
(`lifecycle`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from shardnet.board import Board
from shardnet.control import ControlEndpoint
from shardnet.errors import InternalError
from shardnet.listen import ListenerBank
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.actions import Fork
from shardnet.supervisor.system import System

__all__ = ["Crew"]


@dataclass(frozen=True, slots=True)
class Crew:
    """What all children of a supervisor are made of."""

    bank: ListenerBank
    board: Board
    run_worker: Callable[[WorkerSeat], int]
    exporter: tuple[Callable[[ExporterSeat], int], socket.socket] | None  # What it runs, and its listener.
    worker_fds: Collection[int] = ()  # What every worker keeps besides its seat.

    def fork_worker(self, system: System, fork: Fork, shard: int, row: int, *, shard_count: int) -> int:
        """Fork one with this row of the board, to be one of so many; its pid."""

        def enter() -> Collection[int]:
            self.bank.close_in_child(shard)
            if self.exporter is not None:
                self.exporter[1].close()
            listeners = (listener.fileno() for listener in self.bank.listeners(shard))
            return {self.board.fd, *listeners, *self.worker_fds}

        def main(control: ControlEndpoint, stacks_fd: int) -> int:
            self.board.row(row).publish_pid(os.getpid())
            seat = WorkerSeat(
                shard=shard,
                shard_count=shard_count,
                generation=fork.generation,
                incarnation=fork.child,
                listeners=self.bank.listeners(shard),
                control=control,
                board=self.board,
                row=row,
                stacks_fd=stacks_fd,
                held=fork.held,
            )
            return self.run_worker(seat)

        return system.fork(fork.child, enter, main)

    def fork_exporter(self, system: System, fork: Fork) -> int:
        """Fork the exporter; its pid."""
        if self.exporter is None:
            raise InternalError("an exporter was asked for, and there is none")
        run_exporter, listener = self.exporter

        def enter() -> Collection[int]:
            self.bank.close_in_child(None)
            return {self.board.fd, listener.fileno()}

        def main(control: ControlEndpoint, stacks_fd: int) -> int:
            return run_exporter(ExporterSeat(listener, control, self.board, stacks_fd))

        return system.fork(fork.child, enter, main)
