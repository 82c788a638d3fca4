"""The exporter's pages, over a board of known content; then the exporter as a process."""

from __future__ import annotations

import contextlib
import gzip
import http
import http.client
import json
import logging
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest

from shardnet.board import Board, Kind, Metric, Role, Row
from shardnet.catalogue.cells import (
    ShardCells,
    SupervisorCells,
    WorkerCells,
    declare_shard_metrics,
    declare_supervisor_metrics,
    declare_worker_metrics,
)
from shardnet.catalogue.families import CONNECTIONS_ACTIVE, EVERY, LISTEN_DROPS, LISTEN_OVERFLOWS, SHARD_STATES
from shardnet.control import ControlEndpoint, pair
from shardnet.exporter import processes
from shardnet.exporter.exporter import Exporter, run_exporter
from shardnet.exporter.http_pages import Request, Response
from shardnet.exporter.reception import CLIENTS_MAX
from shardnet.log import LogOptions, set_up
from shardnet.seats import ExporterSeat
from shardnet.watcher.counters import LOOP_TURNS

NS_PER_S = 1_000_000_000
LISTENER = "127.0.0.1:9000"
SHARDS = 3
OPENMETRICS = "application/openmetrics-text;version=1.0.0"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True)
class Scene:
    """A board as it is while a server of three shards runs."""

    board: Board
    supervisor: Row
    supervisor_cells: SupervisorCells
    workers: tuple[Row, ...]
    worker_cells: WorkerCells
    shard_cells: ShardCells

    def set_state(self, shard: int, state: str | None) -> None:
        for other in SHARD_STATES:
            self.board.shard_row(shard).counts[self.shard_cells.state(other)] = other == state


@pytest.fixture
def scene() -> Iterator[Scene]:
    board = Board.create(SHARDS)
    supervisor = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=0))
    supervisor_cells = declare_supervisor_metrics(supervisor)
    shard_cells = [declare_shard_metrics(board.shard_row(shard), [LISTENER]) for shard in range(SHARDS)]
    supervisor.counts[supervisor_cells.shards_configured] = SHARDS
    supervisor.counts[supervisor_cells.generation] = 1
    supervisor.values[supervisor_cells.start_time] = 1_700_000_000.25
    supervisor.beat(time.monotonic_ns())
    workers = []
    for shard in range(SHARDS):
        row = board.row(board.claim(Role.WORKER, shard, 1, shard + 1, started_ns=1_700_000_001 * NS_PER_S))
        cells = declare_worker_metrics(row, [LISTENER])
        for cell in range(cells.count):
            row.counts[cell] = 1000 * (shard + 1) + cell
        row.beat(time.monotonic_ns())
        row.publish_pid(100 + shard)
        workers.append(row)
    scene = Scene(board, supervisor, supervisor_cells, tuple(workers), cells, shard_cells[0])
    for shard in range(SHARDS):
        scene.set_state(shard, "serving")
    yield scene
    board.close()


def ask(scene: Scene, path: str, **headers: str) -> Response:
    exporter = Exporter(scene.board, version="1.2.3", engine="python")
    return exporter.respond(Request(path, {name.replace("_", "-"): value for name, value in headers.items()}))


def ask_json(scene: Scene, path: str) -> tuple[int, Any]:
    response = ask(scene, path)
    assert response.content_type == "application/json"
    return response.status, json.loads(response.body)


def samples(scene: Scene, accept: str = "") -> Samples:
    response = ask(scene, "/metrics", accept=accept)
    assert response.status == 200
    openmetrics = response.content_type.startswith("application/openmetrics-text")
    assert openmetrics == accept.startswith("application/openmetrics-text")
    parser = prometheus_client.openmetrics.parser if openmetrics else prometheus_client.parser
    found: Samples = {}
    for family in parser.text_string_to_metric_families(response.body.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: object) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"shardnet_{name}", frozenset((label, str(value)) for label, value in labels.items())


# /metrics


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4", OPENMETRICS])
def test_metrics_show_every_cell_of_the_board(scene: Scene, accept: str) -> None:
    found = samples(scene, accept)
    cells = scene.worker_cells
    for shard in range(SHARDS):
        of = 1000 * (shard + 1)
        assert found[key("completions_total", shard=shard, op="read", outcome="ok")] == of
        assert found[key("completions_total", shard=shard, op="timer", outcome="error")] == of + LOOP_TURNS - 1
        assert found[key("loop_turns_total", shard=shard)] == of + LOOP_TURNS
        assert found[key("received_bytes_total", shard=shard, listener=LISTENER)] == of + cells.traffic[0]
        assert found[key("handler_exceptions_total", shard=shard)] == of + cells.handler_exceptions
        assert found[key("connections_limit", shard=shard)] == of + cells.connections_limit
        assert found[key("shard_state", shard=shard, state="serving")] == 1
        assert found[key("shard_state", shard=shard, state="booting")] == 0
        assert found[key("shard_restarts_total", shard=shard, reason="signal")] == 0
    names = {name for name, _ in found}
    for metric in EVERY:
        if metric not in (LISTEN_OVERFLOWS, LISTEN_DROPS) and not metric.name.startswith("shardnet_process_"):
            assert names & {metric.name, f"{metric.name}_bucket"}, metric


def test_what_takes_long_to_count_is_counted_when_a_scrape_has_been_answered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WEIGH_S", 0.0)
    scene.supervisor.publish_pid(os.getpid())
    exporter = Exporter(scene.board, version="1.2.3", engine="python")

    def open_files() -> int:
        text = exporter.respond(Request("/metrics", {})).body.decode()
        found = re.search(r'^shardnet_process_open_fds\{shard="exporter"\} (\d+)$', text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    before = open_files()
    with open(os.devnull), open(os.devnull):  # noqa: PTH123
        assert open_files() == before
        exporter.afterwards()
        assert open_files() >= before + 2


def test_metrics_say_what_is_running_and_since_when(scene: Scene) -> None:
    found = samples(scene)
    build = key("build_info", version="1.2.3", python=platform.python_version(), engine="python")
    assert found[build] == 1
    assert found[key("shards_configured")] == SHARDS
    assert found[key("generation")] == 1
    assert found[key("supervisor_start_time_seconds")] == 1_700_000_000.25
    assert found[key("shard_start_time_seconds", shard=2)] == 1_700_000_001


def test_metrics_give_heartbeats_as_unix_time(scene: Scene) -> None:
    scene.workers[1].beat(time.monotonic_ns() - 3 * NS_PER_S)
    scene.workers[2].beat(0)
    found = samples(scene)
    assert found[key("shard_heartbeat_timestamp_seconds", shard=1)] == pytest.approx(time.time() - 3, abs=1)
    assert key("shard_heartbeat_timestamp_seconds", shard=2) not in found


def test_metrics_are_of_both_workers_while_one_succeeds_the_other(scene: Scene) -> None:
    board = scene.board
    row = board.row(board.claim(Role.WORKER, 0, 2, 99, started_ns=1_700_000_009 * NS_PER_S))
    declare_worker_metrics(row, [LISTENER])
    row.counts[0] = 7
    found = samples(scene)
    assert found[key("completions_total", shard=0, op="read", outcome="ok")] == 1007
    assert found[key("shard_start_time_seconds", shard=0)] == 1_700_000_009
    assert found[key("shard_heartbeat_timestamp_seconds", shard=0)] == pytest.approx(time.time(), abs=1)


def test_metrics_keep_the_counters_of_a_dead_worker_and_drop_its_gauges(scene: Scene) -> None:
    before = samples(scene)
    scene.board.fold(scene.workers[1].index)
    after = samples(scene)
    gone = {name for name, labels in before.keys() - after.keys()}
    lasting = ("_total", "_bucket", "_count", "_sum")
    assert all(after[of] == before[of] for of in before if of[0].endswith(lasting) and "process" not in of[0])
    assert gone == {
        "shardnet_connections_active",
        "shardnet_connections_limit",
        "shardnet_connections_paused",
        "shardnet_operations_pending",
        "shardnet_send_queue_bytes",
        "shardnet_shard_heartbeat_timestamp_seconds",
        "shardnet_shard_start_time_seconds",
        "shardnet_swap_buffer_capacity_bytes",
        "shardnet_swap_buffer_in_use_bytes",
        "shardnet_swap_buffer_in_use_peak_bytes",
    }


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_metrics_escape_what_users_write(scene: Scene, accept: str) -> None:
    nasty = 'back\\slash "quoted"\nnewline ünïcode'
    metric = Metric("test_level", Kind.GAUGE, nasty, ("what",), "f64")
    row = scene.workers[0]
    row.values[row.declare(metric, [(nasty,)])] = -0.5
    assert samples(scene, accept)[("test_level", frozenset({("shard", "0"), ("what", nasty)}))] == -0.5


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=zz", "text/plain;version=", ",;=", "\xff"])
def test_metrics_are_there_for_a_client_that_asks_for_nonsense(scene: Scene, accept: str) -> None:
    response = ask(scene, "/metrics", accept=accept)
    assert response.status == 200
    assert b"shardnet_loop_turns_total" in response.body


def test_metrics_are_compressed_for_those_who_take_it(scene: Scene) -> None:
    plain = ask(scene, "/metrics")
    packed = ask(scene, "/metrics", accept_encoding="deflate, gzip;q=0.5")
    assert ("Content-Encoding", "gzip") in packed.headers
    assert len(packed.body) < len(plain.body) / 4
    assert gzip.decompress(packed.body).splitlines()[0] == plain.body.splitlines()[0]
    for refused in ("gzip;q=0", "gzip; Q=0.0", "identity", "x-gzip"):
        assert ("Content-Encoding", "gzip") not in ask(scene, "/metrics", accept_encoding=refused).headers


# Health


def test_livez_goes_by_the_heartbeat_of_the_supervisor(scene: Scene) -> None:
    assert ask_json(scene, "/livez")[0] == 200
    scene.supervisor.beat(time.monotonic_ns() - 6 * NS_PER_S)
    status, details = ask_json(scene, "/livez")
    assert status == 503
    assert details["live"] is False
    assert details["supervisor_heartbeat_age_s"] == pytest.approx(6, abs=1)
    scene.supervisor.beat(0)
    assert ask_json(scene, "/livez") == (503, {"live": False, "supervisor_heartbeat_age_s": None})


def test_readyz_wants_one_shard_that_serves(scene: Scene) -> None:
    scene.set_state(0, "booting")
    scene.set_state(1, "backoff")
    assert ask_json(scene, "/readyz") == (
        200,
        {"ready": True, "shards_serving": 1, "shards_needed": 1, "shards_configured": 3, "lame_duck": False},
    )
    scene.set_state(2, "draining")
    status, details = ask_json(scene, "/readyz")
    assert (status, details["ready"], details["shards_serving"]) == (503, False, 0)


def test_healthz_shows_every_shard(scene: Scene) -> None:
    counts, cells = scene.board.shard_row(1).counts, scene.shard_cells
    counts[cells.restarts("crash")] = 2
    counts[cells.restarts("signal")] = 3
    counts[cells.restarts("reload")] = 4  # Which is nothing to worry about.
    scene.set_state(1, "backoff")
    scene.board.fold(scene.workers[1].index)
    scene.set_state(2, None)
    status, details = ask_json(scene, "/healthz")
    assert status == 200
    assert details["status"] == "degraded"
    assert details["generation"] == 1
    first, second, third = details["shards"]
    assert first.pop("heartbeat_age_s") < 5
    assert first.pop("uptime_s") > 0
    assert first == {"shard": 0, "state": "serving", "pid": 100, "generation": 1, "restarts": 0}
    assert second == {
        "shard": 1,
        "state": "backoff",
        "pid": None,
        "generation": None,
        "heartbeat_age_s": None,
        "uptime_s": None,
        "restarts": 5,
    }
    assert third["state"] == "vacant"


def test_healthz_shows_the_worker_whose_loop_turns(scene: Scene) -> None:
    board = scene.board
    successor = board.row(board.claim(Role.WORKER, 0, 1, 99, started_ns=0))
    successor.publish_pid(500)
    assert ask_json(scene, "/healthz")[1]["shards"][0]["pid"] == 100
    successor.beat(time.monotonic_ns())
    assert ask_json(scene, "/healthz")[1]["shards"][0]["pid"] == 500


def test_healthz_shows_no_worker_of_a_generation_that_does_not_serve_yet(scene: Scene) -> None:
    board = scene.board
    held = board.row(board.claim(Role.WORKER, 0, 2, 99, started_ns=0))
    held.publish_pid(500)
    held.beat(time.monotonic_ns())
    assert ask_json(scene, "/healthz")[1]["shards"][0]["pid"] == 100
    scene.supervisor.counts[scene.supervisor_cells.generation] = 2
    assert ask_json(scene, "/healthz")[1]["shards"][0]["pid"] == 500


@pytest.mark.parametrize("state", SHARD_STATES)
def test_healthz_knows_every_state(scene: Scene, state: str) -> None:
    scene.set_state(1, state)
    assert ask_json(scene, "/healthz")[1]["shards"][1]["state"] == state


def test_healthz_says_no_when_the_server_is_not_live_or_not_ready(scene: Scene) -> None:
    status, details = ask_json(scene, "/healthz")
    assert (status, details["status"]) == (200, "ok")
    scene.supervisor.beat(0)
    status, details = ask_json(scene, "/healthz")
    assert (status, details["status"]) == (503, "failing")
    scene.supervisor.beat(time.monotonic_ns())
    for shard in range(SHARDS):
        scene.set_state(shard, "draining")
    status, details = ask_json(scene, "/healthz")
    assert (status, details["status"]) == (503, "failing")


def test_exporter_names_its_pages_to_those_who_miss_them(scene: Scene) -> None:
    response = ask(scene, "/")
    assert response.status == 404
    assert b"/metrics /livez /readyz /healthz" in response.body


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/healthz"])
def test_exporter_says_so_when_the_board_cannot_be_read(scene: Scene, path: str) -> None:
    with scene.board._changing():
        response = ask(scene, path)
    assert response.status == 503
    assert b"is the supervisor stopped?" in response.body


# The process


@dataclass(frozen=True, slots=True)
class Process:
    """An exporter in a child of ours, and our end of its control channel."""

    pid: int
    port: int
    control: ControlEndpoint

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def ended(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The file that the exporter logs to."""
    handler = set_up(LogOptions(file=tmp_path / "log"))
    yield tmp_path / "log"
    logging.getLogger().removeHandler(handler)
    handler.close()


@pytest.fixture
def process(scene: Scene, log_file: Path) -> Iterator[Process]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            ours.close()
            code = run_exporter(ExporterSeat(listener, theirs, scene.board, 2), version="1.2.3", engine="python")
        finally:
            os._exit(code)
    theirs.close()
    port = listener.getsockname()[1]
    listener.close()
    yield Process(pid, port, ours)
    ours.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_exporter_serves_its_pages(process: Process, scene: Scene) -> None:
    status, body = process.get("/metrics")
    assert status == 200
    assert CONNECTIONS_ACTIVE.name.encode() in body
    for path in ("/livez", "/readyz", "/healthz"):
        status, body = process.get(path)
        assert status == 200
        assert json.loads(body)
    scene.workers[0].counts[0] += 1
    status, body = process.get("/metrics")
    assert b'shardnet_completions_total{op="read",outcome="ok",shard="0"} 1001\n' in body


def test_exporter_goes_when_told(process: Process) -> None:
    stays = socket.create_connection(("127.0.0.1", process.port))
    stays.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    assert stays.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    process.control.send("drain", timeout_s=3.0)
    while stays.recv(65536):
        pass
    stays.close()
    assert process.ended() == 0


def test_exporter_goes_when_the_supervisor_is_gone(process: Process) -> None:
    assert process.get("/livez")[0] == 200
    process.control.close()
    assert process.ended() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_exporter_leaves_signals_to_the_supervisor(process: Process, signum: signal.Signals) -> None:
    assert process.get("/livez")[0] == 200
    os.kill(process.pid, signum)
    assert process.get("/livez")[0] == 200


def test_exporter_ignores_what_it_does_not_know(process: Process) -> None:
    process.control.send("sing")
    assert process.get("/livez")[0] == 200


def test_exporter_opens_its_log_anew_when_told(process: Process, log_file: Path) -> None:
    assert process.get("/livez")[0] == 200
    log_file.unlink()
    process.control.send("reopen_logs")
    for _ in range(2):  # The first may have been read together with the message, and before it.
        assert process.get("/livez")[0] == 200
    assert log_file.exists()


def test_exporter_serves_others_while_a_hundred_clients_are_slow(process: Process) -> None:
    """Law: a slow client has a second, and costs nobody else anything."""
    address = ("127.0.0.1", process.port)
    slow = [socket.create_connection(address, timeout=10) for _ in range(100)]
    begun_s = time.monotonic()
    for client in slow:
        with contextlib.suppress(ConnectionError):  # It had to make room for another already.
            client.send(b"GET /metrics HTTP/1.1\r\nHost:")
    for _ in range(20):
        assert process.get("/metrics", **{"Accept-Encoding": "gzip"})[0] == 200
    for client in slow:
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
    assert time.monotonic() - begun_s < 5.0
    for client in slow:
        client.close()


def test_exporter_serves_more_clients_than_it_has_room_for_in_turn(process: Process) -> None:
    address = ("127.0.0.1", process.port)
    silent = [socket.create_connection(address, timeout=10) for _ in range(CLIENTS_MAX + 10)]
    assert process.get("/livez")[0] == 200
    for client in silent:
        client.close()
