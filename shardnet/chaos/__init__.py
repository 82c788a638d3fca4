"""The loss harness behind `shardnet chaos`: a real server is hurt under load, and every connection is accounted for.

Lives here: one run, from the server's start to the report. Must not live here: the command line.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from shardnet.chaos.crowd import Crowd
from shardnet.chaos.faults import RECOVERED_S, Injector
from shardnet.chaos.options import FAULTS, MIXES, Options, parse_faults
from shardnet.chaos.report import Report, as_json, as_text
from shardnet.chaos.server import TestServer
from shardnet.chaos.sockdiag import SockDiag
from shardnet.chaos.tally import Tally
from shardnet.errors import ShardnetError

__all__ = ["FAULTS", "MIXES", "Options", "Report", "as_json", "as_text", "chaos", "parse_faults"]

WARM_S: Final = 1.0  # Of load before the first fault, and after the last.
GAP_MAX_S: Final = 0.3  # Between two faults, at random: no fault always meets the same state.


class Progress(Protocol):
    """Who is told how a run goes."""

    def begin(self, address: str, options: Options, log: Path) -> None:
        """The load has begun, and no fault has."""

    def inject(self, done: int, planned: int | None, fault: str, tally: Tally) -> None:
        """So many faults were injected, of so many (None: until the time is over), and this one is next."""


def chaos(app: str, options: Options, run_flags: Sequence[str], log: Path, progress: Progress) -> Report:
    """Serve `app`, with more flags of `shardnet run`, put it under load, and inject the faults. The log is kept.

    Ctrl-C ends it early. Raises `ShardnetError` where that cannot begin at all.
    """
    with SockDiag():
        pass  # The clients need it, and would each complain.
    flags = ["--workers", str(options.workers), "--metrics-bind", "127.0.0.1:0"]
    flags += ["--hang-timeout", str(options.hang_timeout_s), *run_flags]
    tally = Tally()
    report = Report(app, "", tally.by_fault, 0.0, options.clients, 0.0)
    with TestServer(app, flags, log) as server:
        injector = Injector(server, options, random.Random(options.seed))
        report.version = injector.wait_whole()["version"]
        report.before = server.holdings()
        with Crowd(
            tally, server.address, clients=options.clients, rate=options.rate, request=options.request,
            timeout_s=options.timeout_s, seed=options.seed,
        ) as crowd:  # fmt: skip
            began_s = time.monotonic()
            try:
                progress.begin(server.address_text, options, log)
                _inject_all(injector, options, tally, progress)
            except KeyboardInterrupt:
                report.stopped_early = True
            except ShardnetError as error:
                report.gave_up = str(error)
            report.seconds = time.monotonic() - began_s
            report.others += [f"clients ended with exit status {status}" for status in crowd.lost()]
        _look_after(server, injector, report)
    report.exit_status = server.exit_status
    report.pause_worst_s = tally.pause_worst_s
    return report


def _inject_all(injector: Injector, options: Options, tally: Tally, progress: Progress) -> None:
    source = random.Random(options.seed)
    planned = sum(options.faults.values()) if options.duration_s is None else None
    injector.rest(WARM_S)
    for done, fault in enumerate(_plan(options, source)):
        progress.inject(done, planned, fault, tally)
        tally.begin(fault)
        try:
            injector.inject(fault)
        finally:
            tally.end()
        injector.rest(source.random() * GAP_MAX_S)
    if options.duration_s is not None and not options.faults:
        injector.rest(options.duration_s)
    injector.rest(WARM_S)


def _plan(options: Options, source: random.Random) -> Iterator[str]:
    if options.duration_s is None:
        yield from options.round(source)
        return
    until_s = time.monotonic() + options.duration_s
    while options.faults and time.monotonic() < until_s:
        for fault in options.round(source):
            if time.monotonic() >= until_s:
                return
            yield fault


def _look_after(server: TestServer, injector: Injector, report: Report) -> None:
    """What the server has once it is quiet again."""
    try:
        injector.wait_whole()
        server.wait(
            lambda status: not any(shard["connections"] for shard in status["shards"]),
            "waiting for the connections to be over", RECOVERED_S,
        )  # fmt: skip
        report.after = server.holdings()
    except ShardnetError as error:
        report.others.append(str(error))
    report.generations_most = server.generations_most
