"""One load process: its connections, from the first connect to the last reply.

It is told what to do over a socket that keeps messages apart (SOCK_SEQPACKET), and counts into its sheet:

    load → starter    up                        every connection has been tried
                      error KIND DETAIL         the first of its kind
    starter → load    go START_NS PERIOD_NS     begin; the period is 0 in a closed loop
                      stop                      end at once; so does the end of the other process

Built on shardnet's own engine, which is what makes one process enough for most servers once the engine is compiled.

Lives here: the phases of a run in one process. Must not live here: other processes, signals, what people see.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardnet.bench.clients import Client, ClosedClient, OpenClient, clock_ns
from shardnet.bench.connecting import Connecting
from shardnet.bench.options import Options
from shardnet.bench.schedule import Schedule
from shardnet.bench.sheet import Cell, Kind, Sheet
from shardnet.watcher.engine import Engine

NS_PER_S: Final = 1_000_000_000
SWEEP_S: Final = 0.1  # How often some of the clients are looked at, whether they wait too long.
SWEEPS_FOR_ALL: Final = 10  # The others have their turn later: thousands at once would delay who is measured.
BEGINS_PER_TURN_MAX: Final = 256
MESSAGE_MAX_BYTES: Final = 4096
DETAIL_MAX: Final = 300
SCHEDSTAT: Final = Path("/proc/self/schedstat")  # Of the main thread, which is the only one.


@dataclass(frozen=True, slots=True)
class Window:
    """The times of a run, on the monotonic clock."""

    start_ns: int
    measured_from_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What this process has had of the machine."""

    wall_ns: int
    cpu_ns: int
    kept_waiting_ns: int  # For a CPU, while it had something to do; 0 where the kernel does not say.

    @staticmethod
    def now() -> Usage:
        try:
            cpu_ns, kept_waiting_ns, _ = map(int, SCHEDSTAT.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            cpu_ns, kept_waiting_ns = time.process_time_ns(), 0
        return Usage(clock_ns(), cpu_ns, kept_waiting_ns)


class Load:
    """The load of one process. `run` returns when it is over."""

    def __init__(self, options: Options, number: int, sheet: Sheet, control: socket.socket) -> None:
        """`number`: of this process, from 0. `control` is one end of a SOCK_SEQPACKET pair and stays the caller's."""
        self.engine = Engine(cells=sheet.cells)
        self.sheet = sheet
        self.take = self.engine.swap.take
        self.unchecked = not options.checked
        self.sending = True  # Until no new message is to be sent.
        self.record: Callable[[int], object] = _discard  # During the warm-up.
        self._options = options
        self._share = options.share(number)
        self._control = control
        self._clients: list[Client] = []  # Those that have been up; failed ones stay in their places.
        self._alive = 0
        self._swept = 0
        self._schedule: Schedule | None = None
        self._window: Window | None = None
        self._usage = Usage.now()
        self._last_reply_ns = 0
        self._over = False
        self._connecting = Connecting(
            self.engine,
            options.target,
            len(self._share),
            options.timeout_s,
            self._add,
            self._count_error,
            lambda: self._tell("up"),
        )

    def run(self) -> None:
        """Connect, do as told over `control`, and fill in the sheet."""
        engine = self.engine
        engine.watch(self._control.fileno(), select.POLLIN, self._hear)
        engine.after(SWEEP_S, self._sweep)
        engine.defer(self._connecting.begin)
        guests = engine.guests_ready
        while not self._over:
            engine.turn()
            if guests:
                for callback, _ in guests:
                    callback()
                guests.clear()
        self._measure_elapsed()
        self._connecting.close()
        if self._schedule is not None:
            self._schedule.close()
        engine.close()

    # What clients and the schedule say.

    def fail(self, client: Client, kind: Kind, detail: str) -> None:
        """The client's connection is of no more use: count why, and close it."""
        if client.fd < 0:
            return
        self._count_error(kind, detail)
        self._drop(client)

    def finish(self, client: Client, now_ns: int) -> None:
        """The client has had its last reply."""
        self._last_reply_ns = now_ns
        self._drop(client)

    def end_sending(self) -> None:
        """Every message has been asked for: what is left are replies."""
        self.sending = False
        for client in self._clients:
            if client.fd >= 0 and client.waiting_since_ns() is None:
                self._drop(client)

    def _drop(self, client: Client) -> None:
        self.engine.free(client)
        self._alive -= 1
        self.sheet.cells[Cell.UP] -= 1
        if not self._alive and self._window is not None:
            self._over = True

    # Phases.

    def _add(self, sock: socket.socket) -> None:
        number = self._share[len(self._clients)]
        message = self._options.messages[number % len(self._options.messages)]
        kind = ClosedClient if self._options.rate is None else OpenClient
        client = kind(self, sock.detach(), message, unix=self._options.target.is_unix)
        try:
            self.engine.add(client)
        except OSError as error:  # The kernel has a limit of what may be polled, too.
            self.engine.free(client)
            self._count_error(Kind.OTHER, error.strerror or str(error))
            return
        self._clients.append(client)
        self._alive += 1
        self.sheet.cells[Cell.UP] += 1
        self.sheet.cells[Cell.OPENED] += 1

    def _count_error(self, kind: Kind, detail: str) -> None:
        if self.sheet.count_error(kind) == 1:
            self._tell(f"error {kind} {detail[:DETAIL_MAX]}")

    def _tell(self, line: str) -> None:
        # A handful of messages in all: the socket has room for them. If nobody listens any more, we hear of that, too.
        with contextlib.suppress(OSError):
            self._control.sendall(line.encode(errors="replace"))

    def _hear(self) -> None:
        try:
            words = self._control.recv(MESSAGE_MAX_BYTES).decode().split()
        except OSError:  # The starter is gone, and has not read what we told it.
            words = []
        if words[:1] == ["go"] and len(words) == 3:
            self._begin(int(words[1]), float(words[2]))
        else:
            self._over = True

    def _begin(self, start_ns: int, period_ns: float) -> None:
        measured_from_ns = start_ns + int(self._options.warmup_s * NS_PER_S)
        end_ns = measured_from_ns + int(self._options.duration_s * NS_PER_S)
        self._window = window = Window(start_ns, measured_from_ns, end_ns)
        self._usage = Usage.now()
        if not self._alive:
            self._over = True
            return
        if period_ns:
            clients = [client for client in self._clients if isinstance(client, OpenClient)]
            self.record = self.sheet.histogram.record
            self._schedule = Schedule(self, clients, window, period_ns)
            self._schedule.begin()
            return
        if not self._options.warmup_s:
            self._measure()  # From the first message on, and not from a timer a little later.
        closed = (client for client in self._clients if isinstance(client, ClosedClient))
        self._at(start_ns, lambda: self._begin_some(closed))
        self._at(measured_from_ns, self._measure)
        self._at(end_ns, self.end_sending)

    def _at(self, due_ns: int, callback: Callable[[], object]) -> None:
        self.engine.after((due_ns - clock_ns()) / NS_PER_S, callback)

    def _begin_some(self, clients: Iterator[ClosedClient]) -> None:
        now_ns = clock_ns()
        for client in itertools.islice(clients, BEGINS_PER_TURN_MAX):
            if client.fd >= 0 and self.sending:
                client.begin(now_ns)
                now_ns = clock_ns()
        if (first := next(clients, None)) is not None:
            self.engine.defer(self._begin_some, itertools.chain((first,), clients))

    def _measure(self) -> None:
        self.record = self.sheet.histogram.record

    def _sweep(self) -> None:
        """Look for those that have waited too long, a part of them each time."""
        self._connecting.sweep()
        longest_ns = int(self._options.timeout_s * NS_PER_S)
        for _ in range(-(-len(self._clients) // SWEEPS_FOR_ALL)):
            self._swept = (self._swept + 1) % len(self._clients)
            client = self._clients[self._swept]
            since_ns = client.waiting_since_ns() if client.fd >= 0 else None
            if since_ns is not None and clock_ns() - since_ns > longest_ns:
                self.fail(client, Kind.TIMEOUT, f"no reply within {self._options.timeout_s:g} s")
        self.engine.after(SWEEP_S, self._sweep)

    def _measure_elapsed(self) -> None:
        """Until the end that was planned, or the last reply where that came later: replies after the end count."""
        if self._window is not None:
            ended_ns = max(min(self._window.end_ns, clock_ns()), self._last_reply_ns)
            cells = self.sheet.cells
            cells[Cell.ELAPSED_NS] = max(0, ended_ns - self._window.measured_from_ns)
            usage = Usage.now()
            cells[Cell.WALL_NS] = usage.wall_ns - self._usage.wall_ns
            cells[Cell.CPU_NS] = usage.cpu_ns - self._usage.cpu_ns
            cells[Cell.KEPT_WAITING_NS] = usage.kept_waiting_ns - self._usage.kept_waiting_ns


def _discard(_value: int) -> None:
    pass
