"""The exporter: a child of the supervisor's that reads the board to whoever asks over HTTP.

It is a process of its own so that it answers while every worker is busy or dead, and so that rendering a scrape
takes no time from anybody. `/metrics` is for Prometheus, the others for probes and people.

It serves HTTP as any app of shardnet's serves anything: one handler, on a loop and an engine of its own, with limits.

Lives here: the pages, and the exporter's life. Must not live here: HTTP itself, formats, judgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http
import json
import os
import platform
import signal
import time
from collections.abc import Callable
from typing import Final

from shardnet.app import Handler, Kind
from shardnet.board import Board
from shardnet.control import ControlEndpoint
from shardnet.errors import ExitCode, SystemFault
from shardnet.exporter.exposition import Build, expose
from shardnet.exporter.health import Verdict, health, liveness, readiness
from shardnet.exporter.http_pages import HttpPages, Request, Response
from shardnet.log import get_logger, reopen
from shardnet.loop import new_loop
from shardnet.seats import ExporterSeat
from shardnet.server import Server, private_cells
from shardnet.watcher.engine import Engine

__all__ = ["Exporter", "run_exporter"]

# A terminal, or an init that stops everything, sends these to all processes of a server; but the exporter is to show
# how the others drain, and goes when the supervisor says so.
LEFT_TO_THE_SUPERVISOR: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)

CLIENTS_MAX: Final = 128  # The others wait in the backlog, for a second or so: see HttpPages.
SWAP_SIZE_BYTES: Final = 16 * 1024  # Requests are small.
DRAIN_MAX_S: Final = 0.5  # For answers under way at the end; the supervisor grants a second for everything.

READY_MIN_SHARDS: Final = 1
GZIP_MIN_BYTES: Final = 1024  # Below that it saves no packet.
GZIP_LEVEL: Final = 1  # Metrics shrink to a tenth at any level.


class Exporter:
    """The pages over a board. `respond` is made for `HttpPages`."""

    def __init__(self, board: Board, *, version: str, engine: str, ready_min_shards: int = READY_MIN_SHARDS) -> None:
        self._board = board
        self._build = Build(version=version, python=platform.python_version(), engine=engine)
        self._ready_min_shards = ready_min_shards
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
            return _text(http.HTTPStatus.NOT_FOUND, f"not here; there are {' '.join(self._pages)}")
        try:
            return page(request)
        except SystemFault as exc:  # The board cannot be read.
            return _text(http.HTTPStatus.SERVICE_UNAVAILABLE, str(exc))

    def _metrics(self, request: Request) -> Response:
        snapshot = self._board.snapshot()
        monotonic_zero_ns = time.time_ns() - time.monotonic_ns()
        accept = request.headers.get("accept", "")
        body, content_type = expose(snapshot, self._build, monotonic_zero_ns, accept)
        headers = [("Vary", "Accept, Accept-Encoding")]
        if len(body) >= GZIP_MIN_BYTES and _takes_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        return Response(http.HTTPStatus.OK, content_type, body, tuple(headers))

    def _livez(self, _: Request) -> Response:
        return _json(liveness(self._board.snapshot(), time.monotonic_ns()))

    def _readyz(self, _: Request) -> Response:
        return _json(readiness(self._board.snapshot(), self._ready_min_shards))

    def _healthz(self, _: Request) -> Response:
        return _json(health(self._board.snapshot(), time.monotonic_ns(), self._ready_min_shards))


def run_exporter(seat: ExporterSeat, *, version: str, engine: str) -> int:
    """Serves the pages until told to stop, or the supervisor is gone; the process's exit status. To be called in the
    forked child."""
    for signum in LEFT_TO_THE_SUPERVISOR:
        signal.signal(signum, signal.SIG_IGN)
    reopen()  # The log files: what the supervisor had open is closed here.
    exporter = Exporter(seat.board, version=version, engine=engine)
    memory, cells = private_cells(listener_count=1)
    turns = Engine(SWAP_SIZE_BYTES, memory)
    loop = new_loop(turns)
    server = Server(
        turns,
        loop,
        Handler(Kind.CONN, HttpPages(exporter.respond).serve),
        cells,
        get_logger("exporter", pid=os.getpid()),
        connections_max=CLIENTS_MAX,
    )
    server.listen(seat.listener)
    try:
        loop.run_until_complete(_serve_until_told(server, seat.control))
    finally:
        loop.close()
        turns.close()
    return ExitCode.OK


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


def _text(status: http.HTTPStatus, text: str) -> Response:
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode())
