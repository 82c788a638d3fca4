"""The supervisor's loop: wait for what happens, tell the fleet, ask it what is to be done, do that.

Lives here: the loop, what children run, and what an operator reads about it all. Must not live here: decisions
(`lifecycle`), system calls (`system`).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, assert_never

from shardnet.board import Board
from shardnet.control import ControlEndpoint, Message
from shardnet.errors import AppError, ExitCode, InternalError, SystemFault
from shardnet.listen import ListenerBank
from shardnet.log import get_logger
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.events import (
    Action,
    CloseListeners,
    Drain,
    Ended,
    Event,
    Exited,
    Failed,
    Finish,
    Fork,
    ForkFailed,
    Kill,
    Leaving,
    Misspoke,
    Promoted,
    Ready,
    Respawn,
    Serving,
    StopAsked,
    Stopping,
)
from shardnet.supervisor.ledger import Ledger
from shardnet.supervisor.lifecycle import Fleet, Patience
from shardnet.supervisor.system import (
    STOP_AT_ONCE,
    Asked,
    ChildExited,
    ChildMisspoke,
    ChildSaid,
    Happening,
    LinuxSystem,
    OrphanReaped,
    System,
)

__all__ = ["NobodyServed", "Supervisor", "SupervisorOptions", "supervise"]

HEARTBEAT_S: Final = 1.0  # How long an idle supervisor sleeps: `/livez` allows it several of these.


class NobodyServed(SystemFault):
    """Workers kept failing until nobody had served for a while."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What a supervisor is told about its fleet."""

    shards: int
    drain_timeout_s: float = 30.0
    boot_timeout_s: float = 120.0


def supervise(
    bank: ListenerBank,
    board: Board,
    options: SupervisorOptions,
    run_worker: Callable[[WorkerSeat], int],
    run_exporter: Callable[[ExporterSeat], int] | None = None,
    metrics_listener: socket.socket | None = None,
    on_serving: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Keep one worker per shard running until somebody asks to stop (TERM, INT, HUP; QUIT: at once).

    Must be called in the main thread of a process without others: every worker is forked from it. The bank is closed
    when the stop begins; the board and the metrics listener stay the caller's.

    Args:
        bank: Has at least `options.shards` listeners for each address.
        board: Has room for as many shards; no supervisor has a row in it yet.
        options: The size of the fleet, and its patience.
        run_worker: Runs in each worker; what it returns is the worker's exit status.
        run_exporter: Runs in the exporter, if there is a metrics listener.
        metrics_listener: The exporter's.
        on_serving: Called once, when every shard has a worker that came up.

    Returns:
        OK, when it was asked to stop.

    Raises:
        AppError: The app could not be loaded at the first start. Its notes (`__notes__`) hold the traceback.
        NobodyServed: Workers kept failing until nobody had served for a while.
    """
    system = LinuxSystem()
    try:
        exporter = (run_exporter, metrics_listener) if run_exporter and metrics_listener else None
        supervisor = Supervisor(system, bank, board, options, run_worker, exporter, on_serving)
        finish = supervisor.run()
    finally:
        system.close()
    match finish.code:
        case ExitCode.OK:
            return finish.code
        case ExitCode.APP:
            app_error = AppError(finish.line)
            if finish.detail:
                app_error.add_note(finish.detail)
            raise app_error
        case _:
            raise NobodyServed(finish.line)


class Supervisor:
    """One fleet, from the first fork to the last exit. See `supervise`."""

    def __init__(
        self,
        system: System,
        bank: ListenerBank,
        board: Board,
        options: SupervisorOptions,
        run_worker: Callable[[WorkerSeat], int],
        exporter: tuple[Callable[[ExporterSeat], int], socket.socket] | None,
        on_serving: Callable[[], None],
    ) -> None:
        if not 1 <= options.shards <= min(bank.shards, board.shards_max):
            raise InternalError(
                f"{options.shards} shards need as many listeners ({bank.shards}) and rows ({board.shards_max})"
            )
        self._system = system
        self._bank = bank
        self._board = board
        self._options = options
        self._run_worker = run_worker
        self._exporter = exporter
        self._on_serving = on_serving
        self._log = get_logger("supervisor")
        self._say = self._log.info
        self._known: dict[int, dict[str, object]] = {}  # How the log speaks of each living child.
        self._finish: Finish | None = None
        patience = Patience(options.boot_timeout_s, options.drain_timeout_s)
        self._fleet = Fleet(options.shards, patience, exporter=exporter is not None, random=random.random)
        self._ledger = Ledger(
            board,
            options.shards,
            pid=os.getpid(),
            generation=self._fleet.generation,
            started_ns=time.time_ns(),
        )

    def run(self) -> Finish:
        """Returns when every child is gone."""
        if (threads := threading.active_count()) > 1:
            self._log.warning("forking with threads alive, workers may deadlock", threads=threads)
        while self._finish is None:
            for happening in self._system.wait(self._wake_at_s()):
                self._apply(happening)
            actions = self._fleet.plan(self._system.now_s())
            # First, so that whoever is told that a shard serves finds it so on the board.
            self._ledger.show(self._fleet.slots, time.monotonic_ns())
            for action in actions:
                self._perform(action)
        return self._finish

    def _wake_at_s(self) -> float:
        heartbeat_s = self._system.now_s() + HEARTBEAT_S
        deadline_s = self._fleet.next_deadline_s()
        return heartbeat_s if deadline_s is None else min(deadline_s, heartbeat_s)

    # What has happened.

    def _apply(self, happening: Happening) -> None:
        event: Event | None = None
        match happening:
            case Asked(signum):
                event = StopAsked(quick=signum in STOP_AT_ONCE)
            case ChildSaid(child, message):
                event = _event_of(child, message)
                if event is None:
                    self._log.debug("message not understood", **self._who(child), type=message.type)
            case ChildMisspoke(child):
                event = Misspoke(child)
            case ChildExited(child, ending):
                event = Exited(child, ending)
            case OrphanReaped(pid, ending):
                self._log.debug("orphan reaped", pid=pid, how=ending)
            case _:
                assert_never(happening)
        if isinstance(event, Failed):
            self._log.debug("worker failed", **self._who(event.child), detail=event.detail)
        elif isinstance(event, Leaving):
            self._log.info("worker leaving", **self._who(event.child))
        if event is not None:
            self._fleet.apply(event, self._system.now_s())

    # What is to be done.

    def _perform(self, action: Action) -> None:
        match action:
            case Fork():
                self._fork(action)
            case Drain():
                self._drain(action)
            case Kill(child, signum, why):
                self._say("killing", **self._who(child), signal=signum.name, why=why)
                self._system.kill(child, signum)
            case Promoted(child, _, boot_s):
                self._log.info("worker ready", **self._who(child), boot_s=boot_s)
            case Ended():
                self._bury(action)
            case Respawn(shard, delay_s, failures):
                self._log.info("respawn", **_place(shard), in_s=delay_s, failures=failures)
            case Serving():
                # Whoever started us may have stopped reading what we print: no reason to stop serving.
                with contextlib.suppress(OSError):
                    self._on_serving()
            case Stopping(quick, why, code):
                if code is ExitCode.APP:
                    self._say = self._log.debug  # All there is to be said is the error that `supervise` raises.
                self._say("stopping", how="at once" if quick else "gracefully", why=why)
            case CloseListeners():
                self._bank.close()
            case Finish():
                self._finish = action
                self._say("stopped")
            case _:
                assert_never(action)

    def _fork(self, fork: Fork) -> None:
        try:
            pid = self._fork_exporter(fork) if fork.shard is None else self._fork_worker(fork, fork.shard)
        except (OSError, SystemFault) as exc:
            # BlockingIOError here is EAGAIN: the limit of processes, not "would block". A failed attempt like any.
            self._ledger.fold(fork.child)
            self._log.error("fork failed", **_place(fork.shard), why=exc)
            self._fleet.apply(ForkFailed(fork.child, f"fork failed: {exc}"), self._system.now_s())
        else:
            self._known[fork.child] = {**_place(fork.shard), "pid": pid}

    def _fork_worker(self, fork: Fork, shard: int) -> int:
        row = self._ledger.claim(fork.child, shard, fork.generation, started_ns=time.time_ns())

        def enter() -> Collection[int]:
            self._bank.close_in_child(shard)
            if self._exporter is not None:
                self._exporter[1].close()
            return {self._board.fd, *(listener.fileno() for listener in self._bank.listeners(shard))}

        def main(control: ControlEndpoint) -> int:
            self._board.row(row).publish_pid(os.getpid())
            seat = WorkerSeat(
                shard=shard,
                shard_count=self._options.shards,
                generation=fork.generation,
                incarnation=fork.child,
                listeners=self._bank.listeners(shard),
                control=control,
                board=self._board,
                row=row,
            )
            return self._run_worker(seat)

        return self._system.fork(fork.child, enter, main)

    def _fork_exporter(self, fork: Fork) -> int:
        if self._exporter is None:
            raise InternalError("an exporter was asked for, and there is none")
        run_exporter, listener = self._exporter

        def enter() -> Collection[int]:
            self._bank.close_in_child(None)
            return {self._board.fd, listener.fileno()}

        def main(control: ControlEndpoint) -> int:
            return run_exporter(ExporterSeat(listener, control, self._board))

        return self._system.fork(fork.child, enter, main)

    def _drain(self, drain: Drain) -> None:
        self._say("draining", **self._who(drain.child), timeout_s=drain.timeout_s)
        if not self._system.tell(drain.child, "drain", timeout_s=drain.timeout_s):
            # Hung, or just gone; its deadline stands either way.
            self._log.warning("not listening", **self._who(drain.child))

    def _bury(self, ended: Ended) -> None:
        extra: dict[str, object] = {"why": ended.trouble} if ended.trouble else {}
        say = self._say if ended.reason is None else self._log.error
        event = "exporter ended" if ended.shard is None else "worker ended"
        say(event, **self._who(ended.child), how=ended.ending, ran_s=ended.ran_s, **extra)
        self._known.pop(ended.child, None)
        if ended.shard is not None and ended.reason is not None:
            self._ledger.count_restart(ended.shard, ended.reason)
        if lost := self._ledger.fold(ended.child):
            self._log.warning("board is full, counters lost", shard=ended.shard, counters=lost)

    def _who(self, child: int) -> dict[str, object]:
        return self._known.get(child, {})


def _place(shard: int | None) -> dict[str, object]:
    return {"role": "exporter"} if shard is None else {"shard": shard}


def _event_of(child: int, message: Message) -> Event | None:
    """What a child's message means; None if it means nothing to this supervisor."""
    match message.type:
        case "ready":
            return Ready(child)
        case "failed":
            texts = (str(message.fields.get(name, "")) for name in ("kind", "message", "detail"))
            return Failed(child, *texts)
        case "leaving":
            return Leaving(child)
        case _:
            return None
