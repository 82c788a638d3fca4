"""The dashboards: what is committed is what the script writes, and it keeps the rules that make dashboards good."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from grafana.content import DASHBOARDS
from grafana.rendering import render
from tests.queries import METRICS, labels_asked, metrics_asked

FOLDER: Final = Path(__file__).resolve().parents[1] / "grafana"
PAGES: Final = {plan.uid: json.loads((FOLDER / "dashboards" / f"{plan.uid}.json").read_text()) for plan in DASHBOARDS}
RULE_UNITS: Final = {"short", "none", "percentunit", "s", "bytes", "Bps", "ops", "cps"}
LISTED_ELSEWHERE: Final[dict[str, str]] = {}  # Metrics in no dashboard, and why.

page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def panels(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that are no rows, those in folded rows included."""
    for panel in page["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", ())


def queries(page: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each query, with the title of its panel."""
    for panel in panels(page):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize("plan", DASHBOARDS, ids=lambda plan: plan.uid)
def test_committed_json_is_what_the_script_writes(plan: Any) -> None:
    """When this fails: `make dashboards`."""
    assert (FOLDER / "dashboards" / f"{plan.uid}.json").read_text(encoding="utf-8") == render(plan)


def test_there_are_five_dashboards_and_nothing_else() -> None:
    assert sorted(path.stem for path in (FOLDER / "dashboards").iterdir()) == sorted(PAGES)
    assert len(PAGES) == 5


@page
def test_page_is_of_the_schema_and_is_not_edited_in_place(page: dict[str, Any]) -> None:
    assert page["schemaVersion"] == 42
    assert page["editable"] is False
    assert page["graphTooltip"] == 1
    assert page["tags"] == ["shardnet"]
    assert page["refresh"] == "10s"
    assert page["description"]
    assert re.fullmatch(r"shardnet-[a-z]+", page["uid"])
    assert page.get("id") is None


@page
def test_variables_choose_server_and_shard(page: dict[str, Any]) -> None:
    datasource, *others = page["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == ("datasource", "datasource", "prometheus")
    assert datasource["label"] == "Data source"
    assert [variable["name"] for variable in others] == ["job", "instance", "shard"]
    for variable in others:
        assert variable["datasource"]["uid"] == "${datasource}"
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
        assert variable["refresh"] == 2
    assert others[-1]["sort"] == 3  # As numbers.


@page
def test_annotations_mark_reloads_and_restarts(page: dict[str, Any]) -> None:
    marks = {mark["name"]: mark["expr"] for mark in page["annotations"]["list"]}
    assert set(marks) == {"Reloads", "Restarts"}
    for expr in marks.values():
        assert metrics_asked(expr) <= METRICS.keys()


@page
def test_panels_say_what_they_show_and_what_to_do(page: dict[str, Any]) -> None:
    for panel in panels(page):
        title = panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", title
        assert panel["fieldConfig"]["defaults"]["unit"] in RULE_UNITS, title
        shows, cure = panel["description"].split("\n\n**What to do:** ")
        assert shows.endswith("."), title
        assert len(cure) > 10, title
        assert panel["targets"], title


@page
def test_titles_ids_and_places_are_used_once(page: dict[str, Any]) -> None:
    top = [panel for panel in page["panels"] if panel["type"] != "row"]
    titles = [panel["title"] for panel in top]
    assert len(titles) == len(set(titles))
    ids = [panel["id"] for panel in page["panels"]] + [panel["id"] for panel in panels(page)]
    assert len(set(ids)) == len(page["panels"]) + len(list(panels(page))) - len(top)
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken, panel["title"]
        taken |= cells


@page
def test_queries_ask_for_what_there_is(page: dict[str, Any]) -> None:
    """Law: every metric and every label of a query is in the catalogue."""
    for title, expr in queries(page):
        asked = metrics_asked(expr)
        assert asked, title
        assert asked <= METRICS.keys(), title
        for metric, labels in labels_asked(expr):
            assert labels <= METRICS[metric], (title, metric)


@page
def test_queries_ask_of_the_chosen_servers_alone(page: dict[str, Any]) -> None:
    for title, expr in queries(page):
        for selector in re.findall(r"shardnet_\w+(\{[^}]*\})?", expr):
            assert 'job=~"$job"' in selector, title
            assert 'instance=~"$instance"' in selector, title


@page
def test_rates_have_the_interval_that_suits_the_data_source(page: dict[str, Any]) -> None:
    for title, expr in queries(page):
        for call, interval in re.findall(r"\b(i?rate|increase)\((?:[^()\[]|\{[^}]*\})*\[([^\]]+)\]", expr):
            assert interval == "$__rate_interval" or (call == "increase" and interval == "24h"), title


@page
def test_counters_are_never_shown_as_they_stand(page: dict[str, Any]) -> None:
    for title, expr in queries(page):
        bare = re.sub(r"\b(i?rate|increase|changes)\([^\[]*\[[^\]]+\]\)", "", expr)
        assert not re.search(r"shardnet_\w+_(total|bucket|sum|count)\b", bare), title


def test_every_metric_of_the_catalogue_is_in_some_dashboard() -> None:
    asked = {metric for page in PAGES.values() for _, expr in queries(page) for metric in metrics_asked(expr)}
    families = {METRICS.family_of[metric] for metric in asked}
    assert METRICS.families - families == LISTED_ELSEWHERE.keys()


def test_each_of_the_three_subjects_is_answered_on_one_screen() -> None:
    """How much, is it fair over shards, is it near its limit: in the first row, which is no higher than a screen."""
    for uid in ("shardnet-shards", "shardnet-completions", "shardnet-buffers"):
        first, *rest = (index for index, panel in enumerate(PAGES[uid]["panels"]) if panel["type"] == "row")
        row = PAGES[uid]["panels"][first + 1 : rest[0]]
        assert all(word in PAGES[uid]["panels"][first]["title"].lower() for word in ("how", "fair", "near the limit"))
        assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in row) <= 13
        assert any(panel["type"] == "heatmap" for panel in row)
        assert any(panel["type"] == "stat" for panel in row)


def test_heatmaps_of_shards_have_a_row_for_each_number() -> None:
    """Grafana sorts rows by number only if their names are numbers and nothing else."""
    for page in PAGES.values():
        for panel in panels(page):
            if panel["type"] == "heatmap" and panel["targets"][0].get("format") != "heatmap":
                assert panel["targets"][0]["legendFormat"] == "{{shard}}"
                assert panel["options"]["calculate"] is False


def test_provisioning_reads_what_is_there() -> None:
    provider = (FOLDER / "provisioning" / "dashboards" / "shardnet.yml").read_text()
    assert "allowUiUpdates: false" in provider
    source = (FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text()
    interval = re.search(r"scrape_interval: (\w+)", (FOLDER.parent / "deploy/prometheus/prometheus.yml").read_text())
    assert interval is not None
    assert f"timeInterval: {interval[1]}" in source


@pytest.mark.slow
def test_dashboards_are_what_grafanas_types_say(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on PATH: apt-get install npm")
    copy = tmp_path / "grafana"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("node_modules", "generated", "__pycache__"))
    installed = subprocess.run([npm, "ci"], cwd=copy / "validate", capture_output=True, text=True, check=False)
    if installed.returncode and "ENOTFOUND" in installed.stderr + installed.stdout:
        pytest.skip("npm reaches no registry")
    assert installed.returncode == 0, installed.stderr
    told = subprocess.run([npm, "run", "validate"], cwd=copy / "validate", capture_output=True, text=True, check=False)
    assert "5 dashboards are what Grafana's types say" in told.stdout, told.stdout
    spoilt = copy / "dashboards" / "shardnet-overview.json"
    spoilt.write_text(spoilt.read_text().replace('"graphMode": "area"', '"graphMode": "aria"', 1))
    told = subprocess.run([npm, "run", "validate"], cwd=copy / "validate", capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert '"aria"' in told.stdout
