"""Lines of text of a server's figures, as many columns as there is room for.

Lives here: columns, units, sorting. Must not live here: terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shardnet.top.model import Shard, View

__all__ = [
    "COLUMNS",
    "SORTS",
    "Column",
    "bytes_text",
    "columns_for",
    "count_text",
    "duration_text",
    "folded",
    "header",
    "lines",
    "printable",
    "state_text",
]

BARS: Final = "▁▂▃▄▅▆▇█"
SPARK_MIN: Final = 10  # Narrower, it says nothing.
SPARK_MAX: Final = 40
NONE: Final = "-"
FOLD_INDENT: Final = 8
SILENT_S: Final = 6.0  # An idle loop says every 5 s, at the latest, that it turns.


@dataclass(frozen=True, slots=True)
class Column:
    """One column: what it shows of a shard, and of all together."""

    title: str
    width: int
    show: Callable[[Shard], str]
    total: Callable[[tuple[Shard, ...]], str]
    key: Callable[[Shard], float]  # To sort by.
    rank: int = 0  # The highest goes first when it is narrow.
    left: bool = False


def count_text(value: float | None) -> str:
    """A number in four characters or so: 999, 1.2k, 12k, 3.4M."""
    if value is None:
        return NONE
    return _scaled(value, 1000.0, ("", "k", "M", "G", "T"))


def bytes_text(value: float | None) -> str:
    """Bytes in five characters or so: 999B, 1.2K, 12M (powers of 1024)."""
    if value is None:
        return NONE
    return _scaled(value, 1024.0, ("B", "K", "M", "G", "T"))


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < base - 0.5:
            return f"{value:.1f}{unit}" if value < 10 and unit not in ("", "B") else f"{value:.0f}{unit}"
        value /= base
    return f"{value:.1f}{units[-1]}"


def ratio_text(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f}%"


def seconds_text(value: float | None) -> str:
    """Seconds in five characters or so: 50us, 2.5ms, 250ms, 1.0s."""
    if value is None:
        return NONE
    if value < 1e-3:
        return f"{value * 1e6:.0f}us"
    if value < 0.01:
        return f"{value * 1e3:.1f}ms"
    return f"{value * 1e3:.0f}ms" if value < 1 else f"{value:.1f}s"


def duration_text(value_s: float) -> str:
    """A long time: 42s, 3m 5s, 2h 3m, 4d 5h."""
    seconds = int(value_s)
    for big, small, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if seconds >= size:
            rest = seconds % size // {"h": 3600, "m": 60, "s": 1}[small]
            return f"{seconds // size}{big} {rest}{small}"
    return f"{seconds}s"


def _sum(
    value: Callable[[Shard], float | None], text: Callable[[float | None], str]
) -> Callable[[tuple[Shard, ...]], str]:
    def total(shards: tuple[Shard, ...]) -> str:
        known = [part for shard in shards if (part := value(shard)) is not None]
        return text(sum(known)) if known else NONE

    return total


def _most(
    value: Callable[[Shard], float | None], text: Callable[[float | None], str]
) -> Callable[[tuple[Shard, ...]], str]:
    def most(shards: tuple[Shard, ...]) -> str:
        return text(max((part for shard in shards if (part := value(shard)) is not None), default=None))

    return most


def _figure(
    title: str,
    width: int,
    value: Callable[[Shard], float | None],
    text: Callable[[float | None], str],
    *,
    rank: int = 0,
    adds_up: bool = True,
) -> Column:
    total = _sum(value, text) if adds_up else _most(value, text)
    return Column(title, width, lambda s: text(value(s)), total, lambda s: value(s) or 0.0, rank)


def state_text(shard: Shard) -> str:
    """The shard's state; of one that serves, what is wrong with it."""
    if shard.state == "serving":
        if shard.silent_s is not None and shard.silent_s > SILENT_S:
            return "silent"
        if shard.lent:
            return "lent"
    return shard.state


def _swap(in_use: int, peak: int, capacity: int) -> str:
    return f"{100 * in_use / capacity:.0f}/{100 * peak / capacity:.0f}%" if capacity else NONE


def _swap_total(shards: tuple[Shard, ...]) -> str:
    """That of the fullest: an average says nothing about a limit that each has for itself."""
    fullest = max(shards, key=lambda shard: shard.swap_peak_ratio, default=None)
    return NONE if fullest is None else _swap_text(fullest)


def _swap_text(shard: Shard) -> str:
    return _swap(shard.swap_in_use_bytes, shard.swap_in_use_peak_bytes, shard.swap_capacity_bytes)


def _queue(depth: int, capacity: int) -> str:
    return f"{count_text(depth)}/{count_text(capacity)}" if capacity else NONE


def _queue_total(shards: tuple[Shard, ...]) -> str:
    return _queue(sum(shard.accept_queue for shard in shards), sum(shard.accept_queue_capacity for shard in shards))


COLUMNS: Final = (
    Column("shard", 5, lambda s: str(s.shard), lambda _: "all", lambda s: -s.shard),
    Column("state", 8, state_text, lambda _: "", lambda s: float(state_text(s) != "serving"), left=True),
    _figure("conns", 5, lambda s: s.connections, count_text),
    _figure("compl/s", 7, lambda s: s.completions_per_s, count_text),
    _figure("in/s", 5, lambda s: s.received_bytes_per_s, bytes_text, rank=1),
    _figure("out/s", 5, lambda s: s.sent_bytes_per_s, bytes_text, rank=1),
    _figure("use", 4, lambda s: s.loop_use_ratio, ratio_text, adds_up=False),
    _figure("lag99", 5, lambda s: s.loop_lag_p99_s, seconds_text, adds_up=False),
    Column("swap", 8, _swap_text, _swap_total, lambda s: s.swap_peak_ratio, rank=2),
    Column(
        "queue",
        7,
        lambda s: _queue(s.accept_queue, s.accept_queue_capacity),
        _queue_total,
        lambda s: float(s.accept_queue),
        rank=2,
    ),
    _figure("PSS", 5, lambda s: s.memory_bytes, bytes_text, rank=3),
    _figure("rst", 3, lambda s: s.restarts, count_text, rank=1),
)
SORTS: Final = tuple(column.title for column in COLUMNS)


def columns_for(width: int, *, bars: bool = False) -> tuple[Column, ...]:
    """The columns that fit; the least important ones go first. With `bars`, there is room left for some."""
    room = width - (SPARK_MIN + 1 if bars else 0)
    columns = list(COLUMNS)
    while len(columns) > 2 and sum(column.width + 1 for column in columns) - 1 > room:
        worst = max(columns, key=lambda column: (column.rank, COLUMNS.index(column)))
        columns.remove(worst)
    return tuple(columns)


def header(view: View, about: Mapping[str, Any], width: int) -> list[str]:
    """What there is to say of the server itself, in two lines."""
    who = f"{about.get('name')}: {about.get('app')} on {', '.join(map(str, about.get('addresses', ())))}"
    notes = [
        "ready" if view.ready else "NOT READY",
        f"{view.serving}/{view.shards_configured} shards serve",
        f"generation {view.generation}",
        f"up {duration_text(view.uptime_s)}",
        f"shardnet {about.get('version')}, {about.get('engine')}",
        _reloads(view),
    ]
    if view.lame_duck:
        notes.insert(0, "LAME DUCK")
    if view.reload_failed:
        notes.insert(0, "LAST RELOAD FAILED")
    if view.reloading:
        notes.insert(0, "reload under way")
    return [printable(who)[:width], printable(", ".join(notes))[:width]]


def printable(text: str) -> str:
    """Without what would move the cursor, or worse: names and stacks are somebody else's words."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def folded(text: list[str], width: int) -> list[str]:
    """Lines no longer than this, what is over on the next one, a little to the right."""
    found = []
    for line in text:
        rest = printable(line.expandtabs())
        while len(rest) > width > FOLD_INDENT:
            found.append(rest[:width])
            rest = " " * FOLD_INDENT + rest[width:]
        found.append(rest[: max(0, width)])
    return found


def _reloads(view: View) -> str:
    if not view.reloads_ok + view.reloads_failed:
        return "no reload yet"
    failed = f", {view.reloads_failed} failed" if view.reloads_failed else ""
    return f"reloads: {view.reloads_ok} ok{failed}, code loaded {duration_text(view.loaded_s)} ago"


def lines(
    view: View, width: int, sort: str = "shard", *, upside_down: bool = False, bars: bool = False
) -> tuple[str, list[tuple[Shard, str]], str]:
    """The line of titles, one for each shard, and that of all together."""
    columns = columns_for(width, bars=bars)
    used = sum(column.width + 1 for column in columns)
    spark = min(SPARK_MAX, width - used) if width - used >= SPARK_MIN else 0
    key = next(column.key for column in COLUMNS if column.title == sort)
    sign = 1 if upside_down else -1
    ordered = sorted(view.shards, key=lambda shard: (sign * key(shard), shard.shard))
    top = max((value for shard in view.shards for value in shard.history[-spark:]), default=0.0) if spark else 0.0
    titles = _row([column.title for column in columns], columns)
    rows = [
        (
            shard,
            f"{_row([column.show(shard) for column in columns], columns)} {_spark(shard.history, spark, top)}".rstrip(),
        )
        for shard in ordered
    ]
    total = _row([column.total(view.shards) for column in columns], columns)
    return (f"{titles} {'completions/s'[:spark]}".rstrip() if spark else titles), rows, total


def _row(cells: list[str], columns: tuple[Column, ...]) -> str:
    return " ".join(
        f"{cell:<{column.width}}" if column.left else f"{cell:>{column.width}}"
        for cell, column in zip(cells, columns, strict=True)
    )


def _spark(history: tuple[float, ...], width: int, top: float) -> str:
    """The last values as bars of one scale for all shards."""
    if not width or top <= 0.0:
        return ""
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in history[-width:])
