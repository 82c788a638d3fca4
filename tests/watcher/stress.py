"""The stress: one watcher with thousands of connections, everything at random, every byte and every sum checked.

    python -m tests.watcher.stress --seconds 600 --connections 8000

The peers run in processes of their own (`stress_peers`). The time is spent in rounds. A round ends when every stream
was read to its end on both sides; then the sums of both must agree, nothing may be left of what was asked, and memory
may not have grown since the end of the first round. The last, short round is cut off by `close()`, from another thread,
with everything under way. Ctrl-C ends the work early, and sums up.

Progress goes to stderr, the summary to stdout. The exit status is 0 when all is well, 1 with a line for each
violation, and 2 where the limit of descriptors leaves no room for connections.

Lives here: rounds and sums. Must not live here: what is asked (`stress_driver`), and which answers are right
(`stress_judge`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shardnet.filelimit import raise_file_limit
from shardnet.watcher import Channel, Completion, Watcher
from shardnet.watcher.operations import Operation
from shardnet.watcher.queued import QueuedEndpoint
from tests.watcher.stress_driver import LOCAL, Driver
from tests.watcher.stress_fleet import Fleet, Sums
from tests.watcher.stress_streams import Streams

RESERVED_FDS: Final = 256  # Listeners, pipes, accepts under way.
PROCESSES_MIN: Final = 2
LISTENERS: Final = 2
NARROW_BYTES: Final = 16384
ROUND_S: Final = 60.0
ROUNDS_MIN: Final = 2  # There must be something to compare.
CLOSING_SHARE: Final = 0.1  # Of a round's length, the last one's; at least `CLOSING_MIN_S`.
CLOSING_MIN_S: Final = 2.0
PROGRESS_S: Final = 5.0
PATIENCE_S: Final = 120.0  # For all that is under way to come to its end.
MARGIN_BYTES: Final = 8 << 20  # What private memory may vary by: allocators keep what they had at the peak.
MARGIN_BLOCKS: Final = 4000  # What the objects of the interpreter may: far fewer than there are connections in a round.
VIOLATIONS_SHOWN_MAX: Final = 50
OURS: Final = (Operation, Completion, QueuedEndpoint, Channel)


@dataclass(frozen=True, slots=True)
class Row:
    """The end of one round."""

    name: str
    seconds: float
    settling_s: float
    submitted: int
    opened: int
    compared: int  # Streams of which both ends saw the end.
    alive: int
    private_bytes: int
    blocks: int  # Of the interpreter's own allocator.


class Meddler:
    """A thread that wakes the watcher now and then, drops connections, and at last closes the watcher."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._over = threading.Event()
        self._close = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def close_watcher(self) -> None:
        self._close = True
        self._over.set()

    def _run(self) -> None:
        chance = random.Random()
        while not self._over.wait(chance.uniform(0.001, 0.1)):
            self._driver.watcher.wake()
            with contextlib.suppress(IndexError):
                self._driver.graveyard.pop()
        if self._close:
            self._driver.watcher.close()


class Stress:
    """One run. `violations` and `rows` say how it went."""

    def __init__(self, options: argparse.Namespace, driver: Driver, fleet: Fleet, meddler: Meddler) -> None:
        self.rows: list[Row] = []
        self.stopped = False
        self._options = options
        self._driver = driver
        self._judge = driver.judge
        self._fleet = fleet
        self._meddler = meddler
        self._begun_s = self._told_s = time.monotonic()
        self._name = ""

    def run(self) -> None:
        seconds = self._options.seconds
        count = max(ROUNDS_MIN, round(seconds / ROUND_S))
        closing_s = max(CLOSING_MIN_S, seconds / count * CLOSING_SHARE)
        for number in range(1, count + 1):
            self._name = f"{number} of {count}"
            self._round(max(1.0, (seconds - closing_s) / count))
            if self.stopped:
                break
        self._name = "closing"
        self._round(closing_s, closing=True)

    def stop(self, *_: object) -> None:
        """For Ctrl-C: end the work, and sum up. A second one is as deadly as ever."""
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._driver.watcher.wake()

    # A round.

    def _round(self, seconds: float, *, closing: bool = False) -> None:
        driver, judge = self._driver, self._judge
        submitted, opened = judge.submitted, driver.opened
        begun_s = time.monotonic()
        driver.start()
        self._fleet.say("open")
        while time.monotonic() < begun_s + seconds and not self.stopped:
            driver.turn()
            self._progress()
        worked_s = time.monotonic() - begun_s
        reports = self._close() if closing else self._settle()
        settling_s = time.monotonic() - begun_s - worked_s
        driver.release()
        compared = self._compare(reports)
        del reports  # Much of it, and none of the watcher's.
        self._check_statistics(closed=closing)
        driver.ended.clear()
        alive = living()
        for name, left in alive.items():
            judge.violate(f"round {self._name}: {left} {name} objects are alive at its end")
        used, blocks = private_bytes(), sys.getallocatedblocks()
        if self.rows:
            grown, more = used - self.rows[0].private_bytes, blocks - self.rows[0].blocks
            if grown > MARGIN_BYTES or more > MARGIN_BLOCKS:
                judge.violate(
                    f"round {self._name}: {grown} bytes and {more} objects more than after the first are left"
                )
        submitted, opened = judge.submitted - submitted, driver.opened - opened
        self.rows.append(
            Row(
                self._name,
                worked_s,
                settling_s,
                submitted,
                opened,
                compared,
                sum(alive.values()),
                used,
                sys.getallocatedblocks(),
            )
        )

    def _settle(self) -> list[dict[str, Any]]:
        """Read every stream to its end, and give all up; what the peers have to say."""
        driver = self._driver
        self._fleet.say("settle")
        driver.settle()
        self._turn_until("connections and operations", lambda: driver.unsettled)
        self._fleet.say("report")  # When nothing is left. Until then some may still wait to be accepted.
        reports: list[dict[str, Any]] = []
        self._turn_until("reports of the peers", lambda: self._missing(reports))
        self._turn_until("connections and operations", lambda: driver.unsettled)
        driver.end_listening()
        self._turn_until("operations", lambda: len(self._judge.pending))
        self._driver.take(0)  # The batch before is given back by this.
        self._driver.take(0)
        return reports

    def _close(self) -> list[dict[str, Any]]:
        """Close the watcher in the middle of everything; what the peers have to say."""
        self._fleet.say("settle")
        self._judge.closing = True
        self._meddler.close_watcher()
        while self._driver.take(None):
            pass
        if not self._driver.watcher.closed:
            self._judge.violate("wait_io raised WatcherClosed, and yet the watcher says that it is not closed")
        if self._judge.pending:
            left = len(self._judge.pending)
            self._judge.violate(f"{left} operations have no completion after close, such as {self._example()}")
        self._driver.abandon()
        for listener in self._driver.listeners:
            listener.close()
        self._fleet.say("report")
        reports: list[dict[str, Any]] = []
        try:
            while self._missing(reports, timeout_s=PATIENCE_S):
                pass
        except queue.Empty:
            self._judge.violate(f"the peers have not reported within {PATIENCE_S} s of the close")
        return reports

    def _turn_until(self, what: str, left: Any) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while left():
            if time.monotonic() > until_s:
                self._judge.violate(
                    f"round {self._name}: {left()} {what} are left {PATIENCE_S} s after its end: {self._example()}"
                )
                return
            self._driver.turn()
            self._progress()

    def _example(self) -> str:
        return str(next(iter(self._judge.pending.values()), "nothing is pending"))

    def _missing(self, reports: list[dict[str, Any]], timeout_s: float = 0.0) -> int:
        """How many reports are still to come."""
        if len(reports) == len(self._fleet):
            return 0
        if self._fleet.reports.empty() and not timeout_s:
            return len(self._fleet) - len(reports)
        report = self._fleet.reports.get(timeout=timeout_s or None)
        if report is None:
            raise RuntimeError("a process of the peers has died")
        reports.append(report)
        return len(self._fleet) - len(reports)

    # Sums.

    def _compare(self, reports: list[dict[str, Any]]) -> int:
        """Hold what both ends say of each stream against each other; how many there were to be compared."""
        judge, compared = self._judge, 0
        for report in reports:
            for fault in report["faults"]:
                judge.violate(f"round {self._name}: a peer says: {fault}")
            if report["left"]:
                judge.violate(f"round {self._name}: {report['left']} connections never ended for their peers")
            for number, sums in report["ended"].items():
                compared += self._compare_one(int(number), Sums(*sums))
        return compared

    def _compare_one(self, number: int, peer: Sums) -> int:
        judge, link = self._judge, self._driver.ended.get(number)
        if link is None:
            if peer.received:
                judge.violate(f"connection {number}: its peer got {peer.received} bytes, and the watcher had none such")
            return 0
        compared = 0
        if link.eof and not link.reset:
            compared += 1
            if link.taken != peer.sent:
                judge.violate(f"{link}: the stream ended after {link.taken} bytes, and its peer sent {peer.sent}")
        if peer.end and not peer.reset:
            compared += 1
            if link.moved != peer.received:
                judge.violate(f"{link}: wrote {link.moved} bytes, and its peer got {peer.received}, to the end")
        return compared

    def _check_statistics(self, *, closed: bool) -> None:
        """Nothing is under way: what the watcher counted must be what was done."""
        said, judge = self._driver.watcher.statistics(), self._judge
        outcomes = (
            said.completed_ok
            + said.completed_eof
            + said.completed_cancelled
            + said.completed_deadline
            + said.completed_reset
            + said.completed_error
        )
        lost = self._driver.dropped - said.connections_dropped
        pairs = {
            "submitted": (said.submitted, judge.submitted),
            "completed": (said.completed, judge.completed),
            "the sum of the outcomes": (outcomes, judge.completed),
            "completed_deadline": (said.completed_deadline, judge.of("DeadlineExceeded")),
            "completed_eof": (said.completed_eof, judge.of("EOFError")),
            "completed_cancelled": (said.completed_cancelled, judge.of("ConnectionFreed") + judge.of("WatcherClosed")),
            "received_bytes": (said.received_bytes, judge.read_bytes),
            "sent_bytes": (said.sent_bytes, judge.written_bytes),
            # What was dropped with something pending may have been closed by `close` instead.
            "connections_dropped": (0 if closed and lost >= 0 else lost, 0),
        }
        for name in ("pending", "waiting", "deadlines", "connections", "connections_pending", "swap_in_use_bytes"):
            pairs[name] = (getattr(said, name), 0)
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                judge.violate(f"round {self._name}: statistics say of {name} {theirs}, and it should be {ours}")

    def _progress(self) -> None:
        now_s = time.monotonic()
        if now_s < self._told_s + PROGRESS_S:
            return
        self._told_s = now_s
        self._judge.look_for_forgotten()
        said = self._driver.watcher.statistics()
        if said.submitted != said.completed + said.pending or said.submitted != self._judge.submitted:
            self._judge.violate(f"submitted is not completed + pending: {said}")
        print(
            f"stress: {now_s - self._begun_s:.0f} s, round {self._name}{', settling' * self._driver.settling}: "
            f"{said.submitted} operations, {said.completed} completions, {said.connections} connections "
            f"({self._driver.opened} opened), {said.received_bytes >> 20} MB in, {said.sent_bytes >> 20} MB out, "
            f"swap peak {said.swap_peak_bytes}, exhausted {said.swap_exhausted}, abandoned {said.swap_abandoned}, "
            f"{self._judge.counts['violations']} violations",
            file=sys.stderr,
            flush=True,
        )


def living() -> Counter[str]:
    """The watcher's objects that are alive, by the names of their classes."""
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, OURS))


def private_bytes() -> int:
    """The memory that is this process's alone, after the allocator has given back what it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def open_fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names are wanted


def connections_possible(wanted: int) -> int:
    limit = raise_file_limit()
    possible = max(0, limit - RESERVED_FDS)
    if wanted > possible:
        print(
            f"stress: {wanted} connections need {wanted + RESERVED_FDS} descriptors, and the hard limit is {limit} "
            f"(ulimit -Hn): taking {possible}",
            file=sys.stderr,
        )
    return min(wanted, possible)


def summary(options: argparse.Namespace, connections: int, stress: Stress, driver: Driver) -> str:
    said, judge = driver.watcher.statistics(), driver.judge
    lines = [
        f"poller {options.poller}, {connections} connections, {options.seconds:g} s, seed {options.seed}, "
        f"swap buffer of {options.swap_size} bytes",
        f"{said.submitted} operations, {said.completed} completions, {driver.opened} connections opened, "
        f"{said.connections_dropped} dropped, {said.turns} turns",
        f"{said.received_bytes} bytes in, {said.sent_bytes} bytes out; swap peak {said.swap_peak_bytes}, "
        f"exhausted {said.swap_exhausted}, abandoned {said.swap_abandoned}",
        "",
        f"{'round':<10}{'work s':>9}{'settle s':>10}{'operations':>12}{'opened':>9}{'compared':>10}"
        f"{'alive':>7}{'private KiB':>13}{'blocks':>9}",
    ]
    lines += [
        f"{row.name:<10}{row.seconds:>9.1f}{row.settling_s:>10.1f}{row.submitted:>12}{row.opened:>9}{row.compared:>10}"
        f"{row.alive:>7}{row.private_bytes >> 10:>13}{row.blocks:>9}"
        for row in stress.rows
    ]
    lines += ["", *(f"{name:<28}{judge.counts[name]:>12}" for name in sorted(judge.counts))]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    connections = connections_possible(options.connections)
    if connections < 2:
        return 2
    fds_before = open_fds()
    processes = max(PROCESSES_MIN, -(-2 * connections // max(1, raise_file_limit() - RESERVED_FDS)))
    streams = Streams(options.seed)
    listeners = [socket.create_server((LOCAL, 0), backlog=4096) for _ in range(LISTENERS)]
    # What is accepted inherits it: writes have to wait there.
    listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW_BYTES)
    driver = Driver(Watcher(options.swap_size, poller=options.poller), streams, connections, listeners, options.seed)
    ports = [listener.getsockname()[1] for listener in listeners]
    with Fleet(processes, connections - connections // 2, options.seed, ports) as fleet, Meddler(driver) as meddler:
        driver.ports += fleet.ports
        stress = Stress(options, driver, fleet, meddler)
        signal.signal(signal.SIGINT, stress.stop)
        stress.run()
    violations = list(driver.judge.violations)
    fds = open_fds()
    if fds != fds_before:
        violations.append(f"descriptors {fds} are open at the end, and before there were {fds_before}")
    print(summary(options, connections, stress, driver))
    print()
    for violation in violations[:VIOLATIONS_SHOWN_MAX]:
        print(f"VIOLATION: {violation}")
    print(f"{max(len(violations), driver.judge.counts['violations'])} violations")
    return 1 if violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.watcher.stress", description="Stress one watcher.")
    parser.add_argument("--seconds", type=float, default=600.0, help="of work; settling comes on top")
    parser.add_argument("--connections", type=int, default=8000)
    parser.add_argument("--poller", choices=("epoll", "poll"), default="epoll")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--swap-size", type=int, default=65536, help="in bytes")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)  # Of connections that are dropped on purpose.
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
