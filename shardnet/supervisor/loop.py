"""The supervisor's loop: wait for what happens, tell the fleet, ask it what is to be done, do that.

Lives here: the loop, and what an operator reads about it all. Must not live here: decisions (`lifecycle`), system calls
(`system`), who the children are (`crew`).
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Never, assert_never

from shardnet.board import Board
from shardnet.control import Message
from shardnet.errors import ExitCode, InternalError, SystemFault
from shardnet.listen import ListenerBank
from shardnet.log import get_logger, reopen
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.actions import (
    Action,
    CloseListeners,
    Drain,
    DumpStacks,
    Ended,
    Finish,
    Fork,
    GiveBack,
    Kill,
    Lend,
    Promoted,
    Recycle,
    ReloadBegan,
    Reloaded,
    ReloadFailed,
    ReloadWaits,
    Renew,
    Respawn,
    Scaled,
    Serve,
    Serving,
    Stopping,
)
from shardnet.supervisor.crew import Crew
from shardnet.supervisor.events import (
    Event,
    Exited,
    Failed,
    ForkFailed,
    LameDuckAsked,
    Leaving,
    LoanRefused,
    Misspoke,
    Reason,
    RenewalFailed,
    Renewed,
)
from shardnet.supervisor.handover import ChildState, SupervisorState
from shardnet.supervisor.happenings import (
    Asked,
    ChildDumped,
    ChildExited,
    ChildMisspoke,
    ChildSaid,
    ClientAsked,
    Happening,
    OrphanReaped,
)
from shardnet.supervisor.ledger import Ledger
from shardnet.supervisor.lifecycle import Fleet
from shardnet.supervisor.lookout import Lookout
from shardnet.supervisor.meaning import event_of_message, event_of_signal
from shardnet.supervisor.orders import Patience
from shardnet.supervisor.requests import Requests
from shardnet.supervisor.signals import REOPEN_LOGS, STACKS
from shardnet.supervisor.stacks import Stacks
from shardnet.supervisor.steering import Steering
from shardnet.supervisor.system import System

__all__ = ["Supervisor", "SupervisorOptions"]

NANOSECONDS: Final = 1_000_000_000
# How often workers are looked at, and so how long a supervisor sleeps at most; `/livez` allows it a second, and more.
LOOK_S: Final = 0.1
LOOK_ALONE_S: Final = 1.0  # Where there is nobody to lend to.


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What a supervisor is told about its fleet."""

    shards: int
    drain_timeout_s: float = 30.0
    boot_timeout_s: float = 120.0
    drain_spread_s: float = 0.0
    hang_timeout_s: float = math.inf
    lifetime_s: float = math.inf
    memory_max_bytes: float = math.inf
    steering: str = "hash"  # As the setting of that name says.
    renews: bool = False  # Each reload starts with a new program.
    about: Mapping[str, object] = field(default_factory=dict)  # What operators are told of the server itself.


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
        self._crew = Crew(bank, board, run_worker, exporter, worker_fds)
        self._on_serving = on_serving
        self._renew = renew
        self._boot_timeout_s = options.boot_timeout_s
        self._log = get_logger("supervisor")
        self._say = self._log.info
        # How the log speaks of each living child.
        self._known: dict[int, dict[str, object]] = resumed.known if resumed else {}
        self._finish: Finish | None = None
        self._look_s = LOOK_S if bank.shards > 1 else LOOK_ALONE_S
        self._stacks = Stacks()
        self._fleet = Fleet(
            options.shards,
            Patience(
                options.boot_timeout_s,
                options.drain_timeout_s,
                options.drain_spread_s,
                lifetime_s=options.lifetime_s,
                memory_max_bytes=options.memory_max_bytes,
                hang_timeout_s=options.hang_timeout_s,
            ),
            shards_max=bank.shards,
            exporter=exporter is not None,
            random=random.random,
            renews=options.renews,
            lends=bool(bank.own_listeners(0)),
            state=resumed.fleet if resumed else None,
        )
        if resumed:
            self._ledger = Ledger.take_over(board, len(bank.addresses), resumed.rows)
            self._fleet.apply(RenewalFailed(*resumed.failure) if resumed.failure else Renewed(), system.now_s())
        else:
            first, names = self._fleet.generation, list(map(str, bank.addresses))
            self._ledger = Ledger.open(board, names, pid=os.getpid(), generation=first, started_ns=time.time_ns())

        self._steering = Steering(bank, options.steering, self._ledger.connections)
        weighs = options.memory_max_bytes < math.inf
        self._lookout = Lookout(system, bank, self._ledger, self._steering, weighs=weighs)
        self._requests = Requests(system, self._fleet, self._ledger, self._stacks, self._known, options.about)

    def state(self, children: tuple[ChildState, ...], signals: tuple[int, ...], lost_s: float) -> SupervisorState:
        """Everything that a supervisor in another program has to know to go on."""
        fleet, ledger = self._fleet.state(), self._ledger
        return SupervisorState(fleet, children, signals, self._known, ledger.rows, lost_s)

    def run(self) -> Finish:
        """Returns when every child is gone."""
        if (threads := threading.active_count()) > 1:
            self._log.warning("forking with threads alive, workers may deadlock", threads=threads)
        while self._finish is None:
            for happening in self._system.wait(self._wake_at_s()):
                self._apply(happening)
            if not self._fleet.stopping:
                now_s = self._system.now_s()
                for event in self._lookout.look(self._fleet.slots, now_s):
                    self._fleet.apply(event, now_s)
            actions = self._fleet.plan(self._system.now_s())
            # First, so that whoever is told that a shard serves finds it so on the board.
            fleet = self._fleet
            self._ledger.show(fleet.slots, fleet.generation, time.monotonic_ns(), lame_duck=fleet.lame_duck)
            for action in actions:
                self._perform(action)
            if not fleet.stopping:
                self._steering.refresh(fleet.slots, self._system.now_s())
        return self._finish

    def _wake_at_s(self) -> float:
        look_s = self._system.now_s() + self._look_s
        deadline_s = self._fleet.next_deadline_s()
        return look_s if deadline_s is None else min(deadline_s, look_s)

    # What has happened.

    def _apply(self, happening: Happening) -> None:
        event: Event | None = None
        match happening:
            case Asked(signum):
                event = self._asked(signum)
            case ChildDumped(child, text):
                self._stacks.heard_threads(child, text)
            case ChildSaid(child, Message(type="tasks", fields=fields)):
                self._stacks.heard_tasks(child, str(fields.get("text", "")))
            case ClientAsked(client, Message(type="board", id=asked)):
                with self._ledger.opened() as fds:
                    self._system.answer(client, asked, fds=fds)
            case ClientAsked(client, message):
                self._system.answer(client, message.id, **self._requests.answer(message))
            case ChildSaid(child, message):
                event = event_of_message(child, message)
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
        if event is not None:
            self._apply_event(event)

    def _apply_event(self, event: Event) -> None:
        match event:
            case Failed(child, _, _, detail):
                self._log.debug("worker failed", **self._who(child), detail=detail)
            case Leaving(child):
                self._ledger.count_restart(self._who(child).get("shard"), Reason.ASKED)
                self._log.info("worker leaving", **self._who(child))
            case LameDuckAsked(on):
                self._log.info("not ready" if on else "ready again", why="lame duck")
            case LoanRefused(child, loan, why):
                self._log.warning("loan refused", **self._who(child), loan=loan, why=why)
            case _:
                pass
        self._fleet.apply(event, self._system.now_s())

    def _asked(self, signum: int) -> Event | None:
        if signum in REOPEN_LOGS:
            self._reopen_logs()
            return None
        return event_of_signal(signum, self._fleet.shards)

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
            case Lend():
                self._lend(action)
            case GiveBack(child, loan):
                self._log.info("listeners taken back", loan=loan, borrower=self._who(child).get("shard"))
                self._system.tell(child, "give_back", loan=loan)
            case DumpStacks(child, silent_s):
                self._log.warning("worker hangs", **self._who(child), silent_s=silent_s)
                self._system.kill(child, STACKS)
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
            case Scaled(shards, before, shards_max):
                self._log.info("scaled", shards=shards, before=before, shards_max=shards_max)
            case Recycle(child, reason, why):
                self._ledger.count_restart(self._who(child).get("shard"), reason)
                self._log.info("recycling", **self._who(child), why=why)
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
        self._log.info("starting over")
        # Nobody is there to say that all is well while the new program imports the app.
        self._ledger.promise(time.monotonic_ns() + int(self._boot_timeout_s * NANOSECONDS))
        try:
            if self._renew is None:
                raise SystemFault("this supervisor cannot start over")
            self._renew()
        except SystemFault as exc:
            self._fleet.apply(RenewalFailed(str(exc), ""), self._system.now_s())

    def _tell_of_reload(self, action: ReloadBegan | Reloaded | ReloadFailed | ReloadWaits) -> None:
        match action:
            case ReloadBegan(generation):
                self._log.info("reload", generation=generation)
            case Reloaded(generation, took_s):
                self._ledger.count_reload("ok", time.time_ns(), self._fleet.slots)
                self._log.info("reloaded", generation=generation, took_s=took_s)
            case ReloadFailed(generation, why, detail):
                self._ledger.count_reload("failed", time.time_ns())
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
                pid = self._crew.fork_worker(self._system, fork, fork.shard, row, shard_count=self._fleet.shards)
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
        fields: dict[str, Any] = {
            "timeout_s": drain.timeout_s,
            "spread_s": drain.spread_s,
            "succeeded": drain.succeeded,
        }
        if not self._system.tell(drain.child, "drain", **fields):
            # Hung, or just gone; its deadline stands either way.
            self._log.warning("not listening", **self._who(drain.child))

    def _lend(self, lend: Lend) -> None:
        own = self._bank.own_listeners(lend.shard)
        fds = [sock.fileno() for sock in own.values()]
        if self._system.tell(lend.child, "lend", fds, loan=lend.loan, shard=lend.shard, addresses=list(own)):
            borrower = self._who(lend.child).get("shard")
            self._ledger.count_loan(lend.shard)
            self._log.info("listeners lent", shard=lend.shard, loan=lend.loan, borrower=borrower)
        else:
            self._apply_event(LoanRefused(lend.child, lend.loan, "it could not be sent"))

    def _bury(self, ended: Ended) -> None:
        extra: dict[str, object] = {"why": ended.trouble} if ended.trouble else {}
        say = self._say if ended.reason is None else self._log.error
        event = "exporter ended" if ended.shard is None else "worker ended"
        if (stacks := self._stacks.forget(ended.child)) and ended.reason is not None:
            self._log.error("last stacks", stacks, **self._who(ended.child))
        say(event, **self._who(ended.child), how=ended.ending, ran_s=ended.ran_s, **extra)
        self._known.pop(ended.child, None)
        if ended.reason is not None:
            self._ledger.count_restart(ended.shard, ended.reason)
        if lost := self._ledger.fold(ended.child):
            self._log.warning("board is full, counters lost", shard=ended.shard, counters=lost)

    def _who(self, child: int) -> dict[str, object]:
        return self._known.get(child, {})


def _place(shard: int | None) -> dict[str, object]:
    return {"role": "exporter"} if shard is None else {"shard": shard}
