"""`shardnet bench` from outside: against real servers, and against peers that do what they should not."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardnet.bench.clients import UNSENT_MAX_BYTES
from shardnet.cli import cli
from shardnet.errors import UsageError
from shardnet.testing.output import environment, run_command
from shardnet.testing.processes import stop_and_wait, wait_gone
from shardnet.testing.sharded import ShardedServer
from tests.bench_command_kit import (
    PATIENCE_S,
    PROJECT,
    Peer,
    Running,
    Silent,
    bench,
    echo,
    receive,
    wait_unread,
)

pytestmark = pytest.mark.process

WIDTH = 100
SIZE = 64
LOOPS = [[], ["--rate", "400"]]  # A closed loop, an open one.
LONG = ("--duration", "600", "--warmup", "0")
KEYS = {
    "target", "connections", "connections_opened", "processes", "size_bytes", "loop", "rate_wanted", "checked",
    "warmup_s", "duration_s", "elapsed_s", "messages", "messages_per_s", "bytes_per_s_each_way", "latency_us", "errors",
    "error_details", "messages_not_sent", "messages_sent_late", "sent_late_worst_us", "load_cpu_shares",
    "load_starved_shares", "load_processes_lost", "engine", "stopped_by_signal",
}  # fmt: skip


# Servers that do as they should.


def test_bench_of_real_servers_on_every_kind_of_address(tmp_path: Path) -> None:
    binds = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/s"]
    with ShardedServer("examples.echo:on_data", workers=1, binds=binds, app_dir=PROJECT) as server:
        (_, v4), (_, v6) = server.addresses
        for address in (f"127.0.0.1:{v4}", f"localhost:{v4}", f"[::1]:{v6}", f"unix:{tmp_path}/s"):
            for loop in LOOPS:
                report = bench(address, *loop, "--processes", "2")
                assert report["messages"] > 0
                assert report["errors"] == {}
                assert report["connections_opened"] == 4


def test_report_in_json_has_all_that_is_promised() -> None:
    with Peer(echo) as peer:
        report = bench(peer.address, "--size", "100")
    assert set(report) == KEYS
    assert (report["target"], report["size_bytes"], report["loop"], report["checked"]) == (
        peer.address,
        100,
        "closed",
        True,
    )
    percentiles = [report["latency_us"][key] for key in ("min", "p50", "p75", "p90", "p99", "p99_9", "p99_99", "max")]
    assert percentiles == sorted(percentiles)
    assert percentiles[0] > 0
    assert report["messages_per_s"] == pytest.approx(report["messages"] / report["elapsed_s"], rel=0.01)


def test_report_for_people_says_what_was_measured() -> None:
    with Peer(echo) as peer:
        finished = run_command("bench", peer.address, "--duration", "0.2", "--warmup", "0.1")
    assert finished.status == 0
    assert finished.stderr == ""  # No progress line where nobody sees it.
    lines = finished.stdout.splitlines()
    assert lines[0] == f"{peer.address}: 50 connections, closed loop, 64 bytes a message"
    assert re.match(r"messages +[\d,]+ in \d\.\d\d s: [\d,]+/s, ", lines[1])
    assert any(re.match(r" +99\.9 % +[\d.]+ (µs|ms|s)$", each) for each in lines)
    assert "errors    none" in lines


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
@pytest.mark.parametrize("size", [1, 65536, 300_000])
def test_message_of_any_size_comes_back(loop: list[str], size: int) -> None:
    with Peer(echo) as peer:
        report = bench(peer.address, *loop, "--size", str(size), "--timeout", "15")
    assert report["messages"] > 0
    assert report["errors"] == {}


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
def test_reply_in_pieces_is_one_reply(loop: list[str]) -> None:
    def in_pieces(conn: socket.socket, _number: int) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            data = receive(conn, SIZE)
            for start in range(0, SIZE, 20):
                conn.sendall(data[start : start + 20])

    with Peer(in_pieces) as peer:
        report = bench(peer.address, *loop)
    assert report["messages"] > 0
    assert report["errors"] == {}


def test_connections_are_shared_among_the_processes() -> None:
    with Peer(echo) as peer:
        report = bench(peer.address, "--connections", "5", "--processes", "3")
    assert (report["connections_opened"], peer.connections) == (5, 5)
    assert len(report["load_cpu_shares"]) == 3


@pytest.mark.parametrize("way", ["--text", "--payload", "stdin"])
def test_message_of_the_users_own_is_what_is_sent(tmp_path: Path, way: str) -> None:
    message = "grüß dich\n".encode()
    seen = []

    def note(conn: socket.socket, _number: int) -> None:
        while True:
            seen.append(receive(conn, len(message)))
            conn.sendall(seen[-1])

    file = tmp_path / "message"
    file.write_bytes(message)
    with Peer(note) as peer:
        if way == "stdin":
            command = [sys.executable, "-m", "shardnet", "bench", peer.address, "--payload", "-", "--duration", "0.2"]
            subprocess.run(command, input=message, check=True, capture_output=True, cwd=PROJECT, env=environment())
        else:
            bench(peer.address, way, message.decode() if way == "--text" else str(file))
    assert set(seen) == {message}


# Peers that do not.


def wrong(conn: socket.socket, _number: int) -> None:
    """The last byte of the fifth reply is not what was sent."""
    for count in itertools.count(1):
        data = receive(conn, SIZE)
        conn.sendall(data if count != 5 else data[:-1] + bytes([data[-1] ^ 1]))


def mixed_up() -> Peer:
    """Each of two connections gets what the other has sent."""
    meeting = threading.Barrier(2)
    messages: list[bytes] = [b"", b""]

    def cross(conn: socket.socket, number: int) -> None:
        messages[number] = receive(conn, SIZE)
        meeting.wait(PATIENCE_S)
        conn.sendall(messages[1 - number])
        receive(conn, SIZE)

    return Peer(cross)


def surplus(conn: socket.socket, _number: int) -> None:
    while True:
        conn.sendall(receive(conn, SIZE) + b"x")


def greeting(conn: socket.socket, number: int) -> None:
    conn.sendall(b"220 welcome\r\n")
    echo(conn, number)


def closing(conn: socket.socket, number: int) -> None:
    """Every other connection is closed after ten messages."""
    for _ in range(10):
        conn.sendall(receive(conn, SIZE))
    if number % 2:
        echo(conn, number)
        return
    conn.shutdown(socket.SHUT_WR)
    while conn.recv(SIZE):  # A close with unread bytes would be a reset.
        pass


def resetting(conn: socket.socket, _number: int) -> None:
    receive(conn, SIZE)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))


def silent(conn: socket.socket, _number: int) -> None:
    conn.sendall(receive(conn, SIZE))
    while conn.recv(SIZE):
        pass


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
@pytest.mark.parametrize(
    ("serve", "errors", "detail"),
    [
        (wrong, {"wrong_bytes": 4}, "at byte 63 of a reply"),
        (surplus, {"wrong_bytes": 4}, ""),
        (greeting, {"wrong_bytes": 4}, ""),
        (closing, {"closed": 2}, "the server closed the connection"),
        (resetting, {"reset": 4}, "Connection reset by peer"),
        (silent, {"timeout": 4}, "no reply within 0.2 s"),
    ],
)
def test_errors_are_counted_by_kind(loop: list[str], serve: object, errors: dict[str, int], detail: str) -> None:
    with Peer(serve) as peer:  # type: ignore[arg-type]
        report = bench(peer.address, *loop, "--timeout", "0.2" if serve is silent else "15", expect_status=1)
    assert report["errors"] == errors
    (kind,) = errors
    assert detail in report["error_details"][kind]


def test_server_that_mixes_up_its_connections_is_found_out() -> None:
    with mixed_up() as peer:
        report = bench(peer.address, "--connections", "2", expect_status=1)
    assert report["errors"] == {"wrong_bytes": 2}


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
def test_without_check_only_bytes_are_counted(loop: list[str]) -> None:
    with Peer(wrong) as peer:
        report = bench(peer.address, *loop, "--no-check", "--duration", "0.05")
        assert report["messages"] > 5
        assert report["checked"] is False
    with Peer(surplus) as peer:
        assert bench(peer.address, "--no-check", expect_status=1)["errors"] == {"wrong_bytes": 4}


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
def test_connections_that_are_left_go_on_when_others_are_closed(loop: list[str]) -> None:
    with Peer(closing) as peer:
        report = bench(peer.address, *loop, expect_status=1)
    assert report["messages"] > 4 * 10
    if loop:
        assert report["messages_not_sent"] > 0
        assert report["messages"] + report["messages_not_sent"] <= 120


# Getting connected.


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_server_that_is_not_there_is_said_in_one_line(tmp_path: Path, where: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens, and nobody else will.
        address = f"127.0.0.1:{taken.getsockname()[1]}" if where == "tcp" else f"unix:{tmp_path}/none"
        finished = run_command("bench", address, "--connections", "200", "--processes", "2")
        in_json = run_command("bench", address, "--json")
    why = "Connection refused" if where == "tcp" else "No such file or directory"
    line = f"shardnet: cannot connect to {address}: {why}: is the server running there?"
    assert (finished.status, finished.stdout, finished.stderr_lines) == (1, "", [line])
    assert (in_json.status, in_json.stderr_lines) == (1, [line])
    assert json.loads(in_json.stdout)["errors"] == {"refused": 50}


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_queue_of_connections_that_stays_full_times_out(tmp_path: Path, where: str) -> None:
    with Silent(unix_path=tmp_path / "s" if where == "unix" else None) as silent_peer:
        report = bench(silent_peer.address, "--connections", "8", "--timeout", "0.3", expect_status=1)
    assert report["errors"] == {"timeout": 8}
    assert report["connections_opened"] < 8


def test_queue_of_a_unix_socket_that_is_full_is_tried_again(tmp_path: Path) -> None:
    with Peer(echo, unix_path=tmp_path / "s", backlog=1) as peer:
        report = bench(peer.address, "--connections", "300")
    assert (report["connections_opened"], report["errors"]) == (300, {})


# The open loop.


def test_open_loop_sends_as_many_messages_as_are_due_and_records_those_after_the_warmup() -> None:
    seen = []

    def note(conn: socket.socket, _number: int) -> None:
        while True:
            seen.append(receive(conn, SIZE))
            conn.sendall(seen[-1])

    with Peer(note) as peer:
        report = bench(peer.address, "--rate", "500", "--warmup", "0.2", "--duration", "0.4")
    assert report["messages"] == pytest.approx(200, abs=1)
    assert len(seen) == pytest.approx(300, abs=1)
    assert (report["loop"], report["rate_wanted"], report["messages_not_sent"]) == ("open", 500.0, 0)


def test_rate_is_that_of_all_processes_together() -> None:
    with Peer(echo) as peer:
        report = bench(peer.address, "--rate", "500", "--duration", "0.4", "--connections", "5", "--processes", "3")
    assert report["messages"] == pytest.approx(200, abs=3)


def test_stall_of_the_server_shows_in_the_percentiles_of_an_open_loop() -> None:
    """The law of coordinated omission: messages go on being due while the server stalls, and have waited since then.

    The server reads nothing until 100 messages wait, which it would never see if the load waited for it. They are due
    5 ms apart, so that of the 300 in all at least 50 have waited for 250 ms or more.
    """

    def stall(conn: socket.socket, number: int) -> None:
        for _ in range(50):
            conn.sendall(receive(conn, SIZE))
        wait_unread(conn, 100 * SIZE)
        echo(conn, number)

    with Peer(stall) as peer:
        report = bench(peer.address, "--rate", "200", "--duration", "1.5", "--connections", "1")
    assert report["errors"] == {}
    assert report["messages"] == pytest.approx(300, abs=1)
    assert report["latency_us"]["p90"] >= 250_000
    assert report["latency_us"]["max"] >= 490_000


def test_server_that_does_not_read_gets_the_rest_later() -> None:
    """What is due piles up in the load, within a bound, and every message is sent and answered in the end.

    Of two connections one is read from only when the other has had nearly all of its messages, and as many are due on
    this one: 12 MiB, more than the kernel takes and a client keeps queued.
    """
    size, each = 65536, 200
    assert size * each > 32 * UNSENT_MAX_BYTES
    nearly_all = threading.Event()

    def serve(conn: socket.socket, number: int) -> None:
        if number == 0:
            assert nearly_all.wait(PATIENCE_S)
            echo(conn, number)
        for count in itertools.count(1):
            conn.sendall(receive(conn, size))
            if count == each - 5:
                nearly_all.set()

    with Peer(serve) as peer:
        report = bench(
            peer.address, "--rate", "800", "--size", str(size), "--duration", "0.5", "--connections", "2",
            "--timeout", "15",
        )  # fmt: skip
    assert report["errors"] == {}
    assert report["messages"] == pytest.approx(2 * each, abs=1)


# Ending early.


class Busy:
    """A peer that echoes and tells when it has had so many messages."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.reached = threading.Event()
        self.peer = Peer(self._serve)

    def _serve(self, conn: socket.socket, _number: int) -> None:
        while True:
            conn.sendall(receive(conn, SIZE))
            self._left -= 1
            if self._left <= 0:
                self.reached.set()


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_report_of_what_was_measured(signum: int, loop: list[str]) -> None:
    busy = Busy(300)
    with busy.peer, Running(busy.peer.address, *LONG, *loop, "--processes", "2", "--json") as running:
        assert busy.reached.wait(PATIENCE_S)
        os.killpg(running.process.pid, signum)  # As a terminal does: to the load processes as well.
        status, printed = running.end()
    report = json.loads(printed)
    assert (status, report["stopped_by_signal"]) == (128 + signum, signum)
    assert report["messages"] >= 300 - 50  # Each connection may have a reply under way
    assert report["errors"] == {}
    assert 0 < report["elapsed_s"] < 600


def test_second_signal_ends_load_processes_that_do_not_answer() -> None:
    busy = Busy(10)
    with busy.peer, Running(busy.peer.address, *LONG) as running:
        assert busy.reached.wait(PATIENCE_S)
        (load,) = running.load_pids
        stop_and_wait(load)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)
        status, printed = running.end()
    assert status in (128 + signal.SIGINT, 128 + signal.SIGTERM)  # Which the kernel gave it first.
    assert printed == ""


def test_load_process_that_is_killed_fails_the_run_and_the_others_go_on() -> None:
    busy = Busy(50)
    with busy.peer, Running(busy.peer.address, "--duration", "1", "--processes", "2", "--json") as running:
        assert busy.reached.wait(PATIENCE_S)
        os.kill(running.load_pids[0], signal.SIGKILL)
        status, printed = running.end()
    report = json.loads(printed)
    assert (status, report["load_processes_lost"]) == (1, ["ended by signal 9"])
    assert report["elapsed_s"] >= 1


def test_load_processes_end_when_their_starter_is_killed() -> None:
    busy = Busy(10)
    with busy.peer, Running(busy.peer.address, *LONG, "--processes", "2") as running:
        assert busy.reached.wait(PATIENCE_S)
        pids = running.load_pids
        assert len(pids) == 2
        running.process.kill()
        assert wait_gone(pids, PATIENCE_S) == []


# The terminal, the command line.


def test_progress_is_shown_on_a_terminal_and_erased() -> None:
    with Peer(echo) as peer:
        ours, theirs = pty.openpty()
        with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
            with open(theirs, "wb", buffering=0) as stderr:  # noqa: PTH123
                command = [
                    sys.executable,
                    "-m",
                    "shardnet",
                    "bench",
                    peer.address,
                    "--duration",
                    "0.8",
                    "--warmup",
                    "0",
                ]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=PROJECT)
            shown = b""
            try:
                while chunk := terminal.read(4096):
                    shown += chunk
            except OSError:  # EIO: nobody has the other end open any more.
                pass
            printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert re.search(rb"\r\x1b\[K\d\.\d s, 50 of 50 connections, [\d,]+ messages/s, p99 [\d.]+ \S+, 0 errors", shown)
    assert shown.endswith(b"\r\x1b[K")
    assert printed.startswith(peer.address.encode())
    assert b"\x1b" not in printed


def invoke(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(cli, ["bench", *arguments], standalone_mode=False).exception


def test_help_has_examples_and_exit_statuses() -> None:
    result = CliRunner().invoke(cli, ["bench", "--help"], prog_name="shardnet", terminal_width=WIDTH)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "  Examples:" in lines
    assert "Exit status:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere",), "has no port"),
        ((":9", "--connections", "0"), "--connections is 0: give 1 to 1,000,000"),
        ((":9", "--rate", "nan"), "--rate is nan"),
        ((":9", "--size", "0"), "--size is 0"),
        ((":9", "--text", ""), "--text is empty"),
    ],
)
def test_arguments_that_cannot_be_are_usage_errors(arguments: tuple[str, ...], text: str) -> None:
    error = invoke(*arguments)
    assert isinstance(error, UsageError)
    assert text in str(error)


def test_two_things_to_send_are_a_usage_error() -> None:
    finished = run_command("bench", ":9", "--text", "a", "--size", "3")
    assert finished.status == 2
    assert finished.stderr_lines == [
        "shardnet bench: --size, --payload and --text say what to send: give one of them; see shardnet bench --help"
    ]
