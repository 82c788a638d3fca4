"""What a watcher says of itself."""

from __future__ import annotations

from dataclasses import dataclass


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
