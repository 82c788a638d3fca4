"""The plots, as PNG, of matplotlib, which belongs to the dependency group `bench` and is imported here alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.errors import BenchError
from bench.records import Results, Scenario
from bench.servers import SERVERS, Server
from bench.stats import spread
from bench.targets import storm_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

OURS: Final = "#1f77b4"
THEIRS: Final = "#9a9a9a"
MARKERS: Final = "osD^vPX*<>"
WIDTH_INCHES: Final = 9.0
DPI: Final = 130


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there are figures for; the files. Raises `BenchError` when matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("no plots without matplotlib: pip install --group bench")
    import matplotlib  # slow to import, and not everybody's

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for name, plot in (("cpu-per-message", _cpu), ("time-by-connections", _storms), ("memory-by-connections", _idle)):
        figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, WIDTH_INCHES * 0.6), dpi=DPI, layout="constrained")
        if plot(results, axes):
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{name}.png"
            figure.savefig(path)
            drawn.append(path)
        pyplot.close(figure)
    return drawn


def _known(results: Results) -> list[Server]:
    return [server for server in SERVERS if server.name in results.servers]


def _cpu(results: Results, axes: Axes) -> bool:
    """A bar for each server, the cheapest on top, with the spread of the rounds."""
    figures = [
        (middle, server)
        for server in _known(results)
        if (middle := spread(results.by_round(server.name, Scenario.PING, "cpu_us").values())) is not None
    ]
    if not figures:
        return False
    figures.sort(key=lambda figure: figure[0].middle, reverse=True)
    middles = [of.middle for of, _ in figures]
    errors = [[of.middle - of.low for of, _ in figures], [of.high - of.middle for of, _ in figures]]
    titles = [server.title.replace("`", "") for _, server in figures]
    colors = [OURS if server.ours else THEIRS for _, server in figures]
    bars = axes.barh(titles, middles, xerr=errors, color=colors, ecolor="#444444", capsize=2)
    axes.bar_label(bars, [f"{middle:.2f}" for middle in middles], padding=8)
    axes.set_xlim(0, 1.15 * max(of.high for of, _ in figures))
    sizes = next(r for r in results.records if r.scenario is Scenario.PING)
    axes.set_xlabel("server CPU per message, µs (median and quartiles of the rounds)")
    axes.set_title(f"Echo of {sizes.size_bytes}-byte messages, {sizes.connections} connections")
    return True


def _storms(results: Results, axes: Axes) -> bool:
    """Every round a point, and the line through the medians."""
    drawn = False
    for server, marker in zip(_known(results), MARKERS, strict=False):
        if (line := storm_line(results, server.name)) is None:
            continue
        sizes = results.sizes(server.name, Scenario.STORM)
        label = (
            f"{server.title.replace('`', '')}: {line.slope * 1e6:.1f} µs per connection"
            f" {line.intercept * 1e3:+.1f} ms, R² {line.r_squared:.4f}"
        )
        ends = [0, max(sizes)]
        (drawn_line,) = axes.plot(ends, [line.intercept + line.slope * x for x in ends], linewidth=1, label=label)
        for size in sizes:
            times = list(results.by_round(server.name, Scenario.STORM, "seconds", size).values())
            axes.plot([size] * len(times), times, marker, color=drawn_line.get_color(), markersize=4, alpha=0.6)
        drawn = True
    if drawn:
        axes.set_xlabel("connections")
        axes.set_ylabel("seconds, first connect to last byte")
        axes.set_title("All connect at once, and each has 1 KiB echoed")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", frameon=False)
    return drawn


def _idle(results: Results, axes: Axes) -> bool:
    """A line for each server."""
    drawn = False
    for server, marker in zip(_known(results), MARKERS, strict=False):
        sizes = results.sizes(server.name, Scenario.IDLE)
        grown = [
            of.middle / 1e6
            for size in sizes
            if (of := spread(results.by_round(server.name, Scenario.IDLE, "bytes", size).values())) is not None
        ]
        if sizes:
            label = f"{server.title.replace('`', '')}: {grown[-1] * 1e6 / sizes[-1]:,.0f} bytes each"
            style = "-" if server.ours else "--"
            axes.plot(sizes, grown, marker=marker, linestyle=style, markersize=4, label=label)
            drawn = True
    if drawn:
        axes.set_xlabel("idle connections")
        axes.set_ylabel("private dirty memory, MB more than with none")
        axes.set_title("Memory of connections that have had one echo and say nothing more")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", frameon=False)
    return drawn
