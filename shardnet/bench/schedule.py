"""When the messages of an open loop are due, and the alarm that tells so.

Message g of a process is due `g` periods after its start, on client g modulo the number of clients. Times are computed
from their numbers, not from each other, so that no error adds up.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from shardnet.bench.alarm import Alarm
from shardnet.bench.clients import OpenClient, clock_ns
from shardnet.bench.sheet import Cell

if TYPE_CHECKING:
    from shardnet.bench.load import Load, Window

ASKS_PER_TURN_MAX: Final = 256  # Messages, before the replies get the turn.
READABLE: Final = select.POLLIN
LATE_NS: Final = 1_000_000  # What is sent so long after it was due counts as late.


class Schedule:
    """The due times of one process."""

    def __init__(self, load: Load, clients: Sequence[OpenClient], window: Window, period_ns: float) -> None:
        self._cells = load.sheet.cells
        self._engine = load.engine
        self._end_sending = load.end_sending
        self._clients = clients
        self._count = len(clients)
        self._start_ns = window.start_ns
        self._end_ns = window.end_ns
        self.measured_from_ns = window.measured_from_ns  # What was due earlier is warm-up.
        self._period_ns = period_ns
        self._next = 0  # The number of the message that is due next.
        self._alarm = Alarm()

    def due_ns(self, number: int, index: int) -> int:
        """When message `index` of client `number` is due."""
        return self._start_ns + int((number + index * self._count) * self._period_ns)

    def begin(self) -> None:
        """Have every client ready, and each message asked for when it is due."""
        for number, client in enumerate(self._clients):
            client.begin(self, number)
        self._engine.watch(self._alarm.fd, READABLE, self._ask)
        self._alarm.set(self._start_ns)

    def close(self) -> None:
        """Ask for nothing more. Idempotent."""
        if self._alarm.fd >= 0:
            self._engine.unwatch(self._alarm.fd)
            self._alarm.close()

    def _ask(self) -> None:
        """Ask for what is due by now, and set the alarm for what is due next."""
        if self._alarm.fd < 0:
            return
        self._alarm.clear()
        now_ns = clock_ns()
        due_ns = self.due_ns(self._next, 0)
        late_ns = now_ns - due_ns
        if late_ns > self._cells[Cell.LATE_WORST_NS] and due_ns >= self.measured_from_ns:
            self._cells[Cell.LATE_WORST_NS] = late_ns
        for _ in range(ASKS_PER_TURN_MAX):
            if due_ns > now_ns or due_ns >= self._end_ns:
                break
            if due_ns >= self.measured_from_ns and now_ns - due_ns > LATE_NS:
                self._cells[Cell.LATE] += 1
            client = self._clients[self._next % self._count]
            if client.fd >= 0:
                client.ask()
            else:
                self._cells[Cell.UNASKED] += 1
            self._next += 1
            due_ns = self.due_ns(self._next, 0)
        if due_ns >= self._end_ns:
            self.close()
            self._end_sending()
        else:
            self._alarm.set(due_ns)  # Has it passed already, the alarm comes at once, behind the replies.
