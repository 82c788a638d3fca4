"""One run, one record.

The server's CPU time is read while it rests, before the first message and after the last, so that what lies between is
exactly that of the messages counted, connecting and closing left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.load import LoadRun, run_load
from bench.proc import cpu_ns, listen_overflows, private_dirty_bytes, settle
from bench.records import Record, Scenario
from bench.running import Running

__all__ = ["BULK_BYTES", "Measure"]

BULK_BYTES: Final = 65536
STORM_BYTES: Final = 1024
IDLE_BYTES: Final = 64
WARM_CONNECTIONS: Final = 64  # Before memory is measured: what a server allocates once is no connection's.
WARM_MESSAGES: Final = 50


@dataclass(frozen=True, slots=True)
class Measure:
    """How to measure: with which generator, how long, and whether it may stay awake."""

    program: Path
    seconds: float
    connections: int
    size_bytes: int
    awake: bool

    def ping(self, server: Running, number: int) -> Record:
        """Many connections, small messages."""
        return self._pings(server, Scenario.PING, number, self.connections, self.size_bytes)

    def bulk(self, server: Running, number: int) -> Record:
        """One connection, large messages."""
        return self._pings(server, Scenario.BULK, number, 1, BULK_BYTES)

    def _pings(self, server: Running, scenario: Scenario, number: int, connections: int, size_bytes: int) -> Record:
        options = ["--connections", str(connections), "--size", str(size_bytes), "--seconds", str(self.seconds)]
        with self._load("ping", server, options) as load:
            said, used_ns = self._timed(load, server)
        settle(server.pid)
        messages, seconds, load_s = said["messages"], said["seconds"], said["cpu_s"]
        values = {
            "cpu_us": used_ns / messages / 1e3,
            "rate_per_s": messages / seconds,
            "mb_per_s": messages * size_bytes / seconds / 1e6,
            "load_cpu_us": load_s / messages * 1e6,
            "server_share": used_ns / 1e9 / seconds,
            "load_share": load_s / seconds,
            "messages": messages,
            "seconds": seconds,
        }
        values |= {name: said[name] for name in ("p50_us", "p99_us", "p999_us", "max_us")}
        return Record(server.name, scenario, number, connections, size_bytes, values)

    def storm(self, server: Running, number: int, connections: int) -> Record:
        """All connect at once, and each has one message echoed."""
        options = ["--connections", str(connections), "--size", str(STORM_BYTES)]
        with self._load("storm", server, options) as load:
            overflows_before = listen_overflows()
            said, used_ns = self._timed(load, server)
            overflows = listen_overflows() - overflows_before
        settle(server.pid)
        values = {
            "seconds": said["seconds"],
            "cpu_us": used_ns / connections / 1e3,
            "load_share": said["cpu_s"] / said["seconds"],
            "overflows": float(overflows),
        }
        return Record(server.name, Scenario.STORM, number, connections, STORM_BYTES, values)

    def idle(self, server: Running, steps: Sequence[int], number: int) -> list[Record]:
        """Memory against connections. The server must have had none to speak of before: memory that was freed is
        used again without a trace."""
        warm = ["--connections", str(WARM_CONNECTIONS), "--messages", str(WARM_MESSAGES)]
        with self._load("ping", server, [*warm, "--size", str(IDLE_BYTES)]) as load:
            self._timed(load, server)
        settle(server.pid)
        before = private_dirty_bytes(server.pid)
        options = ["--steps", ",".join(str(step) for step in steps), "--size", str(IDLE_BYTES)]
        records = []
        with self._load("idle", server, options) as load:
            load.expect("ready")
            for step in steps:
                load.go()
                load.expect("step")
                settle(server.pid)
                grown = private_dirty_bytes(server.pid) - before
                values = {"bytes": float(grown), "bytes_each": grown / step}
                records.append(Record(server.name, Scenario.IDLE, number, step, IDLE_BYTES, values))
        return records

    def _load(self, mode: str, server: Running, options: Sequence[str]) -> AbstractContextManager[LoadRun]:
        return run_load(self.program, mode, server.port, [*options, *([] if self.awake else ["--sleep"])])

    @staticmethod
    def _timed(load: LoadRun, server: Running) -> tuple[dict[str, Any], int]:
        """Let it do what it does: its result, and the CPU time that the server took."""
        load.expect("ready")
        before_ns = settle(server.pid)
        load.go()
        said = load.expect("result")
        settle(server.pid)
        return said, cpu_ns(server.pid) - before_ns
