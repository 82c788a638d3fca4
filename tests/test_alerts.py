"""Rules and alerts: Prometheus' own tool tests what makes each fire; here is what it cannot see."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.prometheus_tool import find_tools
from tests.queries import METRICS, labels_asked, metrics_asked

PROJECT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = PROJECT / "deploy" / "prometheus"
RUNBOOKS: Final = PROJECT / "docs" / "runbooks"
RULES: Final = (FOLDER / "shardnet.rules.yml").read_text(encoding="utf-8")
ALERTS: Final = dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert|\Z)", RULES, re.DOTALL))

alert = pytest.mark.parametrize("name", ALERTS)


def test_promtool_finds_the_rules_right_and_their_tests_pass() -> None:
    promtool = find_tools().promtool
    for arguments in (
        ["check", "rules", "shardnet.rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "shardnet.rules_test.yml"],
    ):
        said = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout + said.stderr


@alert
def test_alert_is_tested_to_fire_and_not_to_fire(name: str) -> None:
    test = (FOLDER / "shardnet.rules_test.yml").read_text()
    begin = test.index(f"  - name: {name}\n")
    case = test[begin : test.find("  - name: ", begin + 1)]
    assert case.count(f"alertname: {name}\n") == 2
    assert "exp_alerts: []" in case
    assert "exp_labels:" in case


@alert
def test_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    body = ALERTS[name]
    assert re.search(r"severity: (critical|warning)\}", body)
    assert re.search(r'summary: ".*\$labels\.instance', body)
    assert re.search(r'description: "[A-Z].*\."', body)
    assert f"runbook: docs/runbooks/{name}.md\n" in body + "\n"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.iterdir()} == set(ALERTS)


@alert
def test_runbook_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    title, meaning, *_ = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8").split("\n\n")
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert title == f"# {name}"
    assert len(meaning) > 80
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Look", "Do"]
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (RUNBOOKS / link).resolve().exists(), link


def test_runbooks_name_commands_and_metrics_that_there_are() -> None:
    said = subprocess.run([sys.executable, "-m", "shardnet", "--help"], capture_output=True, text=True, check=True)
    commands = set(re.findall(r"^  ([a-z-]+) ", said.stdout, re.MULTILINE))
    assert "status" in commands
    for path in RUNBOOKS.iterdir():
        text = path.read_text(encoding="utf-8")
        for command in re.findall(r"`shardnet ([a-z-]+)", text):
            assert command in commands, (path.name, command)
        assert metrics_asked(text) <= METRICS.keys() | METRICS.families, path.name


def test_rules_ask_for_what_there_is() -> None:
    asked = metrics_asked(RULES.replace("shardnet.rules", ""))
    assert asked - {"shardnet_rules"} <= METRICS.keys()
    for metric, labels in labels_asked(RULES):
        assert labels <= METRICS[metric], metric


def test_alerts_of_restarts_are_of_those_that_nobody_asked_for() -> None:
    assert 'reason=~"crash|signal|hang"' in ALERTS["ShardnetShardRestarting"]
