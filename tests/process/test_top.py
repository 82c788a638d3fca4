"""`shardnet top`: figures of a real server under load, in a real terminal."""

from __future__ import annotations

import json
import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest

from shardnet.asking import Server
from shardnet.board import Board
from tests.harness.client import Client
from tests.harness.loading import RunningLoad
from tests.harness.server import ShardedServer, shardnet
from tests.harness.terminal import Terminal

pytestmark = pytest.mark.process

NAME: Final = "watched"
TOP: Final = [sys.executable, "-m", "shardnet", "top", "--name", NAME]
QUICK: Final = ["--interval", "0.2"]


@contextmanager
def serving(workers: int = 2) -> Iterator[ShardedServer]:
    with ShardedServer("examples.echo:handler", workers=workers, options=["--name", NAME]) as server:
        server.wait_serving()
        yield server


@contextmanager
def loaded(workers: int = 2) -> Iterator[ShardedServer]:
    """A server whose clients talk all the while."""
    with serving(workers) as server:
        load = RunningLoad(
            server.load_addresses(), connections=16, messages=50, max_size_bytes=500, repeat=True, deadline_s=50.0
        )
        with load as running:
            running.wait_running()
            yield server
            running.finish()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, check=False, timeout=30)


def row(screen: list[str], shard: int | str) -> list[str]:
    """The cells of a shard's line; of all together, with `all`."""
    return next((cells for line in screen if (cells := line.split())[:1] == [str(shard)]), [])


# Once.


def test_once_shows_each_shard_and_all_together() -> None:
    with loaded() as server:
        said = run("--once", *QUICK)
        assert (said.returncode, said.stderr) == (0, "")
        who, what, empty, titles, *rows = said.stdout.splitlines()
        assert who.startswith(f"{NAME}: examples.echo:handler on 127.0.0.1:{server.address[1]}")
        assert what.startswith("ready, 2/2 shards serve, generation 1, up ")
        assert empty == ""
        assert titles.split()[:4] == ["shard", "state", "conns", "compl/s"]
        assert [line.split()[0] for line in rows] == ["0", "1", "all"]
        assert sum(int(line.split()[2]) for line in rows[:2]) == int(rows[2].split()[1]) > 0


def test_json_has_the_figures_with_their_units() -> None:
    with loaded():
        said: dict[str, Any] = json.loads(run("--json", *QUICK).stdout)
    assert (said["name"], said["shards_serving"], said["shards_configured"]) == (NAME, 2, 2)
    assert sum(shard["connections"] for shard in said["shards"]) > 0
    for shard in said["shards"]:
        assert shard["state"] == "serving"
        assert shard["completions_per_s"] > 0
        assert shard["received_bytes_per_s"] > 0
        assert 0 < shard["loop_use_ratio"] <= 1.1
        assert shard["loop_lag_p99_s"] > 0
        assert 0 < shard["swap_peak_ratio"] <= 1
        assert shard["accept_queue_capacity"] > 0
        assert shard["memory_bytes"] > 1 << 20
        assert shard["restarts"] == 0


def test_nobody_to_watch_is_told_in_one_line() -> None:
    for arguments in (["--once"], ["--json"]):
        said = run(*arguments)
        assert said.returncode == 6
        assert said.stderr.count("\n") == 1


def test_table_wants_a_terminal() -> None:
    with serving():
        said = run()
    assert said.returncode == 2
    assert "no terminal here: shardnet top --once prints the table, --json an object" in said.stderr


def test_board_that_is_handed_over_cannot_be_written_to() -> None:
    with serving():
        fd = Server(NAME).board()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0)
        for size in (0, 1 << 40):
            with pytest.raises(OSError, match="Invalid argument"):
                os.ftruncate(fd, size)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o400  # So that it is not opened anew to be written to.
        board = Board.attach(fd, readonly=True)
        row_ = board.row(board.snapshot().workers[0].row)
        with pytest.raises(TypeError, match="read-only"):
            row_.counts[0] = 1
        with pytest.raises(TypeError, match="read-only"):
            row_.beat(1)
        row_.release()
        board._rows.clear()
        board.close()


# In a terminal.


def test_table_is_live_and_leaves_the_terminal_as_it_was() -> None:
    with serving() as server, ExitStack() as stack, Terminal([*TOP, *QUICK]) as terminal:
        for _ in range(16):
            stack.enter_context(Client(server.address)).ask(b"hello")
        screen = terminal.wait(lambda screen: row(screen, "all")[1:2] == ["16"] and row(screen, 0)[3:4] != ["-"])
        assert screen[0].startswith(f"{NAME}: examples.echo:handler")
        assert max(map(len, screen)) <= 80
        assert len(screen) == 24
        assert "q quit" in screen[-1]
        with Client(server.address) as client:
            client.ask(b"one more")
            terminal.wait(lambda screen: row(screen, "all")[1:2] == ["17"])
        terminal.press("q")
        assert terminal.wait_over() == 0
        assert not any("q quit" in line for line in terminal.screen())


def test_columns_make_room_for_bars_and_go_when_it_is_narrow() -> None:
    with loaded(), Terminal([*TOP, *QUICK], columns=132, lines=40) as terminal:
        screen = terminal.wait(lambda screen: any("█" in line for line in screen))
        assert any("completions/s" in line for line in screen)
        terminal.resize(50, 10)
        screen = terminal.wait(lambda screen: len(screen) == 10 and any(line.endswith("lag99") for line in screen))
        assert not any("PSS" in line for line in screen)
        terminal.resize(80, 24)
        terminal.wait_text("PSS")
        terminal.press("C-c")
        assert terminal.wait_over() == 0


def test_shard_is_restarted_after_a_question() -> None:
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal:
        before = server.worker_pids()
        terminal.wait(lambda screen: row(screen, 1))
        terminal.press("Down")
        terminal.press("r")
        terminal.wait_text("restart shard 1? y: yes")
        terminal.press("n")
        terminal.wait_text("restart 1: not done")
        terminal.press("r")
        terminal.wait_text("restart shard 1? y: yes")
        terminal.press("y")
        terminal.wait_text("restart 1: asked for")
        server.wait_shards(lambda shards: shards[1].pid not in (before[1], None))
        assert server.worker_pids()[0] == before[0]
        terminal.press("q")
        assert terminal.wait_over() == 0


def test_shard_is_drained_and_comes_back() -> None:
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, 1))
        terminal.press("j", "d", "y")
        terminal.wait(lambda screen: row(screen, 1)[1:2] == ["vacant"])
        terminal.wait_text("1/2 shards serve")
        terminal.press("u", "y")
        terminal.wait(lambda screen: row(screen, 1)[1:2] == ["serving"])
        terminal.press("q")
        assert terminal.wait_over() == 0
        server.wait_serving()


def test_stacks_are_shown_in_their_own_pane() -> None:
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, 1))
        pid = server.worker_pids()[0]
        terminal.press("t")
        terminal.wait_text(f"shard 0, pid {pid}, threads:")
        terminal.press("Down", "x")
        terminal.wait(lambda screen: row(screen, "all"))
        terminal.press("q")
        assert terminal.wait_over() == 0


def test_rows_are_sorted_as_is_wished() -> None:
    with serving(workers=3) as server, Terminal([*TOP, *QUICK]) as terminal:
        clients = [Client(server.address) for _ in range(12)]
        for client in clients:
            client.ask(b"hello")
        terminal.wait(lambda screen: row(screen, "all")[1:2] == ["12"])
        terminal.press("s", "s")
        screen = terminal.wait_text("sort: conns")
        counts = [int(line.split()[2]) for line in screen[4:7]]
        assert counts == sorted(counts, reverse=True)
        terminal.press("S", "S")
        screen = terminal.wait_text("sort: shard")
        assert [line.split()[0] for line in screen[4:7]] == ["0", "1", "2"]
        for client in clients:
            client.close()
        terminal.press("q")
        assert terminal.wait_over() == 0


def test_server_that_goes_away_is_waited_for() -> None:
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, "all"))
        server.stop()
        terminal.wait_text("waiting for it")
        with serving(workers=3):
            terminal.wait(lambda screen: row(screen, 2)[1:2] == ["serving"])
            terminal.press("q")
            assert terminal.wait_over() == 0


def test_server_that_is_upgraded_is_watched_on() -> None:
    with serving(), Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, "all"))
        assert shardnet("upgrade", "--name", NAME).status == 0
        screen = terminal.wait_text("generation 2")
        assert row(screen, 1)[1:2] == ["serving"]
        terminal.press("q")
        assert terminal.wait_over() == 0


def test_table_is_live_and_keys_count_while_the_supervisor_is_stopped() -> None:
    """Once each look asked the supervisor for the board: a stopped one held up the screen, and all keys, for ten
    seconds each time."""
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal, Client(server.address) as client:
        client.ask(b"hello")
        terminal.wait(lambda screen: row(screen, "all")[1:2] == ["1"])
        server.signal(signal.SIGSTOP)
        try:
            with Client(server.address) as other:
                other.ask(b"hello")
                terminal.wait(lambda screen: row(screen, "all")[1:2] == ["2"])
            terminal.press("r", "y")
            terminal.wait_text("restart 0: asking")
            terminal.press("t")
            terminal.wait_text("stacks: not yet, the server has not answered")
            terminal.press("q")
            assert terminal.wait_over() == 0
        finally:
            server.signal(signal.SIGCONT)
        server.wait_serving()


def test_worker_that_is_stopped_is_shown_to_be() -> None:
    with serving() as server, Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, "all"))
        server.hang(0)
        terminal.press("t")
        screen = terminal.wait_text("nothing heard: it is stopped")
        assert any("not known: its event loop does not turn" in line for line in screen)
        terminal.press("x")
        terminal.wait(lambda screen: row(screen, 0)[1:2] == ["silent"])
        server.resume(0)
        terminal.wait(lambda screen: row(screen, 0)[1:2] == ["serving"])
        terminal.press("q")
        assert terminal.wait_over() == 0


def test_terminal_is_given_back_on_term() -> None:
    with serving(), Terminal([*TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, "all"))
        os.kill(terminal.program_pid("shardnet top"), signal.SIGTERM)
        assert terminal.wait_over() == 128 + signal.SIGTERM
        assert not row(terminal.screen(), "all")


@pytest.mark.parametrize("kind", ["vt100", "linux"])
def test_terminal_without_colours_or_a_cursor_to_hide_will_do(kind: str) -> None:
    with serving(), Terminal(["env", f"TERM={kind}", *TOP, *QUICK]) as terminal:
        terminal.wait(lambda screen: row(screen, 1)[1:2] == ["serving"])
        terminal.press("q")
        assert terminal.wait_over() == 0


@pytest.mark.parametrize("kind", ["none-such", "dumb"])
def test_terminal_that_cannot_be_drawn_on_is_said_in_one_line(kind: str) -> None:
    with serving(), Terminal(["env", f"TERM={kind}", *TOP]) as terminal:
        assert terminal.wait_over() == 1
        screen = terminal.screen()
        assert f"shardnet: no terminal that can be drawn on, TERM is '{kind}'" in screen[0]
        assert not any("Traceback" in line for line in screen)


def test_size_is_the_terminals_whatever_the_environment_says() -> None:
    with serving(), Terminal(["env", "COLUMNS=40", "LINES=9", *TOP, *QUICK]) as terminal:
        terminal.wait_text("PSS")
        terminal.press("q")
        assert terminal.wait_over() == 0
