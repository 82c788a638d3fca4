"""Raw results: every run's figures, and what they were measured on; as JSON and back.

Figures are kept by name in a record's `values`, in the unit that ends the name. Which there are:

    ping, bulk   cpu_us (the server's, for a message), rate_per_s, p50_us, p99_us, p999_us, max_us, load_cpu_us,
                 server_share and load_share (of their CPUs), mb_per_s (one way)
    storm        seconds (first connect to last byte), cpu_us (the server's, for a connection), load_share,
                 overflows (connections that found the accept queue full, and had to try again a second later)
    idle         bytes (more than before there was any connection), bytes_each
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from bench.errors import BenchError

__all__ = ["FORMAT", "Failure", "Record", "Results", "Scenario", "load_results", "save_results"]

FORMAT: Final = 1


class Scenario(StrEnum):
    PING = "ping"  # Many connections, small messages.
    BULK = "bulk"  # One connection, 64 KiB messages.
    STORM = "storm"  # All connect at once and have one message echoed.
    IDLE = "idle"  # Connections that have had one echo and say nothing more.


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one server."""

    server: str
    scenario: Scenario
    round: int
    connections: int
    size_bytes: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that gave no figures, or a server that could not be had."""

    server: str
    what: str
    why: str


@dataclass(slots=True)
class Results:
    """All of a suite, as far as it came. `servers` are names in the order of the report."""

    servers: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # Why, by server.
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    crowd: int = 0  # The storm that everybody was measured with.
    complete: bool = False
    format: int = FORMAT

    def by_round(self, server: str, scenario: Scenario, value: str, connections: int | None = None) -> dict[int, float]:
        """One figure of a server in each round; of the greatest number of connections that it was measured with,
        unless another is given."""
        found = [r for r in self.records if r.server == server and r.scenario is scenario and value in r.values]
        if connections is None:
            connections = max((record.connections for record in found), default=0)
        return {record.round: record.values[value] for record in found if record.connections == connections}

    def sizes(self, server: str, scenario: Scenario) -> list[int]:
        """The numbers of connections that a server was measured with."""
        return sorted({r.connections for r in self.records if r.server == server and r.scenario is scenario})


def save_results(results: Results, path: Path) -> None:
    """Write them whole or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    unfinished.replace(path)


def load_results(path: Path) -> Results:
    """Raises `BenchError` when the file is not there, or is none of ours."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as exc:
        raise BenchError(f"cannot read {path}: {exc.strerror}") from exc
    except msgspec.MsgspecError as exc:
        raise BenchError(f"{path} holds no results of this suite: {exc}") from exc
    if results.format != FORMAT:
        raise BenchError(f"{path} has format {results.format}, and this suite reads {FORMAT}: measure anew")
    return results
