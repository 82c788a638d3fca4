"""The exporter: a child of the supervisor's that reads the board to whoever asks over HTTP.

It is a process of its own so that it answers while every worker is busy or dead, and so that rendering a scrape
takes no time from anybody. `/metrics` is for Prometheus, the others for probes and people.

It serves HTTP as any app of shardnet's serves anything: one handler, on a loop and an engine of its own, with limits.

Lives here: the pages, and the exporter's life. Must not live here: HTTP itself, formats, judgements, who is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gzip
import http
import json
import os
import platform
import signal
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from shardnet.app import Handler, Kind
from shardnet.board import Board
from shardnet.connection import Limits
from shardnet.control import ControlEndpoint
from shardnet.errors import ExitCode, SystemFault
from shardnet.exporter.access import Guard
from shardnet.exporter.collecting import Build, Collector
from shardnet.exporter.exposition import expose
from shardnet.exporter.health import Verdict, health, liveness, readiness
from shardnet.exporter.http_pages import HttpPages, Request, Response, plain
from shardnet.exporter.options import ExporterOptions, TlsFiles
from shardnet.exporter.reception import CLIENTS_MAX, Reception
from shardnet.exporter.renewed import Renewed
from shardnet.exporter.tls import load_context
from shardnet.log import Log, get_logger, reopen
from shardnet.loop import new_loop
from shardnet.seats import ExporterSeat
from shardnet.server import Server, private_cells
from shardnet.watcher.engine import Engine

__all__ = ["Exporter", "run_exporter"]

# A terminal, or an init that stops everything, sends these to all processes of a server; but the exporter is to show
# how the others drain, and goes when the supervisor says so.
LEFT_TO_THE_SUPERVISOR: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

SWAP_SIZE_BYTES: Final = 16 * 1024  # Requests are small.
LINGER_S: Final = 1.0  # For a client to notice that it has had everything.
DRAIN_MAX_S: Final = 0.5  # For answers under way at the end; the supervisor grants a second for everything.

GZIP_MIN_BYTES: Final = 1024  # Below that it saves no packet.
GZIP_LEVEL: Final = 1  # Metrics shrink to a tenth at any level.
DEFAULTS: Final = ExporterOptions()


class Exporter:
    """The pages over a board. `respond` is made for `HttpPages`."""

    def __init__(
        self, board: Board, *, version: str, engine: str, options: ExporterOptions = DEFAULTS, log: Log | None = None
    ) -> None:
        self._board = board
        self._collector = Collector(board, Build(version, platform.python_version(), engine), os.getpid())
        self._guard = Guard(options, log or get_logger("exporter"))
        self._ready_min_shards = options.ready_min_shards
        self._pages: dict[str, Callable[[Request], Response]] = {
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._healthz,
        }

    def respond(self, request: Request) -> Response:
        """The page that the request names."""
        page = self._pages.get(request.path)
        if page is None:
            return plain(http.HTTPStatus.NOT_FOUND, f"not here; there are {' '.join(self._pages)}")
        authorization = request.headers.get("authorization", "")
        if refusal := self._guard.refusal(request.path, authorization, certified=request.certified):
            status, text, challenge = refusal
            return plain(status, text, *([("WWW-Authenticate", challenge)] if challenge else ()))
        try:
            return page(request)
        except SystemFault as exc:  # The board cannot be read.
            return plain(http.HTTPStatus.SERVICE_UNAVAILABLE, str(exc))

    def _metrics(self, request: Request) -> Response:
        begun_s = time.monotonic()
        body, content_type = expose(self._collector.collect(), request.headers.get("accept", ""))
        headers = [("Vary", "Accept, Accept-Encoding")]
        if len(body) >= GZIP_MIN_BYTES and _takes_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        self._collector.note_scrape(time.monotonic() - begun_s)
        return Response(http.HTTPStatus.OK, content_type, body, tuple(headers))

    def afterwards(self) -> None:
        """An answer is with the kernel: do what need not be done while somebody waits."""
        self._collector.prepare()

    def _livez(self, _: Request) -> Response:
        return _json(liveness(self._board.snapshot(), time.monotonic_ns()))

    def _readyz(self, _: Request) -> Response:
        return _json(readiness(self._board.snapshot(), self._ready_min_shards))

    def _healthz(self, _: Request) -> Response:
        return _json(health(self._board.snapshot(), time.monotonic_ns(), time.time_ns(), self._ready_min_shards))


def run_exporter(seat: ExporterSeat, *, version: str, engine: str, options: ExporterOptions = DEFAULTS) -> int:
    """Serves the pages until told to stop, or the supervisor is gone; the process's exit status. To be called in the
    forked child."""
    for signum in LEFT_TO_THE_SUPERVISOR:
        signal.signal(signum, signal.SIG_IGN)
    faulthandler.enable(seat.stacks_fd)
    reopen()  # The log files: what the supervisor had open is closed here.
    log = get_logger("exporter", pid=os.getpid())
    exporter = Exporter(seat.board, version=version, engine=engine, options=options, log=log)
    reception = Reception(HttpPages(exporter.respond, exporter.afterwards), _certificates(options.tls, log), log)
    memory, cells = private_cells(listener_count=1)
    turns = Engine(SWAP_SIZE_BYTES, memory)
    loop = new_loop(turns)
    server = Server(
        turns,
        loop,
        Handler(Kind.CONN, reception.serve, on_connect=reception.on_connect),
        cells,
        log,
        connections_max=CLIENTS_MAX + 1,  # The last one in makes room.
        limits=Limits(linger_s=LINGER_S),
    )
    server.listen(seat.listener)
    try:
        loop.run_until_complete(_serve_until_told(server, seat.control))
    finally:
        loop.close()
        turns.close()
    return ExitCode.OK


def _certificates(files: TlsFiles | None, log: Log) -> Renewed[ssl.SSLContext] | None:
    if files is None:
        return None
    certificates = Renewed(files.paths, partial(load_context, files), log)
    certificates.value()  # So that what is wrong with them is said at the start.
    return certificates


async def _serve_until_told(server: Server, control: ControlEndpoint) -> None:
    told = asyncio.Event()

    def on_control() -> None:
        for message in control.receive():
            match message.type:
                case "drain":
                    told.set()
                case "reopen_logs":
                    reopen()
        if control.eof:
            told.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(control.fileno(), on_control)
    await told.wait()
    loop.remove_reader(control.fileno())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_MAX_S):
            await server.drain(DRAIN_MAX_S)


def _takes_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.split(","):
        coding, _, weight = offer.replace(" ", "").lower().partition(";")
        if coding == "gzip":
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _json(verdict: Verdict) -> Response:
    status = http.HTTPStatus.OK if verdict.ok else http.HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, "application/json", json.dumps(verdict.details).encode() + b"\n")
