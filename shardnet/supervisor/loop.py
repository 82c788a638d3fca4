"""The supervisor's loop: wait for what happens, tell the fleet, ask it what is to be done, do that.

Lives here: the loop, and what an operator reads about it all. Must not live here: decisions (`lifecycle`), system calls
(`system`), who the children are (`crew`).
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
from typing import Final, Never, assert_never

from shardnet.board import Board
from shardnet.control import Message
from shardnet.errors import ExitCode, InternalError, SystemFault
from shardnet.listen import ListenerBank
from shardnet.log import get_logger, reopen
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.crew import Crew
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
    ReloadAsked,
    ReloadBegan,
    Reloaded,
    ReloadFailed,
    ReloadWaits,
    Renew,
    RenewalFailed,
    Renewed,
    Respawn,
    Serve,
    Serving,
    StopAsked,
    Stopping,
)
from shardnet.supervisor.handover import ChildState, SupervisorState
from shardnet.supervisor.ledger import Ledger
from shardnet.supervisor.lifecycle import Fleet
from shardnet.supervisor.orders import Patience
from shardnet.supervisor.system import (
    RELOAD,
    REOPEN_LOGS,
    STOP_AT_ONCE,
    Asked,
    ChildExited,
    ChildMisspoke,
    ChildSaid,
    Happening,
    OrphanReaped,
    System,
)

__all__ = ["Supervisor", "SupervisorOptions"]

NANOSECONDS: Final = 1_000_000_000
HEARTBEAT_S: Final = 1.0  # How long an idle supervisor sleeps: `/livez` allows it several of these.


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What a supervisor is told about its fleet."""

    shards: int
    drain_timeout_s: float = 30.0
    boot_timeout_s: float = 120.0
    drain_spread_s: float = 0.0


class Supervisor:
    """One fleet, from the first fork to the last exit. See `supervise` in `supervisor`."""

    def __init__(
        self,
        system: System,
        bank: ListenerBank,
        board: Board,
        options: SupervisorOptions,
        run_worker: Callable[[WorkerSeat], int],
        exporter: tuple[Callable[[ExporterSeat], int], socket.socket] | None,
        on_serving: Callable[[], None],
        *,
        worker_fds: Collection[int] = (),
        renew: Callable[[], Never] | None = None,
        resumed: SupervisorState | None = None,
    ) -> None:
        """`renew` replaces the program, or raises `SystemFault`. For the rest see `supervise`."""
        if not 1 <= options.shards <= min(bank.shards, board.shards_max):
            raise InternalError(
                f"{options.shards} shards need as many listeners ({bank.shards}) and rows ({board.shards_max})"
            )
        self._system = system
        self._bank = bank
        self._crew = Crew(bank, board, options.shards, run_worker, exporter, worker_fds)
        self._on_serving = on_serving
        self._renew = renew
        self._boot_timeout_s = options.boot_timeout_s
        self._log = get_logger("supervisor")
        self._say = self._log.info
        # How the log speaks of each living child.
        self._known: dict[int, dict[str, object]] = resumed.known if resumed else {}
        self._finish: Finish | None = None
        self._fleet = Fleet(
            options.shards,
            Patience(options.boot_timeout_s, options.drain_timeout_s, options.drain_spread_s),
            exporter=exporter is not None,
            random=random.random,
            renews=renew is not None,
            state=resumed.fleet if resumed else None,
        )
        if resumed:
            self._ledger = Ledger.take_over(board, resumed.cells, resumed.rows)
            self._fleet.apply(RenewalFailed(*resumed.failure) if resumed.failure else Renewed(), system.now_s())
        else:
            first = self._fleet.generation
            self._ledger = Ledger.open(
                board, options.shards, pid=os.getpid(), generation=first, started_ns=time.time_ns()
            )

    def state(self, children: tuple[ChildState, ...], signals: tuple[int, ...]) -> SupervisorState:
        """Everything that a supervisor in another program has to know to go on."""
        fleet = self._fleet.state()
        return SupervisorState(fleet, children, signals, self._known, self._ledger.rows, self._ledger.cells)

    def run(self) -> Finish:
        """Returns when every child is gone."""
        if (threads := threading.active_count()) > 1:
            self._log.warning("forking with threads alive, workers may deadlock", threads=threads)
        while self._finish is None:
            for happening in self._system.wait(self._wake_at_s()):
                self._apply(happening)
            actions = self._fleet.plan(self._system.now_s())
            # First, so that whoever is told that a shard serves finds it so on the board.
            self._ledger.show(self._fleet.slots, self._fleet.generation, time.monotonic_ns())
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
                event = self._asked(signum)
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

    def _asked(self, signum: int) -> Event | None:
        if signum in REOPEN_LOGS:
            self._reopen_logs()
            return None
        return ReloadAsked() if signum in RELOAD else StopAsked(quick=signum in STOP_AT_ONCE)

    def _reopen_logs(self) -> None:
        self._log.info("reopening logs")
        reopen()
        for child in self._known:
            self._system.tell(child, "reopen_logs")

    # What is to be done.

    def _perform(self, action: Action) -> None:
        match action:
            case Fork():
                self._fork(action)
            case Serve(child):
                if not self._system.tell(child, "serve"):
                    self._log.warning("not listening", **self._who(child))
            case Drain():
                self._drain(action)
            case Kill(child, signum, why):
                self._say("killing", **self._who(child), signal=signum.name, why=why)
                self._system.kill(child, signum)
            case Promoted(child, _, boot_s, held):
                self._log.info("worker held" if held else "worker ready", **self._who(child), boot_s=boot_s)
            case Ended():
                self._bury(action)
            case Respawn(shard, delay_s, failures):
                self._log.info("respawn", **_place(shard), in_s=delay_s, failures=failures)
            case Serving():
                # Whoever started us may have stopped reading what we print: no reason to stop serving.
                with contextlib.suppress(OSError):
                    self._on_serving()
            case Renew():
                self._start_over()
            case ReloadBegan() | Reloaded() | ReloadFailed() | ReloadWaits():
                self._tell_of_reload(action)
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

    def _start_over(self) -> None:
        if self._renew is None:
            raise InternalError("a new program was asked for, and there is none")
        self._log.info("starting over")
        # Nobody is there to say that all is well while the new program imports the app.
        self._ledger.promise(time.monotonic_ns() + int(self._boot_timeout_s * NANOSECONDS))
        try:
            self._renew()
        except SystemFault as exc:
            self._fleet.apply(RenewalFailed(str(exc), ""), self._system.now_s())

    def _tell_of_reload(self, action: ReloadBegan | Reloaded | ReloadFailed | ReloadWaits) -> None:
        match action:
            case ReloadBegan(generation):
                self._log.info("reload", generation=generation)
            case Reloaded(generation, took_s):
                self._ledger.count_reload("ok")
                self._log.info("reloaded", generation=generation, took_s=took_s)
            case ReloadFailed(generation, why, detail):
                self._ledger.count_reload("failed")
                self._log.error(f"reload failed: {why}, generation {generation} keeps serving")
                if detail:
                    self._log.debug("reload failed", detail=detail)
            case ReloadWaits(why):
                self._log.info("reload waits", why=why)
            case _:
                assert_never(action)

    def _fork(self, fork: Fork) -> None:
        try:
            if fork.shard is None:
                pid = self._crew.fork_exporter(self._system, fork)
            else:
                row = self._ledger.claim(fork.child, fork.shard, fork.generation, started_ns=time.time_ns())
                pid = self._crew.fork_worker(self._system, fork, fork.shard, row)
        except (OSError, SystemFault) as exc:
            # BlockingIOError here is EAGAIN: the limit of processes, not "would block". A failed attempt like any.
            self._ledger.fold(fork.child)
            say = self._log.debug if fork.held else self._log.error  # The end of a reload is an error of its own.
            say("fork failed", **_place(fork.shard), why=exc)
            self._fleet.apply(ForkFailed(fork.child, f"fork failed: {exc}"), self._system.now_s())
        else:
            generation = {} if fork.shard is None else {"generation": fork.generation}
            self._known[fork.child] = {**_place(fork.shard), **generation, "pid": pid}

    def _drain(self, drain: Drain) -> None:
        self._say("draining", **self._who(drain.child), timeout_s=drain.timeout_s)
        fields = {"timeout_s": drain.timeout_s, "spread_s": drain.spread_s, "succeeded": drain.succeeded}
        if not self._system.tell(drain.child, "drain", **fields):
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
