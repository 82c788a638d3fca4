"""HUP with --preload: the supervisor executes itself anew, in place, and nobody notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.procs import descriptors, private_bytes, wait_gone
from tests.harness.scrape import get_json
from tests.harness.server import ShardedServer, shardnet, wait_until
from tests.process.test_fds import audit, kinds
from tests.process.test_reload import APP, ENVIRONMENT, WAITING, assert_unnoticed, gate, generations
from tests.process.test_stop import Gate

__all__ = ["gate"]  # A fixture.

pytestmark = pytest.mark.process

RELOADS: Final = 5
IMPORTED: Final = "import sys\nprint('app imported', file=sys.stderr)\n"
ECHO: Final = """
async def handler(conn):
    await conn.send(b"hello\\n")
    async for data in conn:
        await conn.send(data)
"""
THREAD: Final = "import threading\nthreading.Thread(target=threading.Event().wait, daemon={daemon}).start()\n"


def write_app(folder: Path, version: str, first: str = IMPORTED) -> None:
    (folder / "versioned.py").write_text(first + APP.replace("VERSION", version))


def serve(folder: Path, *options: str, binds: tuple[str, ...] = ("127.0.0.1:0",), workers: int = 2) -> ShardedServer:
    """A server of the app in this folder, preloaded."""
    options = ("--app-dir", str(folder), "--preload", *options)
    return ShardedServer("versioned:handler", workers=workers, binds=binds, options=options, env=ENVIRONMENT)


def imports(server: ShardedServer) -> int:
    return server.output.lines("stderr").count("app imported")


def errors(server: ShardedServer) -> list[str]:
    return [line for line in server.output.lines("stderr") if "Z error " in line]


def test_reload_five_times_under_connecting_clients(tmp_path: Path) -> None:
    (tmp_path / "versioned.py").write_text(IMPORTED + ECHO)
    with serve(tmp_path, workers=4) as server:
        load = RunningLoad(
            server.load_addresses(), connections=48, messages=1, max_size_bytes=2000, greeting="hello\n",
            repeat=True, hang_s=25.0, deadline_s=55.0,
        )  # fmt: skip
        with load:
            load.wait_running()
            first = before = server.scrape()
            for number in range(1, RELOADS + 1):
                server.reload()
                now = server.scrape()
                assert now.went_backwards(before) == []
                assert now.total("generation") == number + 1
                before = now
            report = load.finish()
        assert_unnoticed(report)
        samples = server.wait_metrics(lambda now: now.total("connections_active") == 0)
        assert samples.total("connections_accepted_total") == report.established
        assert samples.total("reloads_total", outcome="ok") == RELOADS
        assert samples.unasked_restarts == 0
        assert samples.total("supervisor_start_time_seconds") == first.total("supervisor_start_time_seconds")
        assert imports(server) == 1 + RELOADS
        assert errors(server) == []


def test_old_connections_finish_on_the_old_code_and_new_ones_get_the_new(tmp_path: Path, gate: Gate) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, ExitStack() as stack:
        busy, idle = (stack.enter_context(Client(server.address)) for _ in range(2))
        assert busy.line() == idle.line() == b"version one"
        busy.send(b"%d\n" % gate.port)
        old = server.worker_pids()
        write_app(tmp_path, "number two")
        server.reload()
        assert idle.rest() == b""
        for _ in range(20):
            with Client(server.address) as client:
                assert client.line() == b"version number two"
        gate.open()
        assert busy.rest() == b"still one\n"
        assert wait_gone(old.values(), 10.0) == []


@pytest.mark.fault("F13")
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("import nothing_of_this_name\n", "importing versioned raised ModuleNotFoundError"),
        (THREAD.format(daemon=True), "importing it started a thread"),
        (THREAD.format(daemon=False), "importing it started a thread"),
    ],
    ids=["import", "daemon thread", "thread"],
)
def test_new_code_that_cannot_be_preloaded_is_one_line_and_the_old_serves_on(
    tmp_path: Path, broken: str, why: str
) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, Client(server.address) as early:
        assert early.line() == b"version one"
        old = server.wait_serving()
        write_app(tmp_path, "broken", broken)
        server.signal(signal.SIGHUP)
        server.output.wait(f"reload failed: .*{why}.*, generation 1 keeps serving", 10.0)
        samples = server.wait_metrics(lambda now: now.total("reloads_total", outcome="failed") == 1)
        assert samples.total("generation") == 1
        assert server.wait_serving() == old
        assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1
        # The supervisor has nothing to fork from now: a worker that is to be replaced imports what there is by then.
        write_app(tmp_path, "three")
        server.kill(0)
        server.wait_shards(lambda shards: shards[0].state == "serving" and shards[0].pid != old[0])
        found = set()
        for _ in range(50):
            with Client(server.address) as client:
                found.add(client.line())
        assert found == {b"version one", b"version three"}
        write_app(tmp_path, "number four")
        new = server.reload()
        assert early.rest() == b""
        assert wait_gone(old.values(), 10.0) == []
        wait_until(lambda: generations(server) == {2})
        assert server.worker_pids() == new
        for _ in range(10):
            with Client(server.address) as client:
                assert client.line() == b"version number four"
        assert len([line for line in errors(server) if "worker ended" not in line]) == 1


@pytest.mark.fault("F68")
@pytest.mark.parametrize("daemon", [False, True])
def test_app_that_starts_threads_cannot_be_preloaded(tmp_path: Path, daemon: bool) -> None:
    write_app(tmp_path, "one", THREAD.format(daemon=daemon))
    command = ["run", "versioned:handler", "--app-dir", str(tmp_path), "--bind", "127.0.0.1:0", "--metrics-bind", "off"]
    finished = shardnet(*command, "--preload")
    assert finished.status == 4
    assert finished.stderr_lines == [
        "shardnet: versioned:handler: importing it started a thread, so that no worker can be forked from it: "
        "start them in a lifespan, or go without --preload"
    ]


def test_app_that_cannot_be_imported_is_one_line_and_status_4(tmp_path: Path) -> None:
    finished = shardnet("run", "nowhere:handler", "--app-dir", str(tmp_path), "--bind", "127.0.0.1:0", "--preload")
    assert finished.status == 4
    assert len(finished.stderr_lines) == 1
    assert "there is no module 'nowhere'" in finished.stderr


def test_every_process_holds_exactly_its_own_descriptors_after_reloads(tmp_path: Path) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path, workers=4, binds=("127.0.0.1:0", "127.0.0.1:0")) as server:
        ports = [port for _, port in server.addresses]
        listeners = audit(server, server.wait_serving(), ports)
        before = kinds(descriptors(server.pid))
        for _ in range(RELOADS):
            old = server.worker_pids()
            new = server.reload()
            assert wait_gone(old.values(), 10.0) == []
            wait_until(lambda: len(generations(server)) == 1)
            assert audit(server, new, ports) == listeners
        wait_until(lambda: kinds(descriptors(server.pid)) == before)


def test_unix_socket_outlives_the_program_and_goes_with_the_server(tmp_path: Path) -> None:
    write_app(tmp_path, "one")
    path = tmp_path / "socket"
    with serve(tmp_path, binds=("127.0.0.1:0", f"unix:{path}")) as server:
        before = path.stat().st_ino
        server.reload()
        assert path.stat().st_ino == before
        server.reload()
        assert path.stat().st_ino == before
    assert not path.exists()


@pytest.mark.parametrize("moment", ["at once", "before the new program", "in the import"])
def test_term_while_the_program_starts_over_is_not_lost(tmp_path: Path, gate: Gate, moment: str) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server, Client(server.address) as client:
        assert client.line() == b"version one"
        write_app(tmp_path, "two", "print('importing', flush=True)\n")
        server.signal(signal.SIGHUP)
        if moment == "before the new program":
            server.output.wait("starting over", 10.0)
        elif moment == "in the import":
            server.output.wait("^importing$", 10.0)
        server.signal(signal.SIGTERM)
        assert server.wait(20.0) == 0
        assert client.rest() == b""
        assert errors(server) == []


HANGING: Final = "import time\nprint('importing', flush=True)\ntime.sleep(100)\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_server_can_be_stopped_while_an_import_hangs(tmp_path: Path, signum: int) -> None:
    """The program that starts over had every signal blocked until its import was done. One that hung, on a database
    that was away, made a server of it that only KILL could stop."""
    write_app(tmp_path, "one")
    path = tmp_path / "socket"
    with serve(tmp_path, binds=("127.0.0.1:0", f"unix:{path}")) as server:
        write_app(tmp_path, "two", HANGING)
        server.signal(signal.SIGHUP)
        server.output.wait("^importing$", 10.0)
        server.signal(signum)
        assert server.wait(20.0) == 0
        assert errors(server) == []
    assert not path.exists()


def test_import_that_hangs_is_cut_at_the_boot_timeout_and_the_old_serves_on(tmp_path: Path) -> None:
    """A worker's import has a time limit. That of a preloaded app had none, and nobody was supervised meanwhile."""
    write_app(tmp_path, "one")
    with serve(tmp_path, "--boot-timeout", "1") as server:
        write_app(tmp_path, "two", HANGING)
        server.signal(signal.SIGHUP)
        server.output.wait("reload failed: .*importing it took longer than 1 s, .* generation 1 keeps serving", 20.0)
        with Client(server.address) as client:
            assert client.line() == b"version one"
        write_app(tmp_path, "three")
        server.reload()
        with Client(server.address) as client:
            assert client.line() == b"version three"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_import_can_be_stopped_and_takes_no_harm_from_other_signals(tmp_path: Path, signum: int) -> None:
    """HUP and USR1 killed a server that was importing its app, and TERM was no exit status 0."""
    write_app(tmp_path, "one", HANGING)
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "shardnet", "run", "versioned:handler", "--app-dir", str(tmp_path), "--preload"]
    command += ["--bind", f"unix:{path}", "--metrics-bind", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        for one in (signal.SIGHUP, signal.SIGUSR1, signum):
            process.send_signal(one)
        assert process.wait(20.0) == 0
        assert "asked to stop while importing the app" in process.stderr.read()
    assert not path.exists()


def test_what_the_import_executes_has_no_signal_blocked(tmp_path: Path) -> None:
    """Signals wait while the program starts over, and a blocked signal is inherited: a helper process that the app
    started at import could not be ended with TERM."""
    run_helper = (
        "import subprocess\nprint(subprocess.run(['grep', 'SigBlk', '/proc/self/status'], capture_output=True))\n"
    )
    write_app(tmp_path, "one", run_helper)
    with serve(tmp_path) as server:
        server.reload()
        found = [line for line in server.output.lines() if "SigBlk" in line]
        assert len(found) == 2
        assert all("SigBlk:\\t0000000000000000" in line for line in found)


def test_server_is_live_while_the_new_program_imports(tmp_path: Path, gate: Gate) -> None:
    """The supervisor is silent for as long as that takes, and has said so before."""
    write_app(tmp_path, "one")
    with serve(tmp_path) as server:
        write_app(tmp_path, "two", "print('importing', flush=True)\n" + WAITING.format(port=gate.port))
        server.signal(signal.SIGHUP)
        server.output.wait("^importing$", 10.0)
        status, details = get_json(server.metrics_address, "/livez")
        assert (status, details["supervisor_heartbeat_age_s"]) == (200, 0.0)
        with Client(server.address) as client:
            assert client.line() == b"version one"
        gate.open()
        server.output.wait('event="reloaded" generation=2', 10.0)
        server.wait_shards(lambda _: get_json(server.metrics_address, "/livez")[1]["supervisor_heartbeat_age_s"] > 0)


def test_worker_that_dies_while_the_program_starts_over_is_made_good(tmp_path: Path) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server:
        pid = server.wait_serving()[1]
        server.signal(signal.SIGHUP)
        server.output.wait("starting over", 10.0)
        os.kill(pid, signal.SIGKILL)
        server.output.wait('event="reloaded" generation=2', 20.0)
        samples = server.wait_metrics(lambda now: now.unasked_restarts == 1)
        assert samples.total("shard_restarts_total", shard=1, reason="signal") == 1
        wait_until(lambda: generations(server) == {2})


def test_killed_exporter_is_replaced_by_the_program_that_did_not_fork_it(tmp_path: Path) -> None:
    write_app(tmp_path, "one")
    with serve(tmp_path) as server:
        server.reload()
        wait_until(lambda: generations(server) == {2})
        server.wait_serving()
        exporter = server.exporter_pid()
        os.kill(exporter, signal.SIGKILL)
        assert wait_gone([exporter], 10.0) == []
        server.wait_serving()
        assert server.exporter_pid() != exporter
        assert server.scrape().total("generation") == 2


def test_what_the_import_opens_and_registers_belongs_to_the_workers(tmp_path: Path) -> None:
    """A worker closes all descriptors that it inherits, and forgets all exit functions, but not those of its app,
    though the supervisor has imported that; and there they are no business of the supervisor's."""
    app = """
import atexit, os
FILE = open(__file__, "rb")
PID = os.getpid()
atexit.register(lambda word: os.write(1, f"{word} {os.getpid() != PID}\\n".encode()), "bye")

async def handler(conn):
    FILE.seek(0)
    await conn.send(FILE.readline() + FILE.readline())
"""
    (tmp_path / "versioned.py").write_text(app)
    with serve(tmp_path) as server:
        for _ in range(2):
            with Client(server.address) as client:
                assert client.rest() == b"\nimport atexit, os\n"
            pids = server.worker_pids()
            assert [kinds(descriptors(pid))["file"] for pid in pids.values()] == [1, 1]
            server.reload()
        assert server.stop() == 0
        said = [line for line in server.output.lines("stdout") if line.startswith("bye")]
        assert Counter(said) == {"bye True": 6}


def test_memory_of_the_import_is_shared(tmp_path: Path) -> None:
    size = 300_000
    app = f"""
import gc
DATA = [[number] for number in range({size})]

async def handler(conn):
    gc.collect()
    await conn.send(b"%d" % len(DATA))
"""
    (tmp_path / "versioned.py").write_text(app)
    with serve(tmp_path, workers=1) as server:
        for _ in range(2):
            with Client(server.address) as client:
                assert int(client.rest()) == size
            [pid] = server.worker_pids().values()
            assert private_bytes(pid) < size * 50  # A list of one costs 64 and an entry of 8 bytes.
            server.reload()


@pytest.mark.fault("F11")
def test_settings_are_those_of_the_first_start(tmp_path: Path) -> None:
    """Neither the file nor the environment is read again: a reload changes the code, and nothing else."""
    write_app(tmp_path, "one")
    config = tmp_path / "server.toml"
    config.write_text("drain_timeout = 17\n")
    with serve(tmp_path, "--config", str(config)) as server:
        config.write_text("drain_timeout = 18\nnonsense = 1\n")
        server.reload()
        server.output.wait("timeout_s=17.000", 10.0)
        assert not [line for line in server.output.lines("stderr") if "timeout_s=18" in line]


def test_reload_works_when_the_folder_of_the_start_is_gone(tmp_path: Path) -> None:
    app_dir = tmp_path / "app"
    app_dir.mkdir()
    write_app(app_dir, "one", "import os\nos.chdir('/')\nos.environ['PATH'] = ''\n")
    with serve(app_dir) as server:
        server.reload()
        server.reload()
        with Client(server.address) as client:
            assert client.line() == b"version one"
