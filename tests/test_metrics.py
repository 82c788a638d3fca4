"""The app's own metrics: declaring, counting, labels, and where it is counted. Their way to `/metrics` is in
tests/process/test_own_metrics.py."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest

from shardnet.board import Board, Kind, Role
from shardnet.errors import SystemFault, UsageError
from shardnet.metrics import Counter, Gauge, Histogram
from shardnet.metrics import instruments as instruments_module
from shardnet.metrics.registry import Registry


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """One of the test's own, so that each may use the same names."""
    registry = Registry()
    monkeypatch.setattr(instruments_module, "REGISTRY", registry)
    return registry


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(shards_max=1)
    yield board
    board.close()


def test_counter_grows() -> None:
    counter = Counter("jumps_total", "Jumps.")
    assert counter.value == 0
    counter.inc()
    counter.inc(2.5)
    assert counter.value == 3.5


@pytest.mark.parametrize("amount", [-1, -0.001, math.nan])
def test_counter_does_not_shrink(amount: float) -> None:
    counter = Counter("jumps_total", "Jumps.")
    with pytest.raises(UsageError, match="a counter cannot grow by"):
        counter.inc(amount)
    assert counter.value == 0


def test_gauge_goes_up_and_down() -> None:
    gauge = Gauge("depth_meters", "Depth.")
    gauge.inc()
    gauge.dec(3)
    assert gauge.value == -2
    gauge.set(1e300)
    assert gauge.value == 1e300


def test_histogram_counts_and_adds_up() -> None:
    histogram = Histogram("size_bytes", "Sizes.", buckets=(1, 2, math.inf))
    for value in (0.5, 1, 1.5, 2, 99):
        histogram.observe(value)
    assert (histogram.count, histogram.sum) == (5, 104)


def test_histogram_refuses_what_is_no_number() -> None:
    histogram = Histogram("size_bytes", "Sizes.")
    with pytest.raises(UsageError, match="cannot observe NaN"):
        histogram.observe(math.nan)
    assert histogram.count == 0


def test_labels_make_series() -> None:
    counter = Counter("logins_total", "Logins.", ["outcome", "how"])
    counter.labels("ok", "web").inc()
    counter.labels(how="web", outcome="ok").inc()
    counter.labels("failed", 7).inc()
    assert counter.labels("ok", "web") is counter.labels(outcome="ok", how="web")
    assert counter.labels("ok", "web").value == 2
    assert counter.labels("failed", "7").value == 1


@pytest.mark.parametrize(
    ("values", "named"),
    [(("ok",), {}), (("ok", "web", "x"), {}), ((), {"outcome": "ok"}), (("ok",), {"how": "web"}), ((), {"x": 1})],
)
def test_labels_that_do_not_fit_are_refused(values: tuple[object, ...], named: dict[str, object]) -> None:
    counter = Counter("logins_total", "Logins.", ["outcome", "how"])
    with pytest.raises(UsageError, match="metric logins_total has the labels outcome, how: give each of them"):
        counter.labels(*values, **named)


def test_instrument_with_labels_counts_nothing_itself() -> None:
    for instrument in (
        lambda: Counter("a_total", "A.", ["x"]).inc(),
        lambda: Counter("b_total", "B.", ["x"]).value,
        lambda: Gauge("c", "C.", ["x"]).set(1),
        lambda: Histogram("d", "D.", ["x"]).observe(1),
        lambda: Histogram("e", "E.", ["x"]).count,
    ):
        with pytest.raises(UsageError, match=r"has labels: call \.labels"):
            instrument()


def test_instrument_without_labels_has_none() -> None:
    with pytest.raises(UsageError, match="metric a_total has no labels"):
        Counter("a_total", "A.").labels()


def test_labels_are_bounded() -> None:
    counter = Counter("logins_total", "Logins.", ["user"], series_max=3)
    for user in "abc":
        counter.labels(user)
    with pytest.raises(UsageError, match=r"has 3 series, and no room for .*labels are for a few known values"):
        counter.labels("d")
    counter.labels("a").inc()  # Those that are there stay.


@pytest.mark.parametrize(
    ("name", "labels", "why"),
    [
        ("shardnet_x", [], "are the server's own"),
        ("a b", [], "use letters, digits and _"),
        ("x", ["shard"], "the label shard is there already"),
        ("x", ["le gal"], "use letters, digits and _"),
        ("x", ["a", "a"], "twice"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, labels: list[str], why: str) -> None:
    for kind in (Counter, Gauge, Histogram):
        with pytest.raises(UsageError, match=why):
            kind(name, "X.", labels)


def test_name_is_declared_once() -> None:
    Counter("jumps", "Jumps.")
    with pytest.raises(UsageError, match="metric jumps_total is declared already"):
        Counter("jumps_total", "Jumps.")


def test_time_observes_a_block_and_each_call() -> None:
    histogram = Histogram("time_seconds", "Times.")

    @histogram.time()
    def call(value: int) -> int:
        """Doc."""
        return value + 1

    @histogram.time()
    async def coroutine() -> str:
        before = histogram.count
        await asyncio.sleep(0)
        assert histogram.count == before  # It is not over yet.
        return "over"

    with histogram.time():
        pass
    with pytest.raises(KeyError), histogram.time():
        raise KeyError
    assert call(1) == 2
    assert (call.__name__, call.__doc__) == ("call", "Doc.")
    assert histogram.count == 3
    assert asyncio.run(coroutine()) == "over"
    assert histogram.count == 4
    assert histogram.sum > 0
    assert asyncio.iscoroutinefunction(coroutine)


# Where it is counted.


def test_series_move_to_the_row_with_what_they_have(board: Board, registry: Registry) -> None:
    counter, gauge = Counter("jumps_total", "Jumps."), Gauge("depth_meters", "Depth.", ["where"])
    histogram = Histogram("size_bytes", "Sizes.", buckets=(1, 2))
    counter.inc(2)
    gauge.labels("sea").set(7)
    histogram.observe(1.5)
    registry.bind(board.row(board.claim(Role.WORKER, 0, 1, 1, started_ns=0)))
    counter.inc()
    histogram.observe(9)
    gauge.labels("lake").set(-0.5)  # New by now.
    late = Counter("late_total", "Late.")
    late.inc()
    families = board.snapshot().families
    assert {family.metric.name: family.metric.kind for family in families.values()} == {
        "jumps_total": Kind.COUNTER,
        "depth_meters": Kind.GAUGE,
        "size_bytes": Kind.HISTOGRAM,
        "late_total": Kind.COUNTER,
    }
    assert {str(labels): value for labels, value in families["depth_meters"].values.items()} == {
        'shard="0",where="sea"': 7,
        'shard="0",where="lake"': -0.5,
    }
    assert list(families["jumps_total"].values.values()) == [3]
    assert list(families["late_total"].values.values()) == [1]
    sizes = next(iter(families["size_bytes"].distributions.values()))
    assert (sizes.counts, sizes.total) == ([0, 1, 1], 10.5)
    assert (counter.value, histogram.count, histogram.sum) == (3, 2, 10.5)


def test_series_without_labels_are_there_from_the_start(board: Board, registry: Registry) -> None:
    """`rate()` is to see the first increment."""
    registry.bind(board.row(board.claim(Role.WORKER, 0, 1, 1, started_ns=0)))
    Counter("jumps_total", "Jumps.")
    Counter("logins_total", "Logins.", ["outcome"]).labels("failed")
    families = board.snapshot().families
    assert list(families["jumps_total"].values.values()) == [0]
    assert list(families["logins_total"].values.values()) == [0]


def test_row_that_is_full_is_told_of_in_a_sentence(board: Board, registry: Registry) -> None:
    registry.bind(board.row(board.claim(Role.WORKER, 0, 1, 1, started_ns=0)))
    crowd = Counter("crowd_total", "Crowd.", ["who"], series_max=10**6)

    def crowd_in() -> None:
        for who in range(10**6):
            crowd.labels(who)

    with pytest.raises(SystemFault, match="no room on the board for metric crowd_total"):
        crowd_in()
    crowd.labels(0).inc()
    assert crowd.labels(0).value == 1
