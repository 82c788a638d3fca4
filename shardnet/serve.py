"""From settings to a running fleet: opens what the supervisor holds for life, and hands it over.

Lives here: wiring listeners, board, supervisor, workers and exporter together. Must not live here: where settings come
from and how errors are shown (see `cli`), anything that goes on after the start.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Never

from shardnet import __version__
from shardnet.board import LAYOUT_VERSION, Board
from shardnet.config import DASH, OFF, Settings
from shardnet.connection import Limits
from shardnet.cpus import cpus_to_pin_to, usable_cpus
from shardnet.errors import AddressInUse, AppError, ExitCode, SystemFault, UsageError
from shardnet.exposing import (
    FILES,
    address_of,
    check_exporter,
    exporter_main,
    exporter_options,
    open_metrics,
    warn_of_exposure,
)
from shardnet.filelimit import check_supervisor_fits, connections_within, raise_file_limit
from shardnet.listen import (
    HAND_OVER_VERSION,
    ListenerBank,
    SocketOptions,
    UnixAddress,
    parse_address,
)
from shardnet.log import LogOptions, get_logger, level, set_level, set_up
from shardnet.loop import HEARTBEAT_S
from shardnet.operatorsocket import OperatorSocket, default_name
from shardnet.preload import ImportStopped, Preloaded, preload
from shardnet.seats import WorkerSeat
from shardnet.sources import Watching, WatchOptions
from shardnet.supervisor.handover import SupervisorState, decode, encode, form
from shardnet.supervisor.kernel import check_kernel
from shardnet.supervisor.program import Program, handed_over
from shardnet.supervisor.signals import ASKED
from shardnet.supervisor.supervisor import SupervisorOptions, supervise
from shardnet.watcher import ENGINE
from shardnet.worker import WorkerOptions, run_worker

FIELDS_VERSION: Final = 2  # Of what `_Server.replace` hands over, as far as nobody below has a version for it.
HEARTBEATS_MIN: Final = 4  # That an idle worker has in a hang timeout.
THREADS_S: Final = 0.5  # For the end of a process that has threads which it did not want.


def absolute(app_dir: Path) -> Path:
    """The folder's full path.

    Asked at the start, once: later the current directory may be gone, and a worker is forked at any time.
    """
    try:
        return app_dir.absolute()
    except OSError as exc:
        raise UsageError("the current directory is gone: change to another one, or give --app-dir DIR") from exc


def serve(app: str, settings: Settings, *, metrics_required: bool, config: Path | None = None) -> ExitCode:
    """Serve `app` until asked to stop. Raises what `shardnet.errors` has for the user, when it cannot.

    Args:
        app: module:name.
        settings: All of them.
        metrics_required: Somebody asked for the metrics address by name.
        config: The file that settings were read from, if they were.
    """
    check_kernel()
    program = Program.own()
    set_up(_log_options(settings))
    log = get_logger("supervisor")
    shards, shards_max = _sizes(settings)
    file_limit = raise_file_limit()
    wanted = settings.max_connections if isinstance(settings.max_connections, int) else None
    connections_max = connections_within(file_limit, wanted)
    if wanted is not None and connections_max < wanted:
        log.warning(
            f"file limit {file_limit} is low for --max-connections {wanted}: "
            f"each worker stops accepting at {connections_max}; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        )
    addresses = [parse_address(text) for text in settings.bind]
    check_supervisor_fits(file_limit, shards_max, len(addresses))
    if (settings.unix_mode or settings.unix_owner) and not any(isinstance(one, UnixAddress) for one in addresses):
        log.warning("unix_mode and unix_owner have no effect: no address is unix:PATH")
    settings = _settled(app, settings, shards, shards_max, connections_max)
    check_exporter(settings, shards)
    watch = _watch(settings, config)
    with contextlib.ExitStack() as opened:
        watch.begin()
        opened.callback(watch.end)
        bank = ListenerBank.open(addresses, shards_max, _socket_options(settings))
        opened.callback(bank.close)
        granted = bank.backlog_effective
        if granted is not None and granted < settings.backlog:
            log.warning(
                f"the kernel cuts --backlog {settings.backlog} to {granted}: "
                f"raise it with sysctl net.core.somaxconn={settings.backlog}"
            )
        operators = _open_operators(app, settings)
        if operators is not None:
            opened.callback(operators.close)
        metrics = open_metrics(settings.metrics_bind, bank.addresses, required=metrics_required)
        if metrics is not None:
            opened.callback(metrics.close)
            warn_of_exposure(metrics, exporter_options(settings))
        try:
            preloaded = _preload_first(app, settings) if settings.preload else None
        except ImportStopped:
            log.info("stopped", why="asked to stop while importing the app")
            return ExitCode.OK
        board = Board.create(shards_max)
        return _Server(program, settings, config, bank, board, metrics, watch, operators).run(preloaded)


def resume_if_handed_over() -> ExitCode | None:
    """Go on serving, if that is what the program before this one in this process did, until asked to stop.

    To be called first of all. Returns None when there was no such program; raises as `serve` does.
    """
    handed = handed_over()
    if handed is None:
        return None
    program = Program.own()
    # Of another version, perhaps: what that has no more is forgotten, what is new has its default.
    known = Settings.__struct_fields__
    settings = Settings(**{name: _whole(value) for name, value in handed["settings"].items() if name in known})
    config = None if handed["config"] is None else Path(handed["config"])
    set_up(_log_options(settings))
    set_level(handed["log_level"])  # Since the start, an operator may have asked for another one.
    state = decode(handed["supervisor"])
    bank = ListenerBank.take_over(handed["bank"])
    board = Board.attach(handed["board"])
    metrics = None if handed["metrics"] is None else socket.socket(fileno=handed["metrics"])
    for fd in _child_fds(state) + ([metrics.fileno()] if metrics else []):
        os.set_inheritable(fd, False)
    watch = _watch(settings, config, handed["watch"])
    operators = OperatorSocket.take_over(handed["operators"]) if handed["operators"] else None
    server = _Server(program, settings, config, bank, board, metrics, watch, operators)
    with contextlib.ExitStack() as opened:
        if operators is not None:
            opened.callback(operators.close)
        opened.callback(bank.close)
        if metrics is not None:
            opened.callback(metrics.close)
        opened.callback(watch.end)
        preloaded = None
        if state.failure is None and settings.preload:
            try:
                preloaded = preload(server.app, Path(settings.app_dir), settings.boot_timeout_s)
            except AppError as error:
                state = replace(state, failure=(str(error), _detail(error)))
                # Once more, so that workers to come are not forked from what the import has left behind.
                with contextlib.suppress(SystemFault):
                    server.replace(state)
        return server.run(preloaded, state)


def handover_form() -> str:
    """What is handed over by `resume_if_handed_over`'s counterpart, as a word: see `supervisor.handover.form`."""
    return f"shardnet handover {form()} {HAND_OVER_VERSION} {LAYOUT_VERSION} {FIELDS_VERSION}"


def _preload_first(app: str, settings: Settings) -> Preloaded:
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)  # What is asked for while it imports can be done afterwards.
    try:
        return preload(app, Path(settings.app_dir), settings.boot_timeout_s)
    except AppError as error:
        # Threads that the import has started might not let the process end.
        status = ExitCode.OK if isinstance(error, ImportStopped) else ExitCode.APP
        give_up = threading.Timer(THREADS_S, os._exit, (status,))
        give_up.daemon = True
        give_up.start()
        raise


@dataclass(frozen=True, slots=True)
class _Server:
    """What a server holds for life; in whichever program, for a reload may start that over: it is the supervisor's
    `Renewal`."""

    program: Program
    settings: Settings  # Settled.
    config: Path | None
    bank: ListenerBank
    board: Board
    metrics: socket.socket | None
    watch: Watching
    operators: OperatorSocket | None

    @property
    def app(self) -> str:
        return str(self.settings.app)

    def run(self, preloaded: Preloaded | None, resumed: SupervisorState | None = None) -> ExitCode:
        """Serve until asked to stop."""
        settings, bank = self.settings, self.bank
        hang_timeout_s = _or_never(settings.hang_timeout_s)
        options = WorkerOptions(
            app=self.app,
            app_dir=Path(settings.app_dir),
            listeners=tuple(map(str, bank.addresses)),
            shared=bank.shared,
            connections_max=int(settings.max_connections),
            swap_size_bytes=settings.swap_size_bytes,
            drain_timeout_s=settings.drain_timeout_s,
            heartbeat_s=min(HEARTBEAT_S, hang_timeout_s / HEARTBEATS_MIN),
            limits=Limits(write_hard_bytes=settings.write_limit_bytes, write_stall_s=settings.write_stall_s),
            log=_log_options(settings),
            debug=settings.debug,
            slow_turn_s=_or_never(settings.slow_turn_s),
            cpus=cpus_to_pin_to() if settings.pin else (),
        )
        # Delivered while the supervisor runs, which unblocks them. Afterwards only the interpreter comes to its end: a
        # second Ctrl-C that is a little late would make that a death by signal, and the exit status wrong.
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
        return supervise(
            bank,
            self.board,
            SupervisorOptions(
                int(settings.workers),
                settings.drain_timeout_s,
                settings.boot_timeout_s,
                drain_spread_s=settings.drain_spread_s,
                hang_timeout_s=hang_timeout_s,
                lifetime_s=_or_never(settings.worker_lifetime_s),
                memory_max_bytes=_or_never(settings.worker_max_memory_bytes),
                steering=settings.steering,
                renews=settings.preload,
                about={
                    "name": self.operators.name if self.operators else "",
                    "app": self.app,
                    "version": __version__,
                    "engine": ENGINE,
                    "pid": os.getpid(),
                    "addresses": [str(address) for address in bank.addresses],
                    "ready_min_shards": settings.ready_min_shards,
                    "metrics": None if self.metrics is None else str(address_of(self.metrics)),
                },
            ),
            partial(_run_worker, options, preloaded),
            exporter_main(exporter_options(settings)),
            self.metrics,
            partial(_say_serving, self.app, bank, int(settings.workers), self.metrics),
            worker_fds=preloaded.descriptors if preloaded else (),
            operators=self.operators,
            renewal=self,
            resumed=resumed,
        )

    def prepare(self) -> None:
        self.program.check(handover_form())

    def replace(self, state: SupervisorState) -> Never:
        fds = [self.board.fd, *self.watch.fds, *(self.operators.fds if self.operators else ()), *_child_fds(state)]
        fields = {
            "watch": self.watch.fds,
            "settings": _fields(self.settings),
            "log_level": level(),
            "config": None if self.config is None else str(self.config),
            "bank": self.bank.hand_over(),
            "board": self.board.fd,
            "metrics": self.metrics and self.metrics.fileno(),
            "operators": self.operators and self.operators.hand_over(),
            "supervisor": encode(state),
        }
        try:
            self.program.replace(fields, fds + ([self.metrics.fileno()] if self.metrics else []))
        finally:
            self.bank.keep()


def _watch(settings: Settings, config: Path | None, fds: Sequence[int] = ()) -> Watching:
    options = WatchOptions(str(settings.app), Path(settings.app_dir), config) if settings.watch else None
    return Watching(options, fds)


def _or_never(limit: float | str) -> float:
    return math.inf if isinstance(limit, str) else limit


def _child_fds(state: SupervisorState) -> list[int]:
    return [fd for child in state.children for fd in (child.control_fd, child.stacks_fd)]


def _run_worker(options: WorkerOptions, preloaded: Preloaded | None, seat: WorkerSeat) -> int:
    return run_worker(options, seat, preloaded.enter_worker() if preloaded else None)


def _detail(error: AppError) -> str:
    return "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""


def _sizes(settings: Settings) -> tuple[int, int]:
    """How many shards are served at first, and may be at most."""
    cpus = usable_cpus()
    shards = settings.workers if isinstance(settings.workers, int) else cpus
    if not isinstance(settings.max_workers, int):
        return shards, max(shards, cpus)
    if isinstance(settings.workers, int) and shards > settings.max_workers:
        raise UsageError(f"--workers {shards} is more than --max-workers {settings.max_workers}: raise the latter")
    return min(shards, settings.max_workers), settings.max_workers


def _settled(app: str, settings: Settings, shards: int, shards_max: int, connections_max: int) -> Settings:
    """The same settings, no matter where and when they are looked at: a program that is started over does."""
    logs = [settings.log_file, settings.access_log]
    log_file, access_log = (one if one in (OFF, DASH) else str(Path(one).absolute()) for one in logs)
    files = {name: str(Path(path).absolute()) for name in FILES if (path := getattr(settings, name))}
    changes = files | {
        "app": app,
        "app_dir": str(absolute(Path(settings.app_dir))),
        "workers": shards,
        "max_workers": shards_max,
        "max_connections": connections_max,
        "log_file": log_file,
        "access_log": access_log,
    }
    return Settings(**(_fields(settings) | changes))


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def _whole(value: Any) -> Any:
    """A setting's value that has been JSON."""
    return tuple(value) if isinstance(value, list) else value


def _socket_options(settings: Settings) -> SocketOptions:
    mode = None if settings.unix_mode is None else int(settings.unix_mode, 8)
    return SocketOptions(backlog=settings.backlog, unix_mode=mode, unix_owner=settings.unix_owner)


def _log_options(settings: Settings) -> LogOptions:
    access_file = None if settings.access_log in (OFF, DASH) else Path(settings.access_log).absolute()
    return LogOptions(
        level="debug" if settings.debug else settings.log_level,
        format=settings.log_format,
        file=None if settings.log_file == DASH else Path(settings.log_file).absolute(),
        access_file=access_file,
        access=settings.access_log != OFF,
    )


def _open_operators(app: str, settings: Settings) -> OperatorSocket | None:
    """Where commands come in. Without it there are signals, and the service is not to suffer."""
    try:
        return OperatorSocket.open(settings.name or default_name(app), exact=settings.name is not None)
    except AddressInUse:
        raise
    except SystemFault as error:
        get_logger("supervisor").warning(f"no commands (shardnet status and others): {error}")
        return None


def _say_serving(app: str, bank: ListenerBank, shards: int, metrics: socket.socket | None) -> None:
    on = ", ".join(map(str, bank.addresses))
    noun = "shard" if shards == 1 else "shards"
    line = f"shardnet {__version__} serving {app} on {on}, {shards} {noun}, engine {ENGINE}"
    if metrics is not None:
        line += f", metrics on {address_of(metrics)}"
    with contextlib.suppress(OSError):  # Whoever read the line is gone: serve all the same.
        print(line, flush=True)
