"""What a watcher says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.watcher.connections import Connections
from shardnet.watcher.counters import LOOP_TURNS, TRAFFIC_ALONE, TRAFFIC_RECEIVED, TRAFFIC_SENT, Outcome
from shardnet.watcher.engine import Engine
from shardnet.watcher.operations import Outbox
from shardnet.watcher.timers import TimerQueue


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the watcher was made, and what is so now. `submitted` = `completed` + `pending`, always."""

    submitted: int  # Operations that were accepted.
    completed: int  # Of these, those that have their completion: the sum of the six that follow.
    completed_ok: int
    completed_eof: int
    completed_cancelled: int  # By `free` or `close`.
    completed_deadline: int
    completed_reset: int  # The peer was gone.
    completed_error: int
    pending: int  # Operations without a completion now.
    waiting: int  # Completions that `wait_io` has not handed out yet.
    deadlines: int  # Deadlines and sleeps that are armed now.
    connections: int  # Open now.
    connections_pending: int  # Of these, those on which an operation is pending, which keeps them open.
    connections_dropped: int  # Closed because nobody held them any more.
    received_bytes: int
    sent_bytes: int
    swap_capacity_bytes: int
    swap_in_use_bytes: int  # Received for reads without a buffer, and not taken back by `wait_io` yet.
    swap_peak_bytes: int  # The most that was ever in use.
    swap_exhausted: int  # How often it was full before the caller came back.
    swap_abandoned: int  # How often it was left to a caller who kept a slice of it.
    turns: int  # How often the poller was asked.


def gather(engine: Engine, outbox: Outbox, connections: Connections, deadlines: TimerQueue) -> Statistics:
    """What the parts of a watcher have counted."""
    cells, swap = engine.cells, outbox.swap
    open_now = list(connections)
    completed = sum(outbox.outcomes)
    return Statistics(
        submitted=outbox.submitted,
        completed=completed,
        completed_ok=outbox.outcomes[Outcome.OK],
        completed_eof=outbox.outcomes[Outcome.EOF],
        completed_cancelled=outbox.outcomes[Outcome.CANCELLED],
        completed_deadline=outbox.outcomes[Outcome.DEADLINE],
        completed_reset=outbox.outcomes[Outcome.RESET],
        completed_error=outbox.outcomes[Outcome.ERROR],
        pending=outbox.submitted - completed,
        waiting=len(outbox.done),
        deadlines=len(deadlines),
        connections=len(open_now),
        connections_pending=sum(1 for endpoint in open_now if endpoint.pending),
        connections_dropped=connections.dropped,
        received_bytes=cells[TRAFFIC_ALONE + TRAFFIC_RECEIVED],
        sent_bytes=cells[TRAFFIC_ALONE + TRAFFIC_SENT],
        swap_capacity_bytes=swap.size_bytes,
        swap_in_use_bytes=swap.in_use_bytes,
        swap_peak_bytes=swap.peak_bytes,
        swap_exhausted=swap.exhausted,
        swap_abandoned=swap.abandoned,
        turns=cells[LOOP_TURNS],
    )
