"""A worker: one process that serves one shard.

Lives here: the life of the process, from the fork to its exit, and its talk with the supervisor. Must not live here:
connections (see `server`).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import math
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shardnet.app import Handler, load
from shardnet.catalogue.cells import declare_worker_metrics
from shardnet.connection import Limits
from shardnet.control import FDS_MAX, Message
from shardnet.errors import AppError, ExitCode, UsageError
from shardnet.garbage import count_collections
from shardnet.loans import Loans
from shardnet.log import LogOptions, access_log, get_logger, reopen, set_level
from shardnet.loop import HEARTBEAT_S, new_loop
from shardnet.metrics.registry import REGISTRY
from shardnet.seats import WorkerSeat
from shardnet.server import Server
from shardnet.slowturns import SlowTurns
from shardnet.tasks import tasks_text
from shardnet.watcher.engine import Engine
from shardnet.watcher.meter import Meter

ORPHAN_GRACE_S: Final = 2.0  # A worker whose supervisor is gone goes on accepting for so long, then drains.
# What the lifespan's end, and then cancelled tasks, get at least, also when the drain has used up its time.
END_GRACE_S: Final = 0.3
# A worker whose lifespan has failed under it makes room for a successor after so long. At once, a lifespan that always
# fails would have workers forked without a pause.
LIFESPAN_LOST_S: Final = 1.0
# A client that has connected, and whose first bytes are on the way, is not sent away for a successor's sake.
SILENT_S: Final = 1.0
INTERNAL_ERRORS_MAX: Final = 100  # So many, and it is no accident: better a new worker.

STACKS: Final = signal.SIGUSR2  # Asks a worker where all its threads stand.
# The terminal sends these to the whole process group; in a worker only the supervisor's word counts. A handler that
# does nothing, not SIG_IGN, because that one would be inherited by what the app executes.
LEFT_TO_THE_SUPERVISOR: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker of a server is told."""

    app: str  # module:name
    app_dir: Path
    listeners: tuple[str, ...]  # The addresses, as metrics show them, in the order of the seat's listeners.
    shared: tuple[bool, ...]  # Of each: whether all workers accept on the same one.
    connections_max: int
    swap_size_bytes: int
    drain_timeout_s: float
    heartbeat_s: float = HEARTBEAT_S
    limits: Limits = field(default_factory=Limits)
    log: LogOptions = field(default_factory=LogOptions)
    debug: bool = False
    slow_turn_s: float = math.inf
    cpus: tuple[int, ...] = ()  # Each worker is bound to one of these, by its shard; none: to none.


@dataclass(frozen=True, slots=True)
class Drain:
    """To come to an end within `timeout_s`; the ends of idle connections spread over `spread_s`.

    `succeeded`: another worker accepts on our listeners by now.
    """

    timeout_s: float
    spread_s: float = 0.0
    succeeded: bool = False


def run_worker(options: WorkerOptions, seat: WorkerSeat, preloaded: Handler | None = None) -> int:
    """Serve one shard until told to stop; the process's exit status. To be called in the forked child.

    `preloaded` is the app, where the supervisor has loaded it already.
    """
    reopen()  # Of the log files, only the names were inherited.
    for signum in LEFT_TO_THE_SUPERVISOR:
        signal.signal(signum, lambda *_: None)
    # Both in C: they speak also when the interpreter does not get to run. The supervisor logs what they say.
    faulthandler.enable(seat.stacks_fd)
    faulthandler.register(STACKS, seat.stacks_fd)
    try:
        return _prepare(options, seat, preloaded).run()
    except AppError as error:
        detail = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        seat.control.send("failed", kind="app", message=str(error), detail=detail)
        return ExitCode.APP
    except BootError as error:
        seat.control.send("failed", kind="boot", message=str(error), detail=error.detail)
        return ExitCode.FAILED


class BootError(Exception):
    """The worker could not be made, and the app is not why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"worker could not start: {traceback.format_exception_only(error)[-1].strip()}")
        self.detail = traceback.format_exc()


def _prepare(options: WorkerOptions, seat: WorkerSeat, preloaded: Handler | None) -> Worker:
    try:
        handler = preloaded or load(options.app, options.app_dir)
        worker = Worker(options, seat, handler)
    except AppError:
        raise
    except Exception as error:
        raise BootError(error) from error
    # What importing made is here to stay: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return worker


class Worker:
    """One worker process, past its imports."""

    def __init__(self, options: WorkerOptions, seat: WorkerSeat, handler: Handler) -> None:
        self._options = options
        self._seat = seat
        self._control = seat.control
        self._log = get_logger("worker", shard=seat.shard, generation=seat.generation, pid=os.getpid())
        row = seat.board.row(seat.row)
        cells = declare_worker_metrics(row, options.listeners)
        REGISTRY.bind(row)  # What the app has declared.
        self._engine = Engine(options.swap_size_bytes, row.counts)
        self._meter = self._engine.meter = Meter(row.counts)
        count_collections(row.counts, cells.gc_collections, cells.gc_pause)
        self._slow_turns = SlowTurns(self._meter, options.slow_turn_s, row.counts, cells.slow_turns, self._log)
        self._loop = new_loop(self._engine, row.heartbeat, options.heartbeat_s)
        self._loop.set_debug(options.debug)
        self._loop.set_exception_handler(self._on_loop_exception)
        asyncio.set_event_loop(self._loop)
        self._server = Server(
            self._engine,
            self._loop,
            handler,
            cells,
            self._log,
            connections_max=options.connections_max,
            limits=options.limits,
            shard_id=seat.shard,
            shard_count=seat.shard_count,
            generation=seat.generation,
            access_log=access_log(options.log, shard=seat.shard, generation=seat.generation),
        )
        self._loans = Loans(self._server, options.listeners)
        self._pin()
        # What the supervisor's word, or its silence, has decided; whoever waits for it waits for these.
        self._serve_told: asyncio.Future[None] = self._loop.create_future()
        self._drain_told: asyncio.Future[Drain] = self._loop.create_future()
        self._lifespan_begun: asyncio.Future[None] = self._loop.create_future()
        self._served = asyncio.Event()

    def _pin(self) -> None:
        if cpus := self._options.cpus:
            try:
                os.sched_setaffinity(0, {cpus[self._seat.shard % len(cpus)]})
            except OSError as error:  # Another limit has come since, or a filter of system calls.
                self._log.warning("not pinned", why=error.strerror)

    def run(self) -> int:
        """Serve until drained. Raises `AppError` when the app's lifespan does not begin."""
        life = self._loop.create_task(self._live())
        life.add_done_callback(lambda _: self._loop.stop())
        internal_errors = 0
        while not life.done():
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio lets these out of a task that raised them. The task is over; the worker goes on.
                self._log.error("task raised", error)
            except Exception as error:
                # A bug of ours, out of select(). What was being done is lost; thousands of connections need not be.
                self._log.error("internal error", error)
                internal_errors += 1
                if internal_errors > INTERNAL_ERRORS_MAX:
                    raise
        # asyncio closes what signals write to before it says so. Nobody is to be woken any more.
        signal.set_wakeup_fd(-1)
        self._loop.close()
        self._engine.close()
        life.result()
        return ExitCode.OK

    async def _live(self) -> None:
        """The worker's life: serving, and around it the app's lifespan. Raises `AppError` when that does not begin."""
        self._loop.add_reader(self._control.fileno(), self._on_control)
        lifespan = self._loop.create_task(self._keep_lifespan())
        await asyncio.wait((lifespan, self._lifespan_begun), return_when=asyncio.FIRST_COMPLETED)
        if not self._lifespan_begun.done():
            await self._end_tasks(time.monotonic())
            if lifespan.cancelled():
                raise AppError(f"{self._options.app}: the lifespan raised CancelledError")
            lifespan.result()
        lifespan.add_done_callback(self._on_lifespan_over)
        drain = await self._serve()
        deadline_s = time.monotonic() + drain.timeout_s
        await self._server.drain(drain.timeout_s, drain.spread_s, SILENT_S if drain.succeeded else 0.0)
        self._served.set()
        await asyncio.wait((lifespan,), timeout=max(END_GRACE_S, deadline_s - time.monotonic()))
        if not lifespan.done():
            self._log.warning("lifespan took too long to end")
        await self._end_tasks(deadline_s)

    async def _keep_lifespan(self) -> None:
        """A task of its own: what a lifespan enters it must leave in the same one, and if it entered a TaskGroup that
        fails, it is this task that is cancelled."""
        async with self._server.lifespan():
            self._lifespan_begun.set_result(None)
            await self._served.wait()

    def _on_lifespan_over(self, lifespan: asyncio.Task[None]) -> None:
        error = None if lifespan.cancelled() else lifespan.exception()
        if error is not None:
            self._log.error("lifespan raised", error)
        if not self._drain_told.done():
            self._log.error("lifespan has ended while serving", leaving_in_s=LIFESPAN_LOST_S)
            self._loop.call_later(LIFESPAN_LOST_S, self._on_term)

    async def _serve(self) -> Drain:
        """Serve until there is a reason to drain."""
        self._loop.add_signal_handler(signal.SIGTERM, self._on_term)
        self._seat.board.row(self._seat.row).beat(time.monotonic_ns())
        if self._seat.held:
            self._control.send("ready")
            await asyncio.wait((self._serve_told, self._drain_told), return_when=asyncio.FIRST_COMPLETED)
        if self._serve_told.done() or not self._drain_told.done():  # Both at once: what is queued is ours to serve.
            places = zip(self._seat.listeners, self._options.listeners, self._options.shared, strict=True)
            for address, (sock, name, shared) in enumerate(places):
                self._server.listen(sock, address, name, shared=shared)
            if not self._seat.held:
                self._control.send("ready")
        if self._options.slow_turn_s < math.inf:
            self._slow_turns.begin()
        drain = await self._drain_told
        self._server.stop_accepting(leave_queue=drain.succeeded)
        for sock in self._seat.listeners:
            sock.close()
        self._loans.close()
        return drain

    # The supervisor's word.

    def _on_control(self) -> None:
        for message in self._control.receive(fds_max=FDS_MAX):
            self._obey(message)
        if self._control.eof:
            self._loop.remove_reader(self._control.fileno())
            if not self._drain_told.done():
                self._log.warning("supervisor is gone", draining_in_s=ORPHAN_GRACE_S)
                self._loop.call_later(ORPHAN_GRACE_S, self._drain, Drain(self._options.drain_timeout_s))

    def _obey(self, message: Message) -> None:
        match message.type:
            case "serve":
                if not self._serve_told.done():
                    self._serve_told.set_result(None)
            case "drain":
                timeout_s = _seconds(message.fields.get("timeout_s"), self._options.drain_timeout_s)
                spread_s = _seconds(message.fields.get("spread_s"), 0.0)
                self._drain(Drain(timeout_s, spread_s, message.fields.get("succeeded") is True))
            case "lend" if not self._drain_told.done():
                type_, fields = self._loans.take(message)
                self._control.send(type_, **fields)
            case "lend":
                message.close_fds()  # The supervisor knows that we drain.
            case "give_back":
                self._loans.give_back(message.fields.get("loan"))
            case "reopen_logs":
                reopen()
            case "log_level":
                with contextlib.suppress(UsageError):
                    set_level(str(message.fields.get("level")))
            case "tasks":
                self._control.send("tasks", text=tasks_text(self._loop))
            case _:
                message.close_fds()
                self._log.warning("unknown control message", type=message.type)

    def _on_term(self) -> None:
        """Somebody wants this one worker gone: accept until the supervisor has found a successor."""
        if self._control.eof or self._control.send("leaving") is None:
            self._drain(Drain(self._options.drain_timeout_s))

    # The end.

    def _drain(self, drain: Drain) -> None:
        if not self._drain_told.done():
            self._drain_told.set_result(drain)

    async def _end_tasks(self, deadline_s: float) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(END_GRACE_S, deadline_s - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_GRACE_S):
                await self._loop.shutdown_asyncgens()

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._log.error(str(context.get("message", "error in the event loop")), error)


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
