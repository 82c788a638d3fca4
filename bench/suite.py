"""The rounds: every server in turn, again and again, so that what the machine does meanwhile hits all alike.

All servers are up for all rounds of a scenario (one that waits costs nothing), on one CPU; the load generator and we
are on another. Each round begins with another server, and every few rounds all are started anew: where a process comes
to lie in memory makes a percent or two. The next scenario has new servers in any case, because what a process has done
before shows in its figures: asyncio's Protocol takes a third of the CPU once a first crowd has come and gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.building import compile_c
from bench.errors import BenchError
from bench.limits import choose_cpus, raise_file_limit
from bench.measure import Measure
from bench.progress import Progress
from bench.records import Failure, Record, Results, Scenario, save_results
from bench.running import Running, start
from bench.servers import C_EPOLL, Server, command_of

__all__ = ["Settings", "Suite"]

CROWD: Final = 8192
ROUNDS_MAX: Final = 10  # Of one set of servers.
STORM_ROUNDS_MAX: Final = 8  # They take longer, and fewer will do.
SPARE_FILES: Final = 256  # Descriptors of a server, or of the generator, that are no connections.

Run = Callable[[Running], list[Record]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure. `storms` and `idles` are numbers of connections, in growing order."""

    rounds: int = 40
    seconds: float = 0.25
    connections: int = 200
    size_bytes: int = 64
    crowd: int = CROWD  # The storm that everybody is measured with.
    storms: tuple[int, ...] = (1024, 2048, 4096, CROWD, 16384)  # Of C and ours: time against connections.
    idles: tuple[int, ...] = (1000, 2000, 4000, 8000, 15000)
    scenarios: tuple[Scenario, ...] = tuple(Scenario)


class Suite:
    """Measures servers into `results`, which are saved to `path` after each round and are right however it ends."""

    def __init__(self, settings: Settings, servers: Sequence[Server], results: Results, path: Path) -> None:
        """Raises `BenchError` when nothing can be measured here."""
        self._settings = settings
        self._results = results
        self._path = path
        self._cpus = choose_cpus(os.sched_getaffinity(0))
        if self._cpus.load is None:
            results.notes.append("one CPU only: servers and load share it, and throughput and latency mean little")
        awake = self._cpus.load is not None
        program = compile_c("load")
        self._measure = Measure(program, settings.seconds, settings.connections, settings.size_bytes, awake)
        self._largest = self._fit_file_limit()
        self._servers = [server for server in servers if self._can_be_had(server)]
        if not self._servers:
            reasons = "; ".join(f"{name}: {why}" for name, why in results.skipped.items())
            raise BenchError(f"none of the chosen servers can be had here: {reasons}")
        results.servers = [server.name for server in self._servers]
        results.crowd = settings.crowd
        self._progress = Progress(self._count_runs())

    def run(self) -> None:
        """All of it. Whatever comes in between, a `KeyboardInterrupt` for one, no process is left behind."""
        if self._cpus.load is not None:
            os.sched_setaffinity(0, {self._cpus.load})
        try:
            for scenario in self._settings.scenarios:
                if scenario is Scenario.IDLE:
                    self._memory()
                else:
                    self._rounds(scenario)
            self._results.complete = True
        finally:
            self._progress.close()
            save_results(self._results, self._path)

    def _fit_file_limit(self) -> int:
        """The greatest number of connections that the limit of open files allows."""
        settings = self._settings
        wanted = max(settings.crowd, *settings.storms, *settings.idles, settings.connections)
        largest = raise_file_limit(wanted + SPARE_FILES) - SPARE_FILES
        if largest < wanted:
            limit = largest + SPARE_FILES
            self._results.notes.append(f"the limit of {limit} open files left out more than {largest} connections")
        return largest

    def _can_be_had(self, server: Server) -> bool:
        try:
            command_of(server)
        except BenchError as exc:
            self._results.skipped[server.name] = str(exc)
            return False
        return True

    def _storms(self, server: Server) -> list[int]:
        """A crowd for everybody, and for C and ours all the others."""
        sizes = {self._settings.crowd}
        if server.ours or server.name == C_EPOLL:
            sizes.update(self._settings.storms)
        return sorted(size for size in sizes if size <= self._largest)

    def _count_runs(self) -> int:
        settings = self._settings
        in_rounds = sum(
            self._rounds_of(scenario) * len(self._runs(scenario, server))
            for scenario in settings.scenarios
            for server in self._servers
        )
        return in_rounds + len(self._servers) * (Scenario.IDLE in settings.scenarios)

    def _rounds_of(self, scenario: Scenario) -> int:
        rounds = self._settings.rounds
        return min(rounds, STORM_ROUNDS_MAX) if scenario is Scenario.STORM else rounds

    def _runs(self, scenario: Scenario, server: Server, number: int = 0) -> list[tuple[str, Run]]:
        """What a round has of a scenario for a server; memory is none of it."""
        measure = self._measure
        match scenario:
            case Scenario.PING:
                return [("ping", lambda running: [measure.ping(running, number)])]
            case Scenario.BULK:
                return [("bulk", lambda running: [measure.bulk(running, number)])]
            case Scenario.STORM:
                return [
                    (f"storm of {size}", functools.partial(self._storm, number, size)) for size in self._storms(server)
                ]
            case Scenario.IDLE:
                return []

    def _storm(self, number: int, size: int, running: Running) -> list[Record]:
        return [self._measure.storm(running, number, size)]

    def _rounds(self, scenario: Scenario) -> None:
        rounds = self._rounds_of(scenario)
        for first in range(0, rounds, ROUNDS_MAX):
            self._with_new_servers(scenario, range(first, min(first + ROUNDS_MAX, rounds)), rounds)

    def _with_new_servers(self, scenario: Scenario, numbers: range, rounds: int) -> None:
        """These rounds, of so many."""
        with contextlib.ExitStack() as stack:
            self._progress.step(f"{scenario}, starting the servers")
            running = {}
            for server in self._servers:
                stack.enter_context(self._noting(server, "end"))  # Entered first, and so left last.
                with self._noting(server, "start"):
                    running[server.name] = stack.enter_context(start(server, self._cpus.server))
            for number in numbers:
                self._progress.step(f"{scenario}, round {number + 1} of {rounds}")
                self._round(scenario, number, running)
                save_results(self._results, self._path)
            self._progress.step(f"{scenario}, ending the servers")

    def _round(self, scenario: Scenario, number: int, running: dict[str, Running]) -> None:
        first = number % len(self._servers)
        for server in (*self._servers[first:], *self._servers[:first]):
            for what, run in self._runs(scenario, server, number):
                self._progress.run(f"{what}, {server.name}")
                # One that could not be started is not there, and after one wrong byte no figure counts any more.
                if (found := running.pop(server.name, None)) is not None:
                    with self._noting(server, what):
                        self._results.records += run(found)
                        running[server.name] = found

    def _memory(self) -> None:
        self._progress.step("idle")
        steps = [size for size in self._settings.idles if size <= self._largest]
        for server in self._servers if steps else ():
            self._progress.run(server.name)
            with self._noting(server, "idle"), start(server, self._cpus.server) as running:
                self._results.records += self._measure.idle(running, steps, 0)

    @contextlib.contextmanager
    def _noting(self, server: Server, what: str) -> Iterator[None]:
        """Of a server that fails, say so and go on with the others."""
        try:
            yield
        except BenchError as exc:
            self._results.failures.append(Failure(server.name, what, str(exc)))
            self._progress.say(f"{server.name}, {what}: {exc}")
