"""What the supervisor hands to a process that it has forked.

A seat is everything the child may use; whatever else the supervisor held open is closed in the child before
the seat is handed over. Lives here: the two seats. Must not live here: how they are filled, or used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from shardnet.board import Board
    from shardnet.control import ControlEndpoint

__all__ = ["ExporterSeat", "WorkerSeat"]


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """One worker's place: which shard it serves, with what, and where it counts."""

    shard: int  # 0-based
    shard_count: int
    generation: int
    incarnation: int  # Unique among all workers that this supervisor ever forked.
    listeners: tuple[socket.socket, ...]  # One per address, non-blocking, in the order of the addresses.
    control: ControlEndpoint
    board: Board
    row: int  # The worker's own row of the board, claimed for it.
    stacks_fd: int  # What its fault handler writes there, the supervisor logs.
    held: bool = False  # It comes up and says so, but accepts nothing until it is told to serve.


@dataclass(frozen=True, slots=True)
class ExporterSeat:
    """The exporter's place: one listener of its own, and the board to read."""

    listener: socket.socket
    control: ControlEndpoint
    board: Board
    stacks_fd: int  # As in a worker's.
