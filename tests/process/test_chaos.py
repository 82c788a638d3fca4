"""`shardnet chaos` as a user runs it, and the loss harness of shardnet itself: a real server, hurt in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardnet.chaos import FAULTS
from shardnet.chaos.sockdiag import SockDiag
from shardnet.errors import SystemFault
from shardnet.testing.output import Output, environment
from shardnet.testing.processes import end_session, wait_gone
from tests.harness.server import PROJECT, shardnet, wait_until

pytestmark = pytest.mark.process

RUN_S = 300.0
ENDED_S = 60.0


@pytest.fixture(autouse=True)
def _needs_answers() -> None:
    try:
        with SockDiag():
            pass
    except SystemFault as exc:
        pytest.skip(str(exc))


def run(app: str, *flags: str, status: int = 0) -> dict[str, Any]:
    """The report of a run that ends by itself."""
    finished = shardnet("chaos", app, "--json", *flags, timeout_s=RUN_S)
    assert finished.status == status, finished
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


@contextmanager
def running(*flags: str) -> Iterator[tuple[subprocess.Popen[bytes], Output]]:
    """A run that the test ends; whoever is left is ended."""
    command = [sys.executable, "-m", "shardnet", "chaos", "examples.echo:handler", "--workers", "2", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT, env=environment(), start_new_session=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output = Output(stdout=process.stdout, stderr=process.stderr)
    try:
        yield process, output
    finally:
        end_session(process.pid)
        process.wait(ENDED_S)
        output.wait_closed(ENDED_S)


def server_of(process: subprocess.Popen[bytes]) -> int | None:
    """The supervisor that a run has started, once it serves."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"run" in words:
            return child
    return None


def test_a_short_run_prints_a_table_and_loses_nothing() -> None:
    finished = shardnet(
        "chaos", "examples.echo:handler", "--workers", "2", "--faults", "kill=2,scale", "--", "--log-level", "debug"
    )
    assert finished.status == 0, finished
    rows = {line.split()[0]: line.split()[1:] for line in finished.stdout.splitlines()[:5]}
    assert rows.keys() == {"fault", "none", "kill", "scale", "all"}
    assert rows["kill"][0] == "2"
    assert rows["all"][2:5] == ["0", "0", "0"]
    assert "no connection was lost that waited in a queue" in finished.stdout
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"shardnet-chaos-{os.getpid()}*"))


def test_an_app_that_does_not_answer_is_found_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    document = run(
        "tests.process.apps:silent", "--faults", "none", "--timeout", "0.5", "--log", str(log), "--duration", "1",
        status=1,
    )  # fmt: skip
    assert document["total"]["stalled"] > 0
    assert document["total"]["answered"] == 0
    assert "serving tests.process.apps:silent" in log.read_text()


def test_an_app_that_cannot_be_loaded_ends_it_with_what_the_server_said() -> None:
    finished = shardnet("chaos", "nowhere:handler")
    assert finished.status == 1
    assert "the server has ended with exit status 4; it said: " in finished.stderr
    assert "there is no module 'nowhere'" in finished.stderr


@pytest.mark.parametrize(
    ("flags", "said"), [(["--faults", "kil"], "there is no 'kil'"), (["--workers", "1"], "give 2")]
)
def test_bad_usage_starts_nothing(flags: list[str], said: str) -> None:
    finished = shardnet("chaos", "examples.echo:handler", *flags)
    assert finished.status == 2
    assert [said in line for line in finished.stderr_lines] == [True]


def test_ctrl_c_ends_a_run_early_with_its_table() -> None:
    with running("--faults", "none", "--duration", "600") as (process, output):
        wait_until(lambda: server_of(process) is not None, ENDED_S)
        server = server_of(process)
        assert server is not None
        output.wait("^serving on", ENDED_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDED_S) == 130
        output.wait(r"^all +[\d,]+", ENDED_S)
        assert wait_gone([server], ENDED_S) == []


def test_a_run_that_is_killed_takes_its_server_along() -> None:
    with running("--faults", "none", "--duration", "600") as (process, _):
        wait_until(lambda: server_of(process) is not None, ENDED_S)
        server = server_of(process)
        assert server is not None
        process.kill()
        assert wait_gone([server], ENDED_S) == []
        assert end_session(server) == []


def test_a_server_that_dies_ends_the_run_and_its_log_is_kept(tmp_path: Path) -> None:
    with running("--faults", "none", "--duration", "600", "--log", str(tmp_path / "log")) as (process, output):
        output.wait("^serving on", ENDED_S)
        server = server_of(process)
        assert server is not None
        os.kill(server, signal.SIGKILL)
        process.send_signal(signal.SIGINT)
        output.wait(r"wrong .*the server has ended with exit status -9", ENDED_S)
        assert process.wait(ENDED_S) == 130


@pytest.mark.fault("F01")
@pytest.mark.fault("F04")
@pytest.mark.fault("F06")
@pytest.mark.fault("F07")
@pytest.mark.fault("F10")
@pytest.mark.fault("F14")
@pytest.mark.fault("F15")
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("flags", [[], ["--preload"], ["--steering", "least"]], ids=" ".join)
def test_no_fault_loses_a_connection(flags: list[str]) -> None:
    """Each kind of fault at least once, under 32 clients."""
    document = run("examples.echo:handler", "--loop-for", "5", "--", *flags)
    assert document["troubles"] == []
    assert {
        name: counts["injections"] > 0 for name, counts in document["faults"].items() if name != "none"
    } == dict.fromkeys(FAULTS, True)
    total = document["total"]
    assert (total["refused"], total["reset"], total["hung"], total["stalled"]) == (0, 0, 0, 0)
    assert total["own_fault"] == 0
    assert total["connections"] > 1000
    assert document["after"]["open_files"] <= document["before"]["open_files"]
    assert document["generations_most"] <= 2
    # Nobody dies of it. (Who drains may end a connection whose client is just about to speak; it cannot know.)
    assert document["faults"]["stop"]["cut"] == 0
    assert re.fullmatch(r"\d+\.\d+\S*", document["version"])
