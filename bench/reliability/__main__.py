"""The command line of the comparison: `python -m bench.reliability`, or `make reliability`."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from bench.environment import describe
from bench.errors import BenchError
from bench.reliability.servers import OTHERS, Ended, Other, RunningOther
from shardnet import __version__
from shardnet.chaos.crowd import Crowd
from shardnet.chaos.faults import Injector
from shardnet.chaos.options import Options
from shardnet.chaos.server import TestServer
from shardnet.chaos.session import Outcome
from shardnet.chaos.tally import NO_FAULT, Counts, Tally
from shardnet.errors import ShardnetError

SHARDNET: Final = "shardnet"
APP: Final = "bench.reliability.apps:handler"
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
MIX: Final = {"kill": 10, "stop": 2, "reload": 5, "scale": 5}
REST_S: Final = 1.0
ABOUT: Final = ("python", "kernel", "cpu")
COLUMNS: Final = (
    "server", "fault", "injected", "connections", "refused", "reset", "hung", "stalled", "cut", "accepted by",
    "answered by",
)  # fmt: skip


@dataclass(slots=True)
class Trial:
    """One server's run."""

    server: str
    version: str
    command: str
    counts: dict[str, Counts]
    notes: list[str]


@dataclass(slots=True)
class Subject:
    """A server at work, whichever it is."""

    address: tuple[str, int]
    faults: Mapping[str, Callable[[], None]]
    notes: list[str]


@contextmanager
def shardnet_at_work(options: Options, log: Path) -> Iterator[Subject]:
    with TestServer(APP, ["--workers", str(options.workers), "--metrics-bind", "127.0.0.1:0"], log) as server:
        injector = Injector(server, options, random.Random(options.seed))
        injector.wait_whole()
        yield Subject(server.address, {fault: partial(injector.inject, fault) for fault in MIX}, [])


@contextmanager
def other_at_work(other: Other, options: Options, log: Path) -> Iterator[Subject]:
    with RunningOther(other, options.workers, log, random.Random(options.seed), options.stop_for_s) as running:
        yield Subject(running.address, running.faults, running.notes)


AtWork = Callable[[], AbstractContextManager[Subject]]


def trial_of(name: str, version: str, command: str, at_work: AtWork, options: Options) -> Trial:
    """What came of every connection while each fault was injected as often as the options say, each kind on a server of
    its own: some do not come through the first."""
    trial = Trial(name, version, command, {}, [])
    for fault, times in options.faults.items():
        click.echo(f"{name}: {fault}", err=True)
        tally = Tally()
        with at_work() as subject:
            if fault not in subject.faults:
                continue
            try:
                inject(subject, fault, times, tally, options)
            except Ended as exc:
                trial.notes.append(f"{fault}: {exc}")
            trial.notes += [f"{fault}: {note}" for note in subject.notes]
        for kind, counts in tally.by_fault.items():
            trial.counts[kind] = trial.counts.get(kind, Counts()) + counts
    return trial


def inject(subject: Subject, fault: str, times: int, tally: Tally, options: Options) -> None:
    with Crowd(
        tally, subject.address, clients=options.clients, rate=options.rate, request=options.request,
        timeout_s=options.timeout_s, seed=options.seed,
    ):  # fmt: skip
        time.sleep(REST_S)
        for _ in range(times):
            tally.begin(fault)
            try:
                subject.faults[fault]()
            finally:
                tally.end()
            time.sleep(REST_S / 2)
        time.sleep(REST_S)


def shardnet_trial(options: Options, log: Path) -> Trial:
    command = f"shardnet run {APP} --workers {options.workers}"
    return trial_of(SHARDNET, __version__, command, partial(shardnet_at_work, options, log), options)


def other_trial(other: Other, options: Options, log: Path) -> Trial:
    words = " ".join(other.words("PORT", options.workers))
    return trial_of(other.name, other.version, words, partial(other_at_work, other, options, log), options)


def rows_of(trial: Trial) -> Iterator[list[str]]:
    for fault in (NO_FAULT, *MIX):
        if fault not in trial.counts:
            yield [trial.server, fault, "cannot", *[""] * 8]
            continue
        one = trial.counts[fault]
        kinds = (Outcome.REFUSED, Outcome.RESET, Outcome.HUNG, Outcome.STALLED, Outcome.CUT)
        yield [
            trial.server,
            fault,
            str(one.injections or ""),
            f"{one.attempted:,}",
            *(f"{one.outcomes[kind]:,}" for kind in kinds),
            f"{one.accept_worst_s * 1000:,.0f} ms",
            f"{one.answer_worst_s * 1000:,.0f} ms",
        ]


def as_markdown(trials: list[Trial], options: Options) -> str:
    lines = ["|".join(["", *COLUMNS, ""]), "|".join(["", "---", "---", *["---:"] * (len(COLUMNS) - 2), ""])]
    lines += ["|".join(["", *row, ""]) for trial in trials for row in rows_of(trial)]
    lines += ["", f"{options.clients} clients, {options.rate:g} connections/s, {options.workers} workers.", ""]
    lines += [f"- {trial.server} {trial.version}: `{trial.command}`" for trial in trials]
    lines += [f"- {trial.server}: {note}" for trial in trials for note in dict.fromkeys(trial.notes)]
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", metavar="NAMES", help="Some of them, with commas between: shardnet, gunicorn, uvicorn, ...")
@click.option(
    "--times",
    type=click.FloatRange(min=0.01),
    default=1.0,
    metavar="X",
    help="So much of the usual number of faults. [1]",
)
@click.option("--clients", type=int, default=32, metavar="N", help="Clients, each a connection at a time. [32]")
@click.option("--rate", type=float, default=500.0, metavar="R", help="Connections/s of all clients. [500]")
@click.option("--workers", type=int, default=4, metavar="N", help="Workers of each server. [4]")
def main(only: str | None, times: float, clients: int, rate: float, workers: int) -> None:
    """Do the same to shardnet and to other servers with several workers on one port, and print what became of every
    connection as a table in Markdown: some minutes."""
    chosen = [name.strip() for name in only.split(",")] if only else [SHARDNET, *(other.name for other in OTHERS)]
    others = {other.name: other for other in OTHERS}
    if unknown := set(chosen) - {SHARDNET, *others}:
        raise click.UsageError(f"no server {', '.join(sorted(unknown))}: there are {SHARDNET}, {', '.join(others)}")
    faults = {fault: max(1, round(count * times)) for fault, count in MIX.items()}
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = Options(faults, workers=workers, clients=clients, rate=rate, request=REQUEST)
            for name in chosen:
                log = Path(folder) / "log"
                trials.append(
                    shardnet_trial(options, log) if name == SHARDNET else other_trial(others[name], options, log)
                )
        except (BenchError, ShardnetError) as exc:
            click.echo(f"bench.reliability: {exc}", err=True)
            sys.exit(1)
    click.echo(as_markdown(trials, options))
    about = describe()
    click.echo("\n" + ", ".join(about[what] for what in ABOUT if about.get(what)))


if __name__ == "__main__":
    main()
