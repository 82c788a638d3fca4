"""What the benchmark suite makes of figures: medians, ratios, lines, verdicts, the report, the plots."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bench.errors import BenchError
from bench.plots import draw
from bench.records import FORMAT, Failure, Record, Results, Scenario, load_results, save_results
from bench.report import render, table, verdicts
from bench.servers import SERVERS, choose
from bench.stats import Line, Spread, ratio, regress, spread
from bench.targets import LINEAR, TARGETS, Bound, Target, judge

CALLBACK: Final = "shardnet-callback"
C_EPOLL: Final = "c-epoll"
SIZES: Final = (1024, 2048, 4096, 8192, 16384)
PNG: Final = b"\x89PNG\r\n"


def records(server: str, *, cpu_us: list[float], exponent: float = 1.0, bytes_each: float = 280.0) -> list[Record]:
    """Rounds of a server of which everything else follows from these."""
    made = []
    for number, cost in enumerate(cpu_us):
        figures = {"cpu_us": cost, "rate_per_s": 1e6 / cost, "p50_us": 100.0, "p99_us": 200.0, "p999_us": 300.0}
        shares = {"server_share": 0.9, "load_share": 0.5, "mb_per_s": 1000 / cost}
        made.append(Record(server, Scenario.PING, number, 200, 64, figures | shares))
        made.append(Record(server, Scenario.BULK, number, 1, 65536, figures | shares))
        for size in SIZES:
            times = {"seconds": cost * (size / 1e6) ** exponent, "cpu_us": cost}
            made.append(Record(server, Scenario.STORM, number, size, 1024, times))
    for size in (1000, 15000):
        memory = {"bytes": bytes_each * size, "bytes_each": bytes_each}
        made.append(Record(server, Scenario.IDLE, 0, size, 64, memory))
    return made


def results_of(**costs: list[float]) -> Results:
    results = Results(servers=[server.name for server in SERVERS if server.name in costs], crowd=8192, complete=True)
    for name, cpu_us in costs.items():
        results.records += records(name, cpu_us=cpu_us)
    return results


@pytest.fixture
def canned() -> Results:
    """Three rounds of C and of ours, which takes 1.05 as much."""
    return results_of(**{C_EPOLL: [2.0, 4.0, 3.0], CALLBACK: [2.1, 4.2, 3.15]})


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([900.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0)
    assert spread([]) is None


def test_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    found = ratio({0: 2.0, 1: 6.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 4.0})
    assert found == Spread(4.0 / 2.0, 1.0, 2.0)


def test_ratio_leaves_out_a_round_that_one_of_them_missed() -> None:
    assert ratio({0: 1.0, 1: 900.0}, {0: 2.0}) == Spread(0.5, 0.5, 0.5)
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_regress_finds_a_line_again() -> None:
    line = regress({x: 0.25 * x + 3.0 for x in (1, 2, 5, 9)})
    assert line is not None
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((0.25, 3.0, 1.0))


def test_regress_tells_what_is_no_line() -> None:
    bent = regress({size: size**1.4 for size in SIZES})
    straight = regress({size: size**1.2 for size in SIZES})
    assert bent is not None
    assert straight is not None
    assert bent.r_squared < LINEAR < straight.r_squared


def test_regress_of_what_never_changes_is_level() -> None:
    assert regress({1: 4.0, 2: 4.0, 3: 4.0}) == Line(0.0, 4.0, 1.0)


def test_regress_needs_three_points() -> None:
    assert regress({1: 1.0, 2: 2.0}) is None


def test_figures_are_of_the_most_connections_unless_asked(canned: Results) -> None:
    assert canned.by_round(C_EPOLL, Scenario.IDLE, "bytes") == {0: 280.0 * 15000}
    assert canned.by_round(C_EPOLL, Scenario.IDLE, "bytes", 1000) == {0: 280.0 * 1000}
    assert canned.sizes(C_EPOLL, Scenario.STORM) == list(SIZES)


@pytest.mark.parametrize(
    ("bound", "limit", "met"),
    [
        (Bound.AT_MOST, 1.06, True),
        (Bound.AT_MOST, 1.04, False),
        (Bound.AT_LEAST, 1.04, True),
        (Bound.AT_LEAST, 1.06, False),
    ],
)
def test_target_is_met_by_the_ratio_of_medians(canned: Results, bound: Bound, limit: float, met: bool) -> None:
    verdict = judge(canned, Target(CALLBACK, Scenario.PING, "cpu_us", bound, limit, C_EPOLL))
    assert verdict.met is met
    assert verdict.found is not None
    assert verdict.found.middle == pytest.approx(1.05)


def test_target_without_a_reference_is_met_by_the_figure_itself(canned: Results) -> None:
    memory = Target(CALLBACK, Scenario.IDLE, "bytes_each", Bound.AT_MOST, 300)
    assert judge(canned, memory).met is True
    assert judge(canned, replace(memory, limit=279)).met is False


def test_target_of_a_storm_is_judged_at_the_crowd_that_all_had(canned: Results) -> None:
    """C has more storms than uvloop: comparing the greatest of each would compare different crowds."""
    only_crowd = [r for r in canned.records if r.server == C_EPOLL and r.connections in (1, 200, 8192)]
    canned.records = [*only_crowd, *(r for r in canned.records if r.server == CALLBACK)]
    verdict = judge(canned, Target(CALLBACK, Scenario.STORM, "seconds", Bound.AT_MOST, 1.06, C_EPOLL))
    assert verdict.met is True


def test_target_of_linearity_is_missed_by_what_bends() -> None:
    target = Target(CALLBACK, Scenario.STORM, "r_squared", Bound.AT_LEAST, LINEAR)
    results = Results(servers=[CALLBACK], crowd=8192)
    results.records = records(CALLBACK, cpu_us=[1.0, 1.0])
    assert judge(results, target).met is True
    results.records = records(CALLBACK, cpu_us=[1.0, 1.0], exponent=2.0)
    assert judge(results, target).met is False


def test_target_whose_server_is_missing_is_neither_met_nor_missed(canned: Results) -> None:
    canned.skipped["uvloop-protocol"] = "there is no uvloop"
    verdict = judge(canned, Target(CALLBACK, Scenario.BULK, "mb_per_s", Bound.AT_LEAST, 1.0, "uvloop-protocol"))
    assert (verdict.met, verdict.found) == (None, None)
    assert "there is no uvloop" in verdict.missing


def test_every_target_is_of_servers_that_there_are() -> None:
    names = {server.name for server in SERVERS}
    for target in TARGETS:
        assert {target.server, target.against or target.server} <= names


def test_report_shows_figures_verdicts_and_the_line(canned: Results) -> None:
    canned.environment = {"engine": "python"}
    canned.skipped["uvloop-protocol"] = "there is no uvloop"
    canned.failures.append(Failure("asyncio-streams", "ping", "wrong-bytes: connection 3"))
    text = render(canned)
    assert "- engine: python" in text
    assert re.search(r"\| bare C, epoll, edge-triggered +\| +3\.00 \| 1\.00 \| 333,333 \|", text)
    assert re.search(r"shardnet-callback / c-epoll +\| ≤ 1\.080 \| +1\.050 \| +1\.050 \.\. 1\.050 \| +met \|", text)
    assert re.search(r"shardnet, `def on_data\(conn, data\)` +(\| +0\.\d{3} ){5}\| +3\.15 \|", text)
    assert "- skipped uvloop-protocol: there is no uvloop" in text
    assert "- FAILED asyncio-streams, ping: wrong-bytes: connection 3" in text
    assert "Interrupted" not in text


def test_report_of_an_interrupted_suite_says_so_and_shows_what_there_is(canned: Results) -> None:
    canned.complete = False
    canned.records = [record for record in canned.records if record.scenario is Scenario.PING]
    text = render(canned)
    assert "**Interrupted**" in text
    assert "| 333,333 |" in text
    assert sum(verdict.met is not None for verdict in verdicts(canned)) == 1


def test_report_of_nothing_is_still_a_report() -> None:
    assert "## Targets" in render(Results())


def test_table_is_aligned() -> None:
    lines = table(["name", "n"], [["long name", "1"], ["x", "1,000"]]).splitlines()
    assert lines == ["| name      |     n |", "| --------- | ----: |", "| long name |     1 |", "| x         | 1,000 |"]


def test_results_come_back_as_they_were_saved(canned: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(canned, path)
    assert load_results(path) == canned
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"records": [{"server": 1}]}', b"\xff"])
def test_results_that_are_none_are_refused_in_a_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"^[^\n]*holds no results of this suite[^\n]*$"):
        load_results(path)


def test_results_that_are_missing_or_of_another_format_are_refused(canned: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(BenchError, match="No such file"):
        load_results(path)
    canned.format = FORMAT + 1
    save_results(canned, path)
    with pytest.raises(BenchError, match="measure anew"):
        load_results(path)


def test_choose_takes_names_and_patterns_in_the_order_of_the_list() -> None:
    assert [server.name for server in choose(["shardnet-callback", "c-*"])] == [C_EPOLL, CALLBACK]
    assert choose([]) == [server for server in SERVERS if not server.extra]
    assert [server.name for server in choose(["unmetered-*"])] == ["unmetered-callback", "unmetered-conn"]
    with pytest.raises(BenchError, match=r"no server is called 'nginx'; there are c-epoll, "):
        choose(["c-epoll", "nginx"])


def test_plots_are_drawn_of_what_there_is(canned: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the dependency group `bench`")
    drawn = draw(canned, tmp_path)
    assert [path.name for path in drawn] == [
        "cpu-per-message.png",
        "time-by-connections.png",
        "memory-by-connections.png",
    ]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    canned.records = [record for record in canned.records if record.scenario is Scenario.IDLE]
    assert [path.name for path in draw(canned, tmp_path)] == ["memory-by-connections.png"]
