"""HUP and USR1 to real supervisors; the workers are those of `supervised.py`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from shardnet.catalogue.families import GENERATION, RELOADS, SHARD_RESTARTS, UNASKED_REASONS
from tests.supervising import Run, Supervised, fd_targets, running, value

pytestmark = pytest.mark.process


@pytest.fixture
def run() -> Iterator[Run]:
    with running() as start:
        yield start


def reload(supervised: Supervised, generation: int) -> None:
    """One that succeeds, up to the end of the old workers."""
    supervised.signal(signal.SIGHUP)
    supervised.logged('event="reload"', f"generation={generation}")
    supervised.logged('event="reloaded"', f"generation={generation} took_s=0.")
    for _ in supervised.workers():
        supervised.logged('event="worker ended"')


def wait_ended(supervised: Supervised, workers: int) -> None:
    """Until so many have ended since the start."""
    supervised.until(lambda: True if sum("worker ended" in line for line in supervised.log) >= workers else None)


def test_reload_replaces_every_worker_and_not_the_exporter(run: Run) -> None:
    supervised = run("--shards", "3", "--exporter")
    old = supervised.serving()
    reload(supervised, 2)
    new = supervised.workers()
    assert {fact["generation"] for fact in new.values()} == {2}
    assert {fact["held"] for fact in new.values()} == {True}
    assert not {fact["pid"] for fact in new.values()} & {fact["pid"] for fact in old.values()}
    assert len([line for line in supervised.log if 'event="worker held"' in line]) == 3
    assert [fact["spread_s"] for fact in supervised.said("drain")] == [0.5] * 3
    assert supervised.ask()["generation"] == 2
    assert len(supervised.said("exporter")) == 1
    assert value(supervised, GENERATION) == 2
    assert value(supervised, RELOADS, outcome="ok") == 1
    assert supervised.stop() == 0
    assert [fact["spread_s"] for fact in supervised.said("drain")[3:]] == [0.0] * 3


@pytest.mark.parametrize(
    ("boot", "why"),
    [
        ("app-fails-later", "app:handler does not import"),
        ("crash-later", r"shard \d: exit status 3"),
        ("hang-later", "shard 0: boot timeout"),
    ],
)
def test_generation_that_does_not_come_up_is_discarded_with_one_error(run: Run, boot: str, why: str) -> None:
    supervised = run("--shards", "3", "--exporter", "--boot", boot, "--boot-timeout", "0.3")
    old = supervised.serving()
    supervised.signal(signal.SIGHUP)
    line = supervised.logged(" error supervisor ")
    wait_ended(supervised, 3)
    assert supervised.ask()["pid"] in {fact["pid"] for fact in old.values()}
    assert value(supervised, GENERATION) == 1
    assert value(supervised, RELOADS, outcome="failed") == 1
    supervised.signal(signal.SIGHUP)
    supervised.logged('event="reloaded"', "generation=3")
    wait_ended(supervised, 6)
    assert supervised.ask()["generation"] == 3
    for shard in "012":
        assert not any(value(supervised, SHARD_RESTARTS, shard=shard, reason=reason) for reason in UNASKED_REASONS)
    assert supervised.stop() == 0
    assert re.search(rf'error supervisor event="reload failed: {why}, generation 1 keeps serving"', line), line
    assert len([line for line in supervised.log if " error " in line]) == 1


def test_storm_of_reloads_is_two_and_leaks_no_descriptor(run: Run) -> None:
    supervised = run("--shards", "2", "--addresses", "2", "--exporter")
    supervised.serving()
    reload(supervised, 2)
    before = fd_targets(supervised.process.pid)
    for _ in range(200):
        supervised.signal(signal.SIGHUP)
    supervised.logged('event="reloaded"', "generation=3")
    for _ in range(2):
        supervised.logged('event="worker ended"')
    supervised.signal(signal.SIGUSR1)  # Handled after all of those.
    supervised.logged('event="reopening logs"')
    last = max(fact["generation"] for fact in supervised.workers().values())
    assert last <= 4
    assert supervised.stop() == 0
    assert len(before) == len(set(before))


def test_worker_of_any_generation_has_exactly_its_own_descriptors(run: Run) -> None:
    supervised = run("--shards", "3", "--addresses", "2", "--exporter", "--stray-fds", "3")
    supervised.serving()
    before = fd_targets(supervised.process.pid)
    for generation in (2, 3, 4):
        reload(supervised, generation)
    owners: dict[str, int] = {}
    for worker in supervised.workers().values():
        targets = fd_targets(worker["pid"])
        assert sorted(targets) == sorted({0, 1, 2, *worker["fds"]})
        for fd in worker["fds"]:
            if targets[fd].startswith("socket:"):
                assert owners.setdefault(targets[fd], worker["pid"]) == worker["pid"]
    after = fd_targets(supervised.process.pid)
    assert len(after) == len(before)
    listeners = {target for target in before.values() if target.startswith("socket:")}
    assert len(listeners & owners.keys()) == 3 * 2


def test_stop_in_the_middle_of_a_reload_ends_both_generations(run: Run) -> None:
    supervised = run("--shards", "2", "--exporter", "--boot", "hang-later")
    supervised.serving()
    supervised.signal(signal.SIGHUP)
    supervised.logged('event="worker held"', "shard=1")
    assert supervised.stop() == 0
    supervised.logged('event="worker ended"', "shard=0 generation=2", 'how="signal 15 SIGTERM"')
    assert [line for line in supervised.log if " error " in line] == []


def test_hang_up_is_left_ignored_under_nohup(run: Run) -> None:
    supervised = run("--hang-up-ignored")
    supervised.serving()
    supervised.signal(signal.SIGHUP)
    supervised.signal(signal.SIGUSR1)
    supervised.logged('event="reopening logs"')
    assert supervised.stop() == 0
    assert [line for line in supervised.log if "reload" in line] == []


def test_reopening_logs_is_passed_on_to_every_child(run: Run) -> None:
    supervised = run("--shards", "2", "--exporter")
    supervised.serving()
    supervised.fact("exporter")
    supervised.signal(signal.SIGUSR1)
    supervised.logged('event="reopening logs"')
    told = [supervised.fact("reopen_logs")["shard"] for _ in range(3)]
    assert sorted(told, key=str) == [0, 1, None]
    assert supervised.ask()["generation"] == 1


def test_children_survive_the_signals_that_are_for_their_supervisor(run: Run) -> None:
    """Whoever sends HUP or USR1 by name sends it to every process of that name."""
    supervised = run("--shards", "2", "--exporter")
    pids = [*(fact["pid"] for fact in supervised.serving().values()), supervised.fact("exporter")["pid"]]
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGHUP)
    assert supervised.ask()["pid"] in pids
    assert supervised.stop() == 0
    assert [line for line in supervised.log if " error " in line] == []
