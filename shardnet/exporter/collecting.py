"""All that a scrape tells: what the board says, and what is known beside it.

Lives here: which families there are, in which order. Must not live here: formats, and how to look at processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shardnet.board import Board, Family, Labels, Snapshot
from shardnet.catalogue.families import (
    BUILD,
    EVERY,
    SCRAPE_DURATION,
    SHARD_HEARTBEAT,
    SHARD_START_TIME,
    SHARD_STATE,
)
from shardnet.exporter.processes import Processes, listen_failures

__all__ = ["Build", "Collector"]

NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class Build:
    """What is running."""

    version: str
    python: str
    engine: str


class Collector:
    """Collects what a scrape tells, for one server."""

    def __init__(self, board: Board, build: Build, own_pid: int) -> None:
        self._board = board
        self._build = build
        self._processes = Processes(board, own_pid)
        self._took_s = 0.0

    def collect(self) -> list[Family]:
        """Every family that has something to say, in the order of the catalogue; then the app's own.

        Raises:
            SystemFault: the board cannot be read.
        """
        processes = self._processes.look(time.monotonic())
        snapshot = self._board.snapshot()
        found = {family.metric.name: family for family in (*self._beside(snapshot), *processes)}
        found |= snapshot.families
        if states := found.get(SHARD_STATE.name):
            found[SHARD_STATE.name] = _of_occupied(states)
        ours = [found.pop(metric.name) for metric in EVERY if metric.name in found]
        return [*ours, *found.values()]

    def note_scrape(self, took_s: float) -> None:
        """A scrape took so long: the next one tells."""
        self._took_s = took_s

    def prepare(self) -> None:
        """Do what takes a while, for the next scrape."""
        self._processes.weigh(time.monotonic())

    def _beside(self, snapshot: Snapshot) -> Iterator[Family]:
        build = self._build
        yield Family(BUILD, {Labels.of({"version": build.version, "python": build.python, "engine": build.engine}): 1})
        yield Family(SCRAPE_DURATION, {Labels.of({}): self._took_s})
        yield from _shard_times(snapshot)
        yield from listen_failures()


def _shard_times(snapshot: Snapshot) -> Iterator[Family]:
    monotonic_zero_ns = time.time_ns() - time.monotonic_ns()
    starts, beats = Family(SHARD_START_TIME), Family(SHARD_HEARTBEAT)
    for worker in snapshot.workers:  # The youngest of a shard comes last, and overwrites.
        labels = Labels.of({"shard": str(worker.shard)})
        starts.values[labels] = worker.started_ns / NS_PER_S
        if worker.heartbeat_ns:
            beat_s = (monotonic_zero_ns + worker.heartbeat_ns) / NS_PER_S
            beats.values[labels] = max(beat_s, beats.values.get(labels, 0.0))
    yield from (starts, beats)


def _of_occupied(states: Family) -> Family:
    """Without the shards that are in no state, because they are vacant: nobody should be alarmed about those."""
    in_one = {labels.pairs["shard"] for labels, value in states.values.items() if value}
    return Family(states.metric, {labels: n for labels, n in states.values.items() if labels.pairs["shard"] in in_one})
