"""A supervisor from outside: what it is given, and how it ends.

Lives here: the one call, and what it raises. Must not live here: what goes on meanwhile (see `loop`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from typing import Never, Protocol

from shardnet.board import Board
from shardnet.errors import AppError, ExitCode, SystemFault
from shardnet.listen import ListenerBank
from shardnet.operatorsocket import OperatorSocket
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.actions import Finish
from shardnet.supervisor.handover import SupervisorState
from shardnet.supervisor.loop import Supervisor, SupervisorOptions
from shardnet.supervisor.system import LinuxSystem

__all__ = ["NobodyServed", "Renewal", "Supervisor", "SupervisorOptions", "supervise"]


class NobodyServed(SystemFault):
    """Workers kept failing until nobody had served for a while."""


class Renewal(Protocol):
    """Starting this process's program over. Both raise `SystemFault` where it cannot be, with nothing changed."""

    def prepare(self) -> None:
        """Whatever takes time: signals are still heard."""
        ...

    def replace(self, state: SupervisorState) -> Never:
        """Execute the program anew, which is to call `supervise` with this state."""
        ...


def supervise(
    bank: ListenerBank,
    board: Board,
    options: SupervisorOptions,
    run_worker: Callable[[WorkerSeat], int],
    run_exporter: Callable[[ExporterSeat], int] | None = None,
    metrics_listener: socket.socket | None = None,
    on_serving: Callable[[], None] = lambda: None,
    *,
    worker_fds: Collection[int] = (),
    operators: OperatorSocket | None = None,
    renewal: Renewal | None = None,
    resumed: SupervisorState | None = None,
) -> ExitCode:
    """Keep one worker per shard running until somebody asks to stop (TERM, INT; QUIT: at once).

    HUP replaces all workers by new ones: see `reload`. A terminal that goes away sends it too, unless the server was
    started under nohup, which ignores it. USR1 reopens log files.

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
        worker_fds: Descriptors that workers keep besides those of their seats.
        operators: Where the commands of operators come in; it stays the caller's.
        renewal: How the program is started over, where a reload needs that.
        resumed: What the supervisor in the program before this one handed over to `renewal`; its children are ours.

    Returns:
        OK, when it was asked to stop.

    Raises:
        AppError: The app could not be loaded at the first start. Its notes (`__notes__`) hold the traceback.
        NobodyServed: Workers kept failing until nobody had served for a while.
    """
    system = _system(resumed, operators)

    def start_over() -> Never:
        assert renewal is not None
        renewal.prepare()
        try:
            renewal.replace(supervisor.state(*system.hand_over()))
        finally:
            system.keep()

    try:
        supervisor = Supervisor(
            system,
            bank,
            board,
            options,
            run_worker,
            (run_exporter, metrics_listener) if run_exporter and metrics_listener else None,
            on_serving,
            worker_fds=worker_fds,
            renew=start_over if renewal else None,
            resumed=resumed,
        )
        finish = supervisor.run()
    finally:
        system.close()
    return _result(finish)


def _result(finish: Finish) -> ExitCode:
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


def _system(resumed: SupervisorState | None, operators: OperatorSocket | None) -> LinuxSystem:
    if resumed is None:
        return LinuxSystem(operators=operators)
    return LinuxSystem(resumed.children, resumed.signals, resumed.lost_s, operators)
