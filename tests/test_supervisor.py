"""Real supervisors, forks, signals and sockets; the workers are those of `supervised.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.catalogue.families import LOOP_TURNS, SHARD_RESTARTS, SHARD_STATE, SHARDS_CONFIGURED
from shardnet.listen import AddressHeld, ListenerBank, parse_address
from tests.supervising import Run, Supervised, fd_targets, running, value, wait_gone

pytestmark = pytest.mark.process


@pytest.fixture
def run() -> Iterator[Run]:
    with running() as start:
        yield start


# Starting and stopping.


def test_supervisor_starts_every_shard_and_stops_when_asked(run: Run) -> None:
    supervised = run("--shards", "3", "--exporter")
    workers = supervised.serving()
    assert sorted(workers) == [0, 1, 2]
    assert {(fact["shard_count"], fact["generation"]) for fact in workers.values()} == {(3, 1)}
    assert {fact["incarnation"] for fact in workers.values()} == {1, 2, 3}
    for shard, worker in workers.items():
        line = f'info supervisor event="worker ready" shard={shard} generation=1 pid={worker["pid"]} boot_s=0.'
        assert any(line in logged for logged in supervised.log)
    assert supervised.ask()["shard"] in workers
    assert supervised.stop() == 0
    supervised.logged('event="stopping" how=gracefully why="asked to stop"')
    supervised.logged('event="stopped"')
    # The exporter went last, when no worker had a row any more.
    assert supervised.fact("exporter told")["workers"] == 0


def test_every_log_line_is_a_log_line(run: Run) -> None:
    """Nothing warned, nothing was printed past the log."""
    supervised = run("--shards", "2", "--exporter")
    supervised.serving()
    supervised.stop()
    assert [line for line in supervised.log if " supervisor event=" not in line] == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_drains_what_is_queued(run: Run, signum: int) -> None:
    supervised = run()
    [worker] = supervised.serving().values()
    os.kill(worker["pid"], signal.SIGSTOP)
    queued = [socket.create_connection(("127.0.0.1", supervised.ports[0])) for _ in range(5)]
    supervised.signal(signum)
    supervised.logged('event="draining"', "timeout_s=30")
    for conn in queued:
        conn.sendall(b"hello")
    os.kill(worker["pid"], signal.SIGCONT)
    for conn in queued:
        with conn:
            assert json.loads(conn.makefile().readline())["pid"] == worker["pid"]
    assert supervised.end() == 0
    supervised.logged('event="worker ended"', 'how="exit status 0"')


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGQUIT]]
)
def test_stop_is_at_once_when_asked_twice_or_by_quit(run: Run, signals: list[int]) -> None:
    supervised = run("--shards", "2", "--exporter")
    workers = supervised.serving()
    for worker in workers.values():
        os.kill(worker["pid"], signal.SIGSTOP)  # None of them would ever drain.
    for signum in signals:
        supervised.signal(signum)
        supervised.logged('event="stopping"')
    assert supervised.end() == 0
    assert len([line for line in supervised.log if 'how="signal 9 SIGKILL"' in line]) == 3


def test_stop_kills_at_the_deadline(run: Run) -> None:
    supervised = run("--drain-timeout", "0.1")
    supervised.serving()
    supervised.ask("deaf")
    assert supervised.stop() == 0
    supervised.logged('event="killing"', "signal=SIGKILL", 'why="drain timeout"')
    supervised.logged('event="worker ended"', 'how="signal 9 SIGKILL"', 'why="drain timeout"')


def test_stop_ends_a_booting_worker_without_waiting_for_it(run: Run) -> None:
    supervised = run("--boot", "hang")
    supervised.fact("worker")
    assert supervised.stop() == 0
    supervised.logged('event="worker ended"', 'how="signal 15 SIGTERM"')


def test_stop_is_not_lost_in_a_storm_of_signals(run: Run) -> None:
    supervised = run()
    supervised.serving()
    for _ in range(5000):
        supervised.signal(signal.SIGCHLD)
    assert supervised.stop() == 0


def test_stop_is_not_lost_when_it_comes_in_the_middle_of_a_fork(run: Run) -> None:
    """Nor does the child take the supervisor's handler for its own: its TERM ends it."""
    supervised = run("--signal-forks")
    assert supervised.end() == 0
    supervised.logged('event="stopping"')
    supervised.logged('event="worker ended"', 'how="signal 15 SIGTERM"')
    assert supervised.said("worker") == []


def test_app_that_fails_at_the_first_start_is_one_error(run: Run) -> None:
    supervised = run("--shards", "3", "--exporter", "--boot", "app-fails")
    error = supervised.fact("error")
    assert supervised.end() == 1
    assert error["type"] == "AppError"
    assert error["text"] == "app:handler does not import"
    assert error["notes"] == ["Traceback: why"]
    assert [line for line in supervised.log if "Z debug supervisor " not in line] == []  # One line says it all.
    wait_gone([fact["pid"] for fact in supervised.said("worker")])
    with pytest.raises(ConnectionRefusedError):
        supervised.ask()


def test_second_instance_is_told_the_supervisors_pid(run: Run) -> None:
    supervised = run("--shards", "2")
    supervised.serving()
    with pytest.raises(AddressHeld) as caught:
        ListenerBank.open([parse_address(f"127.0.0.1:{supervised.ports[0]}")], 1)
    assert caught.value.holder_pid == supervised.process.pid
    assert supervised.ask()["pid"]


# Ends that nobody asked for.


def test_killed_worker_is_replaced_and_its_counters_live_on(run: Run) -> None:
    supervised = run()
    first = supervised.serving()[0]
    for _ in range(5):
        supervised.ask()
    os.kill(first["pid"], signal.SIGKILL)
    line = supervised.logged('error supervisor event="worker ended"', "shard=0", f"pid={first['pid']}")
    assert 'how="signal 9 SIGKILL"' in line
    assert "ran_s=" in line
    supervised.logged('event="respawn"', "shard=0", "in_s=0.000")
    supervised.logged('event="worker ready"', "shard=0")
    second = supervised.ask()
    assert second["pid"] != first["pid"]
    assert supervised.workers()[0]["incarnation"] == 2
    supervised.ask()  # The count of the connection before is now certain.
    assert value(supervised, LOOP_TURNS, shard="0") >= 6
    assert value(supervised, SHARD_RESTARTS, shard="0", reason="signal") == 1
    assert value(supervised, SHARD_RESTARTS, shard="0", reason="crash") == 0


@pytest.mark.parametrize("word", ["exit 0", "exit 3", "raise"])
def test_worker_that_exits_unasked_has_crashed(run: Run, word: str) -> None:
    supervised = run()
    supervised.serving()
    supervised.ask(word)
    status = {"exit 0": 0, "exit 3": 3, "raise": 1}[word]
    supervised.logged('error supervisor event="worker ended"', f'how="exit status {status}"')
    supervised.logged('event="worker ready"')
    assert value(supervised, SHARD_RESTARTS, shard="0", reason="crash") == 1
    assert supervised.stop() == 0
    assert any("RuntimeError: as told" in line for line in supervised.log) is (word == "raise")


def test_queued_connections_wait_for_the_successor(run: Run) -> None:
    supervised = run()
    first = supervised.serving()[0]
    os.kill(first["pid"], signal.SIGSTOP)
    queued = [socket.create_connection(("127.0.0.1", supervised.ports[0])) for _ in range(20)]
    os.kill(first["pid"], signal.SIGKILL)
    for conn in queued:
        with conn:
            conn.sendall(b"hello")
            assert json.loads(conn.makefile().readline())["pid"] != first["pid"]


def test_boot_timeout_kills(run: Run) -> None:
    supervised = run("--boot", "hang-first", "--boot-timeout", "0.1")
    supervised.logged('event="killing"', "signal=SIGKILL", 'why="boot timeout"')
    supervised.serving()
    assert value(supervised, SHARD_RESTARTS, shard="0", reason="crash") == 1


def test_crash_loop_of_one_shard_backs_off_while_the_other_serves(run: Run) -> None:
    supervised = run("--shards", "2", "--boot", "crash-first")
    supervised.serving()
    assert len([line for line in supervised.log if 'how="exit status 3"' in line]) == 2


def test_refused_fork_is_tried_again(run: Run) -> None:
    supervised = run("--forks-refused", "3")
    supervised.logged('error supervisor event="fork failed"', "shard=0", "Resource temporarily unavailable")
    supervised.serving()
    assert len([line for line in supervised.log if 'event="fork failed"' in line]) == 3
    assert supervised.ask()["shard"] == 0


def test_worker_that_cannot_be_watched_is_ended_and_tried_again(run: Run) -> None:
    supervised = run("--pidfds-refused", "2")
    workers = supervised.serving()
    assert len([line for line in supervised.log if 'event="fork failed"' in line and "Too many open" in line]) == 2
    children = Path(f"/proc/{supervised.process.pid}/task/{supervised.process.pid}/children").read_text().split()
    assert children == [str(workers[0]["pid"])]


@pytest.mark.fault("F34")
def test_worker_that_speaks_rubbish_is_replaced(run: Run) -> None:
    supervised = run()
    supervised.serving()
    supervised.ask("rubbish")
    supervised.logged('event="killing"', 'why="corrupt control messages"')
    supervised.logged('event="worker ready"')
    assert value(supervised, SHARD_RESTARTS, shard="0", reason="crash") == 1


def test_worker_that_is_sent_term_serves_until_its_successor_does(run: Run) -> None:
    supervised = run()
    first = supervised.serving()[0]
    os.kill(first["pid"], signal.SIGTERM)
    supervised.logged('event="worker leaving"', f"pid={first['pid']}")
    supervised.logged('event="worker ready"')
    supervised.logged('event="draining"', f"pid={first['pid']}")
    supervised.logged('info supervisor event="worker ended"', f"pid={first['pid']}", 'how="exit status 0"')
    assert supervised.ask()["pid"] != first["pid"]
    for reason in ("crash", "signal"):
        assert value(supervised, SHARD_RESTARTS, shard="0", reason=reason) == 0


def test_killed_exporter_is_replaced(run: Run) -> None:
    supervised = run("--exporter")
    supervised.serving()
    first = supervised.fact("exporter")
    os.kill(first["pid"], signal.SIGKILL)
    supervised.logged('event="exporter ended"', 'how="signal 9 SIGKILL"')
    assert supervised.fact("exporter")["pid"] != first["pid"]
    assert supervised.stop() == 0


def test_workers_drain_when_the_supervisor_is_killed(run: Run) -> None:
    """Each sees the end of its control channel: so no worker holds another's."""
    supervised = run("--shards", "4", "--exporter")
    workers = supervised.serving()
    exporter = supervised.fact("exporter")
    supervised.signal(signal.SIGKILL)
    supervised.end()
    wait_gone([exporter["pid"], *(worker["pid"] for worker in workers.values())])
    drained = supervised.said("drained")
    assert sorted(fact["shard"] for fact in drained) == [0, 1, 2, 3]
    assert all(fact["orphaned"] for fact in drained)
    ListenerBank.open([parse_address(f"127.0.0.1:{supervised.ports[0]}")], 1).close()


# Hygiene.


def audit(supervised: Supervised) -> None:
    """Each child has the standard streams and its seat, and no listener or channel has two owners among them."""
    owners: dict[str, int] = {}
    children = [*supervised.workers().values(), *supervised.said("exporter")]
    for child in children:
        targets = fd_targets(child["pid"])
        assert sorted(targets) == sorted({0, 1, 2, *child["fds"]}), f"{child}: {targets}"
        for fd in child["fds"]:
            assert targets[fd].startswith(("socket:", "pipe:", "/memfd:shardnet-board"))
            if targets[fd].startswith("socket:"):
                assert owners.setdefault(targets[fd], child["pid"]) == child["pid"]
    assert len(owners) == 4 * 3 + 2


def test_child_has_exactly_its_own_descriptors_also_after_a_respawn(run: Run) -> None:
    """An inherited listener that nobody reads would swallow its share of all clients."""
    supervised = run("--shards", "4", "--addresses", "2", "--exporter", "--stray-fds", "3")
    workers = supervised.serving()
    supervised.fact("exporter")
    audit(supervised)
    before = fd_targets(supervised.process.pid)
    for shard in (0, 3, 1):
        os.kill(workers[shard]["pid"], signal.SIGKILL)
        supervised.logged('event="worker ready"', f"shard={shard}")
    audit(supervised)
    assert len(fd_targets(supervised.process.pid)) == len(before)
    kept = {target for target in before.values() if target.startswith("socket:")}
    held = {target for child in supervised.workers().values() for target in fd_targets(child["pid"]).values()}
    assert len(kept & held) == 4 * 2  # The same listeners as before, each in the hands of its shard's worker.


def test_child_has_no_signal_blocked_and_the_defaults_back(run: Run) -> None:
    supervised = run()
    [worker] = supervised.serving().values()
    assert worker["signals_blocked"] == []
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{worker['pid']}/status").read_text().splitlines() if ":\t" in line
    )
    caught = int(status["SigCgt"], 16)
    ignored = int(status["SigIgn"], 16)
    assert caught == 1 << (signal.SIGTERM - 1)  # Its own.
    assert {s for s in signal.Signals if ignored >> (s - 1) & 1} >= {signal.SIGINT, signal.SIGHUP}


def test_supervisor_reaps_orphans(run: Run) -> None:
    supervised = run("--subreaper")
    supervised.serving()
    supervised.ask("orphan")
    orphan = supervised.fact("orphan")
    os.kill(orphan["pid"], signal.SIGKILL)
    supervised.logged("debug supervisor", 'event="orphan reaped"', f"pid={orphan['pid']}")
    with pytest.raises(ProcessLookupError):
        os.kill(orphan["pid"], 0)
    assert supervised.ask()["shard"] == 0


@pytest.mark.fault("F68")
def test_forking_with_threads_is_warned_of_once(run: Run) -> None:
    supervised = run("--shards", "2", "--thread", warnings="ignore")
    supervised.serving()
    supervised.stop()
    assert len([line for line in supervised.log if "threads alive" in line]) == 1


# The board.


def test_board_shows_states_and_configuration(run: Run) -> None:
    supervised = run("--shards", "2")
    workers = supervised.serving()
    board = supervised.board()
    try:
        snapshot = board.snapshot()
    finally:
        board.close()
    assert snapshot.value(SHARDS_CONFIGURED) == 2
    assert snapshot.supervisor is not None
    assert snapshot.supervisor.pid == supervised.process.pid
    assert [(o.shard, o.incarnation, o.pid) for o in snapshot.workers] == [
        (shard, workers[shard]["incarnation"], workers[shard]["pid"]) for shard in (0, 1)
    ]
    for shard in "01":
        states = {state: snapshot.value(SHARD_STATE, shard=shard, state=state) for state in ("serving", "booting")}
        assert states == {"serving": 1, "booting": 0}


def test_supervisor_beats_when_nothing_happens(run: Run) -> None:
    supervised = run()
    supervised.serving()
    board = supervised.board()
    try:
        [occupant] = [o for o in board.occupants() if o.pid == supervised.process.pid]
        first = latest = occupant.heartbeat_ns
        row = board.row(occupant.row)
        while latest == first:
            latest = row.heartbeat[0]
        assert latest - first < 2_000_000_000
        del row
    finally:
        board.close()
    assert supervised.stop() == 0
