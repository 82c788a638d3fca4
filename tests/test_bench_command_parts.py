"""What `shardnet bench` is made of, without a process or a connection."""

from __future__ import annotations

import json
import math
import select
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.bench import Options, checked_message, parse_target, random_messages
from shardnet.bench.alarm import Alarm
from shardnet.bench.histogram import BUCKETS, EXACT_BELOW, LONGEST_BITS, Distribution, Histogram, bounds
from shardnet.bench.options import MESSAGES_MAX, MESSAGES_MAX_BYTES, Target
from shardnet.bench.progress import line
from shardnet.bench.report import Report, as_json, as_text, collect, duration
from shardnet.bench.sheet import Cell, Kind, Sheet
from shardnet.errors import SystemFault, UsageError
from shardnet.watcher.counters import TRAFFIC_ALONE

TARGET = Target("127.0.0.1:9000", socket.AF_INET, ("127.0.0.1", 9000))
VALUES = st.integers(0, 2**LONGEST_BITS - 1)
DIGITS = 1 / 1000  # What a histogram may be wrong by, as a part of the value.


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram([0] * BUCKETS)
    for value in values:
        histogram.record(value)
    return histogram


def distribution_of(values: list[int]) -> Distribution:
    return Distribution([histogram_of(values).counts])


def options(**changes: object) -> Options:
    return Options(TARGET, [b"x" * 64], **changes)  # type: ignore[arg-type]


def report_of(values: list[int], **changes: object) -> Report:
    fields: dict[str, object] = {
        "options": options(),
        "engine": "python",
        "opened": 50,
        "latencies": distribution_of(values),
        "elapsed_s": 2.0,
        "errors": {},
        **changes,
    }
    return Report(**fields)  # type: ignore[arg-type]


# The histogram.


@given(st.lists(VALUES, min_size=1, max_size=200), st.floats(0.001, 100.0))
def test_percentile_has_three_digits_of_the_exact_one(values: list[int], percent: float) -> None:
    exact = sorted(values)[max(0, math.ceil(percent * len(values) / 100.0) - 1)]
    found = distribution_of(values).at(percent)
    assert exact <= found <= exact * (1 + DIGITS)


def test_percentile_of_a_round_number_of_values_is_not_the_next_one() -> None:
    thousand = distribution_of(list(range(1, 1001)))
    assert [thousand.at(percent) for percent in (0.1, 50.0, 99.0, 99.9, 100.0)] == [1, 500, 990, 999, 1000]


@given(st.lists(VALUES, min_size=1, max_size=200))
def test_mean_and_least_have_three_digits(values: list[int]) -> None:
    found = distribution_of(values)
    assert found.mean() == pytest.approx(sum(values) / len(values), rel=DIGITS)
    assert min(values) * (1 - DIGITS) <= found.least() <= min(values)


@given(VALUES)
def test_value_falls_into_a_bucket_that_has_room_for_it(value: int) -> None:
    counts = histogram_of([value]).counts
    index = list(counts).index(1)
    least, most = bounds(index)
    assert least <= value <= most
    assert sum(counts) == 1


def test_buckets_join_without_gap_or_overlap() -> None:
    edges = [bounds(index) for index in range(BUCKETS)]
    assert all(edges[index][1] + 1 == edges[index + 1][0] for index in range(BUCKETS - 1))
    assert edges[0][0] == 0
    assert edges[EXACT_BELOW - 1] == (EXACT_BELOW - 1, EXACT_BELOW - 1)
    assert edges[-1][1] == 2**LONGEST_BITS - 1


def test_value_beyond_the_longest_counts_as_the_longest() -> None:
    assert distribution_of([2**60]).at(100.0) == 2**LONGEST_BITS - 1


@given(st.lists(VALUES, max_size=50), st.lists(VALUES, max_size=50))
def test_histograms_add_up_to_that_of_all_values(ones: list[int], others: list[int]) -> None:
    together = Distribution([histogram_of(ones).counts, histogram_of(others).counts])
    all_values = distribution_of(ones + others)
    assert together.count == all_values.count
    assert [together.at(percent) for percent in range(101)] == [all_values.at(percent) for percent in range(101)]


def test_distribution_of_nothing_is_zero() -> None:
    nothing = distribution_of([])
    assert (nothing.count, nothing.at(99.0), nothing.least(), nothing.mean()) == (0, 0, 0, 0.0)


# Options.


@pytest.mark.parametrize(
    ("text", "shown", "address"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000", ("127.0.0.1", 9000)),
        (":9000", "127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("*:9000", "127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("0.0.0.0:9000", "127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("[::]:9000", "[::1]:9000", ("::1", 9000, 0, 0)),
        ("[::1]:9000", "[::1]:9000", ("::1", 9000, 0, 0)),
        ("unix:/run/app.sock", "unix:/run/app.sock", "/run/app.sock"),
    ],
)
def test_target_is_where_a_server_with_that_bind_is_reached(text: str, shown: str, address: object) -> None:
    target = parse_target(text)
    assert (target.text, target.address) == (shown, address)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:0", "fd://3", "::1:9000", "unix:"])
def test_target_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        parse_target(text)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"connections": 0}, "--connections"),
        ({"processes": 0}, "--processes"),
        ({"duration_s": 0.0}, "--duration"),
        ({"duration_s": math.nan}, "--duration"),
        ({"warmup_s": -1.0}, "--warmup"),
        ({"timeout_s": math.inf}, "--timeout"),
        ({"rate": 0.0}, "--rate"),
        ({"connections": 2, "processes": 3}, "3 processes for 2 connections"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        options(**changes)


@given(st.integers(1, 5000), st.integers(1, 64))
def test_shares_are_all_connections_once_and_nearly_equal(connections: int, processes: int) -> None:
    made = options(connections=max(connections, processes), processes=processes)
    shares = [made.share(number) for number in range(processes)]
    assert [number for share in shares for number in share] == list(range(made.connections))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_many_connections_for_the_file_limit_say_how_many_processes_would_do() -> None:
    made = options(connections=5000)
    made.check_files(6000)
    with pytest.raises(SystemFault, match=r"file limit 1024 is too low .* give --processes 6, or"):
        made.check_files(1024)
    options(connections=5000, processes=6).check_files(1024)


@pytest.mark.parametrize("size", [1, 64, 1 << 20, MESSAGES_MAX_BYTES + 1])
def test_random_messages_differ_and_stay_within_bounds(size: int) -> None:
    messages = random_messages(size, 5000)
    assert {len(message) for message in messages} == {size}
    assert len(messages) <= MESSAGES_MAX
    assert len(messages) == 1 or sum(map(len, messages)) <= MESSAGES_MAX_BYTES
    if size >= 64:
        assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("message", [b"", bytes((64 << 20) + 1)], ids=["empty", "long"])
def test_message_that_cannot_be_is_refused(message: bytes) -> None:
    with pytest.raises(UsageError, match="--payload is"):
        checked_message(message, "--payload")


# The alarm.


def test_alarm_is_readable_when_it_is_due_and_not_before() -> None:
    alarm = Alarm()
    poll = select.poll()
    poll.register(alarm.fd, select.POLLIN)
    assert poll.poll(0) == []
    due_ns = time.monotonic_ns() + 3_000_000
    alarm.set(due_ns)
    assert poll.poll(20_000)
    assert time.monotonic_ns() >= due_ns
    alarm.clear()
    assert poll.poll(0) == []
    alarm.set(due_ns)  # Past.
    assert poll.poll(20_000)
    alarm.set(time.monotonic_ns() + 60_000_000_000)
    assert poll.poll(0) == []
    alarm.clear()  # Nothing to clear.
    alarm.close()
    alarm.close()


# The report.


def test_report_adds_up_what_the_processes_have_counted() -> None:
    sheets = [Sheet(), Sheet()]
    for sheet in sheets:
        sheet.histogram.record(5000)
        sheet.cells[Cell.OPENED] = 3
        sheet.cells[Cell.CPU_NS], sheet.cells[Cell.WALL_NS] = 1, 4
        sheet.cells[Cell.LATE_WORST_NS] = 7
    sheets[1].cells[Cell.ELAPSED_NS] = 2_000_000_000
    sheets[1].cells[Cell.LATE_WORST_NS] = 9
    assert sheets[0].count_error(Kind.RESET) == 1
    assert sheets[1].count_error(Kind.RESET) == 1
    assert sheets[1].count_error(Kind.TIMEOUT) == 1
    report = collect(options(), sheets, "python", {}, [], None, killed=False)
    assert (report.opened, report.latencies.count, report.rate) == (6, 2, 1.0)
    assert report.errors == {Kind.RESET: 2, Kind.TIMEOUT: 1}
    assert report.late_worst_ns == 9
    assert report.cpu_shares == [0.25, 0.25]


def test_text_has_a_line_for_each_kind_of_error() -> None:
    errors = {Kind.RESET: 12, Kind.WRONG_BYTES: 3}
    report = report_of(
        [1000], errors=errors, details={Kind.RESET: "Connection reset by peer"}, lost=["ended by signal 9"]
    )
    lines = [" ".join(text.split()) for text in as_text(report).splitlines()]
    at = lines.index("errors")
    assert lines[at + 1 : at + 4] == [
        "reset 12 Connection reset by peer",
        "wrong bytes 3",
        "load process ended by signal 9",
    ]
    assert report.exit_status == 1


def test_text_says_when_the_load_may_have_been_the_limit() -> None:
    busy = report_of([1000], cpu_shares=[0.2, 0.5], starved_shares=[0.1, 0.45])
    assert "may have been the limit" in as_text(busy)
    assert "kept waiting for one 45% of the time" in as_text(busy)
    idle = report_of([1000], cpu_shares=[0.5], starved_shares=[0.0])
    assert "warning" not in as_text(idle)


def test_text_says_when_the_load_broke_its_schedule() -> None:
    late = report_of([1000] * 10, options=options(rate=5.0), late=1, late_worst_ns=3_000_000)
    assert "1 messages were sent over 1 ms late, at worst 3.00 ms" in as_text(late)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"errors": {Kind.CLOSED: 1}}, 1),
        ({"lost": ["ended by signal 9"]}, 1),
        ({"stopped_by": 2}, 130),
        ({"stopped_by": 15, "errors": {Kind.CLOSED: 1}}, 143),
    ],
)
def test_exit_status_says_how_it_went(changes: dict[str, object], status: int) -> None:
    assert report_of([1000], **changes).exit_status == status


def test_exit_status_is_failure_when_nothing_was_echoed() -> None:
    assert report_of([]).exit_status == 1


def test_json_has_percentiles_in_microseconds() -> None:
    document = json.loads(as_json(report_of([1_000_000] * 99 + [8_000_000])))
    latency = document["latency_us"]
    assert latency["p50"] == pytest.approx(1000, rel=DIGITS)
    assert latency["p99_9"] == latency["max"] == pytest.approx(8000, rel=DIGITS)
    assert (document["messages"], document["messages_per_s"], document["loop"]) == (100, 50.0, "closed")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.00 µs"),
        (1234, "1.23 µs"),
        (99_949, "99.9 µs"),
        (123_456, "123 µs"),
        (999_499, "999 µs"),
        (999_600, "1.00 ms"),
        (45_678_901, "45.7 ms"),
        (999_600_000, "1.00 s"),
        (61_000_000_000, "61.0 s"),
    ],
)
def test_duration_has_three_digits(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_progress_line_says_how_far_it_is() -> None:
    sheet = Sheet()
    made = options(connections=10)
    sheet.cells[Cell.UP] = 7
    assert line(made, [sheet], False, 0.5, 0.0) == "0.5 s, 7 of 10 connections, 0 errors"
    sheet.cells[TRAFFIC_ALONE] = 640
    assert sheet.received_bytes == 640
    assert line(made, [sheet], True, 1.0, 1234.0).endswith("connections, 1,234 messages/s, warming up, 0 errors")
    sheet.histogram.record(2_000_000)
    sheet.count_error(Kind.CLOSED)
    assert line(made, [sheet], True, 1.0, 1234.0).endswith("1,234 messages/s, p99 2.00 ms, 1 errors")
