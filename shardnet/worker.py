"""A worker: one process that serves one shard.

Lives here: the life of the process, from the fork to its exit, and its talk with the supervisor. Must not live here:
connections (see `server`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shardnet.app import Handler, load
from shardnet.control import Message
from shardnet.errors import AppError, ExitCode
from shardnet.log import get_logger
from shardnet.loop import new_loop
from shardnet.metrics import declare_worker_metrics
from shardnet.seats import WorkerSeat
from shardnet.server import Server
from shardnet.watcher import Watcher

ORPHAN_GRACE_S: Final = 2.0  # A worker whose supervisor is gone goes on accepting for so long, then drains.
TASKS_GRACE_S: Final = 0.3  # What cancelled tasks get at least, also when the drain has used up its time.
INTERNAL_ERRORS_MAX: Final = 100  # So many, and it is no accident: better a new worker.

# The terminal sends these to the whole process group; in a worker only the supervisor's word counts. A handler that
# does nothing, not SIG_IGN, because that one would be inherited by what the app executes.
LEFT_TO_THE_SUPERVISOR: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker of a server is told."""

    app: str  # module:name
    app_dir: Path
    listeners: tuple[str, ...]  # The addresses, as metrics show them, in the order of the seat's listeners.
    connections_max: int
    swap_size_bytes: int
    drain_timeout_s: float


def run_worker(options: WorkerOptions, seat: WorkerSeat) -> int:
    """Serve one shard until told to stop; the process's exit status. To be called in the forked child."""
    for signum in LEFT_TO_THE_SUPERVISOR:
        signal.signal(signum, lambda *_: None)
    try:
        handler = load(options.app, options.app_dir)
        worker = Worker(options, seat, handler)
    except AppError as error:
        detail = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        seat.control.send("failed", kind="app", message=str(error), detail=detail)
        return ExitCode.APP
    except Exception as error:
        message = f"worker could not start: {traceback.format_exception_only(error)[-1].strip()}"
        seat.control.send("failed", kind="boot", message=message, detail=traceback.format_exc())
        return ExitCode.FAILED
    # What importing made is here to stay: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return worker.run()


class Worker:
    """One worker process, past its imports."""

    def __init__(self, options: WorkerOptions, seat: WorkerSeat, handler: Handler) -> None:
        self._options = options
        self._seat = seat
        self._control = seat.control
        self._log = get_logger("worker", shard=seat.shard, pid=os.getpid())
        row = seat.board.row(seat.row)
        cells = declare_worker_metrics(row, options.listeners)
        self._watcher = Watcher(options.swap_size_bytes, row.counts)
        self._loop = new_loop(self._watcher, row.heartbeat)
        self._loop.set_exception_handler(self._on_loop_exception)
        asyncio.set_event_loop(self._loop)
        self._server = Server(
            self._watcher,
            self._loop,
            handler,
            cells,
            self._log,
            connections_max=options.connections_max,
            shard_id=seat.shard,
            shard_count=seat.shard_count,
            generation=seat.generation,
        )
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = False

    def run(self) -> int:
        """Serve until drained."""
        for sock in self._seat.listeners:
            self._server.listen(sock)
        self._loop.add_reader(self._control.fileno(), self._on_control)
        self._loop.add_signal_handler(signal.SIGTERM, self._on_term)
        self._seat.board.row(self._seat.row).beat(time.monotonic_ns())
        self._control.send("ready")
        internal_errors = 0
        while not self._stopped:
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
        self._loop.close()
        self._watcher.close()
        return ExitCode.OK

    # The supervisor's word.

    def _on_control(self) -> None:
        for message in self._control.receive():
            self._obey(message)
        if self._control.eof:
            self._loop.remove_reader(self._control.fileno())
            if self._stopping is None:
                self._log.warning("supervisor is gone", draining_in_s=ORPHAN_GRACE_S)
                self._loop.call_later(ORPHAN_GRACE_S, self._stop, self._options.drain_timeout_s)

    def _obey(self, message: Message) -> None:
        match message.type:
            case "drain":
                timeout_s = message.fields.get("timeout_s")
                self._stop(float(timeout_s) if isinstance(timeout_s, int | float) else self._options.drain_timeout_s)
            case _:
                self._log.warning("unknown control message", type=message.type)

    def _on_term(self) -> None:
        """Somebody wants this one worker gone: accept until the supervisor has found a successor."""
        if self._control.eof or self._control.send("leaving") is None:
            self._stop(self._options.drain_timeout_s)

    # The end.

    def _stop(self, timeout_s: float) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._drain_and_stop(timeout_s))

    async def _drain_and_stop(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        self._server.stop_accepting()
        for sock in self._seat.listeners:
            sock.close()
        await self._server.drain(timeout_s)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(TASKS_GRACE_S, deadline_s - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TASKS_GRACE_S):
                await self._loop.shutdown_asyncgens()
        self._stopped = True
        self._loop.stop()

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._log.error(str(context.get("message", "error in the event loop")), error)
