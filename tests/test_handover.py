"""A supervisor's state as data, and a program that replaces itself in its process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import InternalError, SystemFault
from shardnet.supervisor.handover import ChildState, FleetState, SupervisorState, decode, encode
from shardnet.supervisor.program import VARIABLE, Program, handed_over
from shardnet.supervisor.slot import Loan, Pulse, Slot, State, Worker

PROJECT = Path(__file__).parent.parent


def a_state(failure: tuple[str, str] | None = None) -> SupervisorState:
    """One in which every field says something."""
    serving = Worker(7, State.SERVING, forked_s=1.5, generation=2, ready_s=2.5, asked=True, stuck=True)
    serving.pulse = Pulse(beat=1 << 60, turned_s=3.5, queued_s=4.5, stacks_asked_s=5.5)
    booting = Worker(9, State.BOOTING, forked_s=9.0, generation=2, kill_at_s=129.0, kill_why="boot timeout")
    draining = Worker(
        5, State.DRAINING, forked_s=0.5, generation=2, ready_s=0.75, asked=True, told=True, blamed=True, trouble="slow"
    )
    return SupervisorState(
        fleet=FleetState(
            generation=2,
            last_generation=4,
            last_child=9,
            reload_began_s=10.25,
            announced=True,
            lame_duck=True,
            failing_since_s=3.0,
            last_failure="shard 1: exit status 3",
            slots=(
                Slot(0, [serving, booting, draining], was_ready=True),
                Slot(1, [], failures=3, fork_at_s=11.5, loans=[Loan(4, 7, 8.5, answered=True)]),
            ),
            exporter=Slot(None, [Worker(3, State.SERVING, 0.0, 1, ready_s=0.0)]),
        ),
        children=(ChildState(7, 4711, 12, 13), ChildState(9, 4713, 15, 16)),
        signals=(signal.SIGTERM, signal.SIGHUP),
        known={7: {"shard": 0, "generation": 2, "pid": 4711}, 3: {"role": "exporter", "pid": 4700}},
        rows={7: 3, 9: 5},
        lost_s=2.25,
        failure=failure,
    )


@pytest.mark.parametrize("failure", [None, ("app:handler does not import", "Traceback…\udc80")])
def test_state_comes_back_from_json_as_it_was(failure: tuple[str, str] | None) -> None:
    state = a_state(failure)
    assert decode(json.loads(json.dumps(encode(state)))) == state
    assert state.fleet.slots[0].fork_at_s == -math.inf


def test_state_of_a_fleet_without_an_exporter_comes_back() -> None:
    state = a_state()
    fields = encode(state)
    fields["fleet"]["exporter"] = None
    assert decode(fields).fleet.exporter is None


@pytest.mark.parametrize(
    "change",
    [
        {"form": 0},
        {"fleet": {}},
        {"children": [{"pid": 1}]},
        {"rows": {"x": 1}},
        {"known": {"x": {}}},
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InternalError):
        decode(encode(a_state()) | change)


# The program.


def remember(fields: object) -> int:
    fd = os.memfd_create("test")
    os.write(fd, json.dumps(fields).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def test_nothing_is_handed_over_to_a_program_that_was_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert handed_over() is None


def test_state_is_handed_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(remember({"pid": os.getpid(), "state": {"a": 1}})))
    assert handed_over() == {"a": 1}
    assert VARIABLE not in os.environ
    assert handed_over() is None


def test_state_for_another_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(remember({"pid": os.getpid() + 1, "state": {}})))
    assert handed_over() is None


@pytest.mark.parametrize("text", ["", "x", "-1", "999999"])
def test_state_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InternalError):
        handed_over()


SELF_REPLACING = """
import os, signal, sys
from shardnet.supervisor.program import Program, handed_over
state = handed_over()
if state is None:
    pipe, other = os.pipe()
    program = Program.own()
    os.chdir("/")
    os.environ["CHANGED"] = "1"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    program.replace({"pid": os.getpid(), "pipe": pipe, "other": other}, [pipe])
is_open = [os.path.exists(f"/proc/self/fd/{state[name]}") for name in ("pipe", "other")]
print(state["pid"] == os.getpid(), is_open, os.getcwd(), os.environ.get("CHANGED"), *sys.argv[1:], *sys.warnoptions)
print(len(os.listdir("/proc/self/fd")), signal.sigpending())
"""


def test_program_starts_over_with_what_it_was_started_with(tmp_path: Path) -> None:
    """The pid, the descriptors that were named, pending signals; its arguments, folder and environment of the start."""
    script = tmp_path / "program.py"
    script.write_text(SELF_REPLACING)
    command = [sys.executable, "-W", "error", str(script), "one", "two words"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    first, second = said.splitlines()
    assert first == f"True [True, False] {tmp_path} None one two words error"
    assert second == "5 {<Signals.SIGTERM: 15>}"  # 0 to 2, the pipe, and the one that lists them.


def test_program_that_cannot_be_replaced_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reader, writer = os.pipe()
    before = sorted(Path("/proc/self/fd").iterdir())
    try:
        with pytest.raises(SystemFault, match="cannot start over: No such file or directory"):
            Program.own().replace({}, [reader, writer])
        assert not os.get_inheritable(reader)
        assert not os.get_inheritable(writer)
        assert sorted(Path("/proc/self/fd").iterdir()) == before
    finally:
        os.close(reader)
        os.close(writer)


def a_program(*arguments: str) -> Program:
    return Program(("-c", "print('shardnet 1.0')", *arguments), len(arguments), dict(os.environ), PROJECT)


def test_program_is_asked_whether_it_understands_this_one() -> None:
    a_program("run", "app:handler").check("shardnet 1.0")
    with pytest.raises(
        SystemFault, match=r"cannot take over from this one \(it says 'shardnet 1\.0', not 'shardnet 0\.9'"
    ):
        a_program("run").check("shardnet 0.9")


def test_program_that_does_not_start_is_found_out() -> None:
    broken = Program(("-c", "raise SystemExit(3)"), 0, dict(os.environ), PROJECT)
    with pytest.raises(SystemFault, match="does not start any more"):
        broken.check("shardnet 1.0")
