"""Errors of real system calls, put there by strace, with nothing in between that could hide them.

The expressions are strace's: `when=1..2` is the first two calls, `when=1+3` the first and every third after it.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardnet.watcher import ENGINE
from tests.watcher.straced import PAIRS, ROUNDS, SIZE

ROOT = Path(__file__).resolve().parents[2]
EXHAUSTED = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]
POLLERS = ["epoll", "poll"]
WAITS = {"epoll": "?epoll_wait,?epoll_pwait", "poll": "?poll,?ppoll"}  # Which of them there is, the machine decides.
# What each build of the engine calls to receive, to send, and to send several pieces.
RECEIVE, SEND, SEND_MANY = {"python": ("readv", "write", "writev"), "compiled": ("recvfrom", "sendto", "sendmsg")}[
    ENGINE
]
READS_BEFORE = 2000  # More than the interpreter makes to start.
MESSAGES = 2 * PAIRS * ROUNDS
BYTES = PAIRS * (SIZE + sum(2 * (100 + number) for number in range(ROUNDS)) - 100)


@functools.cache
def strace() -> str:
    """The path of one that works here; skips the test where there is none."""
    found = shutil.which("strace", path=ROOT / ".tools") or shutil.which("strace")
    if found is None:
        pytest.skip("no strace on PATH, nor in .tools")
    tried = subprocess.run(
        [found, "-f", "-qq", "-o", "/dev/null", "-e", "trace=getppid", "-e", "inject=getppid:error=EPERM", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"strace may not trace here, or cannot inject: {tried.stderr.strip()[:200]}")
    return found


def run(
    tmp_path: Path, kind: str, poller: str, calls: str, what: str, reads_before: int = 0
) -> tuple[dict[str, Any], int]:
    """What the program said, and how many of its calls were tampered with."""
    log = tmp_path / "log"
    # Only what is traced is tampered with: `trace=none` would leave everything as it is.
    command = [strace(), "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]
    program = [sys.executable, "-W", "error", "-m", "tests.watcher.straced", kind, poller, f"{reads_before}"]
    ran = subprocess.run([*command, *program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    said: dict[str, Any] = json.loads(ran.stdout)
    return said, log.read_text().count("(INJECTED)")


def check(said: dict[str, Any], refused: dict[str, int]) -> None:
    """All bytes came, and everything that was asked was answered once."""
    assert said["exact"] == MESSAGES
    assert said["refused"] == refused
    counted = said["statistics"]
    assert (counted["received_bytes"], counted["sent_bytes"]) == (BYTES, BYTES)
    assert counted["submitted"] == counted["completed"]
    assert counted["completed_ok"] == 2 * PAIRS + 3 * MESSAGES + 1
    assert counted["completed_eof"] == PAIRS
    assert counted["completed_error"] == sum(refused.values())
    assert counted["completed_ok"] + counted["completed_eof"] + counted["completed_error"] == counted["completed"]
    assert (counted["pending"], counted["connections"], counted["connections_dropped"]) == (0, 0, 0)


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("error", EXHAUSTED)
@pytest.mark.fault("F28")
def test_accept_that_runs_out_is_told_and_loses_no_connection(tmp_path: Path, poller: str, error: str) -> None:
    said, injected = run(tmp_path, "watcher", poller, "accept4", f"error={error}:when=1..2")
    assert injected == 2
    check(said, {error: 2})


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("error", ["ECONNABORTED", "EPERM", "EINTR", "EPROTO"])
@pytest.mark.fault("F29")
def test_accept_of_what_died_meanwhile_is_tried_again_unseen(tmp_path: Path, poller: str, error: str) -> None:
    said, injected = run(tmp_path, "watcher", poller, "accept4", f"error={error}:when=1+2")
    assert injected >= PAIRS
    check(said, {})


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("error", EXHAUSTED)
def test_connect_without_a_socket_is_told(tmp_path: Path, poller: str, error: str) -> None:
    said, injected = run(tmp_path, "watcher", poller, "socket", f"error={error}:when=2..3")  # The first is to listen.
    assert injected == 2
    check(said, {error: 2})


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("error", ["EINTR", "EALREADY", "EINPROGRESS"])
def test_connect_that_is_not_done_at_once_is_asked_again(tmp_path: Path, poller: str, error: str) -> None:
    """The call that is tampered with is not made: it is the second that connects."""
    said, injected = run(tmp_path, "watcher", poller, "connect", f"error={error}:when=1+3")
    assert injected >= 2
    check(said, {})


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("call", [RECEIVE, SEND, "wait"])
def test_interrupted_calls_go_unseen(tmp_path: Path, poller: str, call: str) -> None:
    said, injected = run(tmp_path, "watcher", poller, WAITS[poller] if call == "wait" else call, "error=EINTR:when=1+3")
    assert injected > ROUNDS
    check(said, {})


@pytest.mark.parametrize("poller", POLLERS)
def test_interrupted_wake_up_goes_unseen(tmp_path: Path, poller: str) -> None:
    """Its read(2): the interpreter makes the same call to start, and its loader does not bear it."""
    when = f"when={READS_BEFORE + 1}+3"
    said, injected = run(tmp_path, "watcher", poller, "read", f"error=EINTR:{when}", READS_BEFORE)
    assert injected >= ROUNDS // 3
    check(said, {})


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("call", [RECEIVE, SEND, SEND_MANY, "wait"])
def test_interrupted_calls_of_hook_endpoints_go_unseen(tmp_path: Path, poller: str, call: str) -> None:
    said, injected = run(tmp_path, "engine", poller, WAITS[poller] if call == "wait" else call, "error=EINTR:when=1+3")
    assert injected >= 2
    assert said["exact"] == said["ends"] == PAIRS
    assert said["received"] == said["sent"] == PAIRS * SIZE
    assert said["writes"] == PAIRS * SIZE // 1000
