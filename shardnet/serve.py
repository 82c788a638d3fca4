"""From settings to a running fleet: opens what the supervisor holds for life, and hands it over.

Lives here: wiring listeners, board, supervisor, workers and exporter together. Must not live here: where settings come
from and how errors are shown (see `cli`), anything that goes on after the start.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from shardnet import __version__
from shardnet.board import Board
from shardnet.config import OFF, Settings
from shardnet.cpus import usable_cpus
from shardnet.errors import AddressInUse, ExitCode, UsageError
from shardnet.filelimit import check_supervisor_fits, connections_within, raise_file_limit
from shardnet.holder import with_holder
from shardnet.listen import Address, ListenerBank, SocketOptions, open_metrics_listener, parse_address
from shardnet.log import get_logger, set_up
from shardnet.seats import ExporterSeat
from shardnet.supervisor.supervisor import SupervisorOptions, supervise
from shardnet.watcher import ENGINE
from shardnet.worker import WorkerOptions, run_worker

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def absolute(app_dir: Path) -> Path:
    """The folder's full path.

    Asked at the start, once: later the current directory may be gone, and a worker is forked at any time.
    """
    try:
        return app_dir.absolute()
    except OSError as exc:
        raise UsageError("the current directory is gone: change to another one, or give --app-dir DIR") from exc


def serve(app: str, settings: Settings, *, metrics_required: bool) -> ExitCode:
    """Serve `app` until asked to stop. `metrics_required`: somebody asked for the metrics address by name.

    Raises what `shardnet.errors` has for the user, when it cannot.
    """
    set_up("debug" if settings.debug else "info")
    log = get_logger("supervisor")
    shards = settings.workers or usable_cpus()
    file_limit = raise_file_limit()
    connections_max = connections_within(file_limit, settings.max_connections)
    if settings.max_connections is not None and connections_max < settings.max_connections:
        log.warning(
            f"file limit {file_limit} is low for --max-connections {settings.max_connections}: "
            f"each worker stops accepting at {connections_max}; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        )
    addresses = [parse_address(text) for text in settings.bind]
    check_supervisor_fits(file_limit, shards, len(addresses))
    app_dir = absolute(settings.app_dir)
    with contextlib.ExitStack() as opened:
        bank = ListenerBank.open(addresses, shards, SocketOptions(backlog=settings.backlog))
        opened.callback(bank.close)
        if bank.backlog_effective < settings.backlog:
            log.warning(
                f"the kernel cuts --backlog {settings.backlog} to {bank.backlog_effective}: "
                f"raise it with sysctl net.core.somaxconn={settings.backlog}"
            )
        metrics = _open_metrics(settings.metrics_bind, bank.addresses, required=metrics_required)
        if metrics is not None:
            opened.callback(metrics.close)
        board = Board.create(shards)
        options = WorkerOptions(
            app=app,
            app_dir=app_dir,
            listeners=tuple(map(str, bank.addresses)),
            connections_max=connections_max,
            swap_size_bytes=settings.swap_size_bytes,
            drain_timeout_s=settings.drain_timeout_s,
        )
        # Delivered while the supervisor runs, which unblocks them. Afterwards only the interpreter comes to its end: a
        # second Ctrl-C that is a little late would make that a death by signal, and the exit status wrong.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        return supervise(
            bank,
            board,
            SupervisorOptions(shards, settings.drain_timeout_s, settings.boot_timeout_s),
            partial(run_worker, options),
            _run_exporter,
            metrics,
            partial(_say_serving, app, bank, shards, metrics),
        )


def _open_metrics(text: str, served: Iterable[Address], *, required: bool) -> socket.socket | None:
    """The exporter's listener. A default address that is taken costs the metrics, not the service."""
    if text == OFF:
        return None
    address = parse_address(text)
    try:
        if any(ours.covers(address) or address.covers(ours) for ours in served):
            raise AddressInUse(f"address {address} is among those of --bind: give --metrics-bind another port")
        return open_metrics_listener(address)
    except AddressInUse as error:
        if required:
            raise
        get_logger("supervisor").warning(f"no metrics: {with_holder(error)}", hint="--metrics-bind HOST:PORT or off")
        return None


def _run_exporter(seat: ExporterSeat) -> int:
    # Imported in the exporter alone: what the supervisor imports, every worker pays for.
    from shardnet.exporter import run_exporter

    return run_exporter(seat, version=__version__, engine=ENGINE)


def _say_serving(app: str, bank: ListenerBank, shards: int, metrics: socket.socket | None) -> None:
    on = ", ".join(map(str, bank.addresses))
    noun = "shard" if shards == 1 else "shards"
    line = f"shardnet {__version__} serving {app} on {on}, {shards} {noun}, engine {ENGINE}"
    if metrics is not None:
        line += f", metrics on {Address(metrics.family, *metrics.getsockname()[:2])}"
    with contextlib.suppress(OSError):  # Whoever read the line is gone: serve all the same.
        print(line, flush=True)
