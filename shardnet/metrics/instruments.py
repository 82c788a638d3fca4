"""Counters, gauges and histograms, as the app declares and calls them.

An instrument without labels is its own only series; one with labels has a series for each combination that was asked
for. All calls belong to the worker's thread: from another one, go through `loop.call_soon_threadsafe`.

Lives here: declaring, labels, and timing. Must not live here: counting (see `series`), and where (see `registry`).
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, cast

from shardnet.board import Kind, Metric
from shardnet.errors import UsageError
from shardnet.metrics.registry import REGISTRY
from shardnet.metrics.series import CounterSeries, GaugeSeries, HistogramSeries, Series

__all__ = ["Counter", "Gauge", "Histogram"]

SERIES_MAX: Final = 100  # Of one metric; each worker has room for several thousand cells in all.
# Seconds: from an answer out of memory to one that somebody waits for.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

AnySeries = TypeVar("AnySeries", bound=Series)
Function = TypeVar("Function", bound=Callable[..., Any])


class _Labelled(Generic[AnySeries]):
    """The series of one metric, by the values of its labels."""

    def __init__(self, metric: Metric, make: Callable[[], AnySeries], series_max: int, own: Series) -> None:
        REGISTRY.add(metric)
        self._metric = metric
        self._make = make
        self._series_max = series_max
        self._series: dict[tuple[str, ...], AnySeries] = {}
        if not metric.labels:
            _place(metric, (), own)

    def find(self, values: tuple[object, ...], named: dict[str, object]) -> AnySeries:
        """The series with these values of the labels, in their order or by name."""
        found = self._series.get(cast("tuple[str, ...]", values)) if not named else None
        return found if found is not None else self._find_anew(values, named)

    def _find_anew(self, values: tuple[object, ...], named: dict[str, object]) -> AnySeries:
        metric = self._metric
        if not metric.labels:
            raise UsageError(f"metric {metric.name} has no labels")
        if named:
            if values or named.keys() != set(metric.labels):
                raise UsageError(f"metric {metric.name} has the labels {', '.join(metric.labels)}: give each of them")
            values = tuple(named[label] for label in metric.labels)
        key = tuple(map(str, values))
        if len(key) != len(metric.labels):
            raise UsageError(f"metric {metric.name} has the labels {', '.join(metric.labels)}: give each of them")
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= self._series_max:
                raise UsageError(
                    f"metric {metric.name} has {self._series_max} series, and no room for {key}: labels are for a few "
                    f"known values, not for ids or addresses; series_max={2 * self._series_max} would allow more"
                )
            series = self._make()
            _place(metric, key, series)
            self._series[key] = series
        return series


def _place(metric: Metric, values: tuple[str, ...], series: Series) -> None:
    series.settle(REGISTRY.place(metric, values, series.settle))


class Counter(CounterSeries):
    """A number that only grows. Its name ends in `_total`, which is added where it is missing.

    Args:
        name: In Prometheus style, with the unit: `chat_sent_bytes_total`.
        help: What it counts, in a sentence.
        labels: Names of labels, if it has any. Each combination of their values is a series of its own.
        series_max: How many combinations there may be. One too many raises `UsageError` from `labels`.

    Raises:
        UsageError: the name or a label is not to be had.
        SystemFault: the worker's row of the board has no room left.
    """

    __slots__ = ("_labelled",)

    def __init__(self, name: str, help: str, labels: Iterable[str] = (), *, series_max: int = SERIES_MAX) -> None:
        super().__init__()
        metric = Metric(f"{name.removesuffix('_total')}_total", Kind.COUNTER, help, tuple(labels), "f64")
        self._labelled = _Labelled(metric, CounterSeries, series_max, self)

    def labels(self, *values: object, **named: object) -> CounterSeries:
        """The series with these values of the labels; keep it, where it is counted often."""
        return self._labelled.find(values, named)


class Gauge(GaugeSeries):
    """A number that goes up and down. For the rest see `Counter`; its name has no `_total`."""

    __slots__ = ("_labelled",)

    def __init__(self, name: str, help: str, labels: Iterable[str] = (), *, series_max: int = SERIES_MAX) -> None:
        super().__init__()
        metric = Metric(name, Kind.GAUGE, help, tuple(labels), "f64")
        self._labelled = _Labelled(metric, GaugeSeries, series_max, self)

    def labels(self, *values: object, **named: object) -> GaugeSeries:
        """The series with these values of the labels; keep it, where it is set often."""
        return self._labelled.find(values, named)


class TimedSeries(HistogramSeries):
    """A histogram's series that can time."""

    __slots__ = ()

    def time(self) -> Stopwatch:
        """Observe how many seconds something takes: `with histogram.time():`, or `@histogram.time()` before a function
        or a coroutine function."""
        return Stopwatch(self)


class Histogram(TimedSeries):
    """How values are spread over buckets. For the rest see `Counter`.

    Args:
        buckets: The upper bounds, in ascending order; one without bound is always there. By default they suit times of
            some milliseconds to some seconds.
    """

    __slots__ = ("_labelled",)

    def __init__(
        self,
        name: str,
        help: str,
        labels: Iterable[str] = (),
        *,
        buckets: Iterable[float] = BUCKETS,
        series_max: int = SERIES_MAX,
    ) -> None:
        bounds = tuple(float(bound) for bound in buckets if bound != float("inf"))
        metric = Metric(name, Kind.HISTOGRAM, help, tuple(labels), "f64", bounds)
        super().__init__(bounds)
        self._labelled = _Labelled(metric, functools.partial(TimedSeries, bounds), series_max, self)

    def labels(self, *values: object, **named: object) -> TimedSeries:
        """The series with these values of the labels; keep it, where it observes often."""
        return self._labelled.find(values, named)


class Stopwatch:
    """Observes the seconds from when it is entered until it is left, however that comes about."""

    __slots__ = ("_begun_s", "_series")

    def __init__(self, series: HistogramSeries) -> None:
        self._series = series
        self._begun_s = 0.0

    def __enter__(self) -> Self:
        self._begun_s = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._series.observe(time.perf_counter() - self._begun_s)

    def __call__(self, function: Function) -> Function:
        """`function`, with each call timed; of a coroutine function, until it is over."""
        series = self._series
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
                with Stopwatch(series):
                    return await function(*args, **kwargs)

            return cast("Function", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(series):
                return function(*args, **kwargs)

        return cast("Function", timed)
