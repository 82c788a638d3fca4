"""Endpoints: our ends of connections, as an engine knows them.

Lives here: the descriptor, what went through it, and what its socket can be asked. Must not live here: what is done
with it. There are two kinds: `hooks`, for a layer above that is called back, and `queued`, for operations that wait in
queues and come back as completions.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shardnet.watcher import _sockets, _sys
from shardnet.watcher.counters import TRAFFIC_ALONE, TRAFFIC_RECEIVED, TRAFFIC_SENT, Op, Outcome, completions_cell

if TYPE_CHECKING:
    from shardnet.watcher.hooks import HookEndpoint

CHUNK_MAX_BYTES: Final = 65536  # One receive: enough for throughput, little enough to be fair.
# Receives by running code (512 KiB); past that it waits for its turn. More gain little throughput, and all that they
# bring, a hundred thousand tiny records perhaps, is handled before anybody else gets the turn.
RECEIVES_PER_TURN_MAX: Final = 8

# A peer that is gone, as opposed to a kernel that is in trouble.
RESET_ERRNOS: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


class Agenda:
    """What the endpoints of one engine have for its next turn, and the cells they count in.

    `rearm(fd, events)` is to be called by whoever found that there is nothing to do for those events: a poller that
    knows no edges then tells of the next. None where the poller knows edges.
    """

    __slots__ = ("_cells_kept", "cells", "failing", "pending", "ready", "rearm", "receives_left")

    def __init__(self, cells: memoryview, rearm: Callable[[int, int], object] | None = None) -> None:
        self._cells_kept = cells
        self.cells = _sys.cells_of(self._cells_kept)
        self.rearm = rearm
        self.receives_left = RECEIVES_PER_TURN_MAX
        self.forget()

    def forget(self) -> None:
        """Let go of every endpoint: there is no next turn. One that is under way goes on with the queues it has."""
        self.ready: list[HookEndpoint] = []  # Whose posted read may succeed.
        self.pending: deque[Endpoint] = deque()  # Whose queues may go on.
        self.failing: deque[HookEndpoint] = deque()  # In error, with no operation under way that would meet it.

    def count_failure(self, op: Op, error: OSError) -> None:
        self.cells[completions_cell(op, outcome_of(error))] += 1


def outcome_of(error: OSError) -> Outcome:
    """What a failure of the kernel's counts as."""
    return Outcome.RESET if error.errno in RESET_ERRNOS else Outcome.ERROR


class Endpoint:
    """One stream socket in the hands of an engine. What it does with the news is its kind's to say."""

    __slots__ = ("_agenda", "_proceed_due", "fd", "received_bytes", "sent_bytes", "traffic")

    def __init__(self, agenda: Agenda, fd: int, traffic: int = TRAFFIC_ALONE) -> None:
        """Take over `fd`, a non-blocking stream socket: from now on its engine closes it."""
        self.fd = fd  # -1 once freed.
        self.traffic = traffic
        self.received_bytes = 0  # Handed to the owner since the start.
        self.sent_bytes = 0  # Handed to the kernel since the start.
        self._agenda = agenda
        self._proceed_due = False  # Stands in the agenda already.

    # What a kind of endpoint says, and the engine calls.

    def note_events(self, events: int) -> None:
        """Remember what a poll told, and put on the agenda what can be done about it. Runs nobody's code."""

    def proceed(self) -> None:
        """Go on with what is queued: until nothing is, the kernel has no more, or the turn's share is used up."""

    def abandon(self) -> int:
        """Drop all that was asked and give up the descriptor, which is returned for closing."""
        fd = self.fd
        self.fd = -1
        return fd

    # The socket itself. None of these is for an endpoint that was freed.

    def end_output(self) -> None:
        """Say that nothing more will be sent. Raises `OSError` when the peer is gone."""
        _sockets.end_of_output(self.fd)

    def reset_on_close(self) -> None:
        """Make the close, which must follow, a reset: what is unsent is thrown away. Raises `OSError`."""
        _sockets.reset_on_close(self.fd)

    def unread_in_kernel(self) -> int:
        """How many bytes wait to be received. Raises `OSError`."""
        return _sockets.unread_bytes(self.fd)

    def pending_error(self) -> int:
        """The errno that the next operation would meet, or 0. Asking takes it."""
        return _sockets.pending_error(self.fd)

    def local_address(self) -> Any:
        """The address of this end, as `socket.getsockname` gives it. Raises `OSError`."""
        return _sockets.local_address(self.fd)

    # For the kinds.

    def _ask_proceed(self) -> None:
        if not self._proceed_due:
            self._proceed_due = True
            self._agenda.pending.append(self)

    def _rearm(self, events: int) -> None:
        """There is nothing to do for `events` now: the next of them is to be told."""
        if self._agenda.rearm is not None:
            self._agenda.rearm(self.fd, events)

    def _count_received(self, size: int) -> None:
        self.received_bytes += size
        self._agenda.cells[self.traffic + TRAFFIC_RECEIVED] += size

    def _count_sent(self, size: int) -> None:
        self.sent_bytes += size
        self._agenda.cells[self.traffic + TRAFFIC_SENT] += size


class Guest:
    """A descriptor that somebody else's event loop watches through our epoll, level-triggered."""

    __slots__ = ("token",)

    def __init__(self, token: Any) -> None:
        self.token = token
