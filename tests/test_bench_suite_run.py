"""The benchmark suite as a person runs it: `python -m bench`, on real servers. Structure is asserted, never speed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from bench.records import Scenario, load_results
from shardnet.testing.output import environment
from shardnet.testing.processes import end_session, session_pids, wait_gone

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler: install gcc"),
]

PROJECT: Final = Path(__file__).resolve().parents[1]
RUN_S: Final = 120.0
TWO: Final = ("--only", "c-epoll,shardnet-callback")
QUICK: Final = ("--quick", "--rounds", "2", "--seconds", "0.2", "--no-plots")


def bench(*arguments: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=PROJECT,
        env=environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    assert done.returncode == status, done.stderr
    return done


def children(pid: int) -> list[int]:
    """Whom a process has started, and they in turn."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return direct + [deeper for child in direct for deeper in children(child)]


def test_suite_measures_every_scenario_of_each_server_in_each_round(tmp_path: Path) -> None:
    done = bench(*QUICK, *TWO, "--output", str(tmp_path))
    results = load_results(tmp_path / "results.json")
    assert results.complete
    assert results.failures == []
    assert results.servers == ["c-epoll", "shardnet-callback"]
    for server in results.servers:
        for scenario, value in ((Scenario.PING, "cpu_us"), (Scenario.BULK, "mb_per_s"), (Scenario.STORM, "seconds")):
            figures = results.by_round(server, scenario, value)
            assert sorted(figures) == [0, 1]
            assert all(figure > 0 for figure in figures.values())
        assert results.sizes(server, Scenario.STORM) == [256, 512, 1024]
        assert results.sizes(server, Scenario.IDLE) == [250, 500, 1000]
    assert results.by_round("shardnet-callback", Scenario.IDLE, "bytes")[0] > 0
    first_of_round = [r.server for r in results.records if r.scenario is Scenario.PING][::2]
    assert first_of_round == ["c-epoll", "shardnet-callback"], "rounds begin with another server each"
    assert (tmp_path / "report.md").read_text().strip() == done.stdout.strip()
    assert "shardnet-callback / c-epoll" in done.stdout
    assert "bench: ping, round 2 of 2" in done.stderr.splitlines()


def test_suite_reports_saved_results_anew(tmp_path: Path) -> None:
    bench(*QUICK, *TWO, "--scenario", "ping", "--output", str(tmp_path / "one"))
    source = tmp_path / "one" / "results.json"
    done = bench("--from", str(source), "--no-plots", "--output", str(tmp_path / "two"))
    assert done.stdout.strip() == (tmp_path / "one" / "report.md").read_text().strip()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["report.md"]


def test_suite_that_is_interrupted_leaves_nobody_and_keeps_what_it_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--rounds", "1000", "--seconds", "0.1", "--no-plots", *TWO]
    process = subprocess.Popen(
        [*command, "--scenario", "ping", "--output", str(tmp_path)],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started: list[int] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 3 of 1000" in line:
                break
        started = children(process.pid)
        assert len(started) >= 4, "C, a supervisor, a worker, an exporter"
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=RUN_S)
        assert process.returncode == 130, stderr
        assert wait_gone(started, 10.0) == []
    finally:
        for pid in started:
            if pid in session_pids(pid):
                end_session(pid)
        end_session(process.pid)
        process.wait()
    results = load_results(tmp_path / "results.json")
    assert not results.complete
    assert results.failures == []
    assert sorted(results.by_round("c-epoll", Scenario.PING, "cpu_us"))[:2] == [0, 1]
    assert "**Interrupted**" in stdout
    assert "Traceback" not in stderr


def test_suite_goes_on_without_a_server_that_cannot_be_had(tmp_path: Path) -> None:
    """A uvloop that is not installed, by way of a Python that does not see it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'uvloop' else found(name, package)\n"
    )
    only = ("--only", "c-epoll,uvloop-*", "--scenario", "ping")
    done = bench(*QUICK, *only, "--output", str(tmp_path), PYTHONPATH=str(hidden))
    results = load_results(tmp_path / "results.json")
    assert results.servers == ["c-epoll"]
    assert set(results.skipped) == {"uvloop-protocol", "uvloop-streams"}
    assert "- skipped uvloop-streams: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "env", "status", "said"),
    [
        (("--only", "nginx"), {}, 1, "no server is called 'nginx'"),
        (("--rounds", "0"), {}, 2, "0 is not in the range"),
        (("--scenario", "nap"), {}, 2, "is not one of 'ping', 'bulk', 'storm', 'idle'"),
        (TWO, {"CC": "no-such-compiler"}, 1, "there is no C compiler 'no-such-compiler'"),
        (("--from", "no-such-file.json"), {}, 1, "cannot read no-such-file.json"),
    ],
)
def test_suite_says_in_a_line_what_is_wrong(
    arguments: tuple[str, ...], env: dict[str, str], status: int, said: str, tmp_path: Path
) -> None:
    done = bench(*arguments, "--output", str(tmp_path), status=status, **env)
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_suite_lists_its_servers() -> None:
    listed = bench("--list").stdout.splitlines()
    assert [line.split()[0] for line in listed][:2] == ["c-epoll", "uvloop-protocol"]


def test_suite_can_fail_for_a_missed_target(tmp_path: Path) -> None:
    """Of results that were made up, so that it does not depend on how fast we are."""
    source = tmp_path / "results.json"
    values: dict[str, Any] = {"server": "shardnet-callback", "scenario": "idle", "round": 0, "connections": 15000}
    record = values | {"size_bytes": 64, "values": {"bytes_each": 301.0}}
    made_up = {"servers": ["shardnet-callback"], "records": [record], "complete": True}
    source.write_text(json.dumps(made_up))
    show = ("--from", str(source), "--no-plots", "--output", str(tmp_path))
    assert "missed" in bench(*show).stdout
    assert "missed" in bench(*show, "--check", status=1).stdout
    record["values"] = {"bytes_each": 299.0}
    source.write_text(json.dumps(made_up))
    bench(*show, "--check")
