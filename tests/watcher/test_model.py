"""Random scripts on real watchers with real sockets, against the model of their contract.

A divergence shrinks to a short script, which hypothesis prints: each line is a rule below. At the end of every script
the peers read on until all writes are complete, and the watcher is closed.

The default run is the same each time. `SHARDNET_MODEL_STEPS=200000` asks for so many steps, over all engines, of
scripts that nobody has seen yet: they come at some hundred a second.

How much of a write is taken is the kernel's affair. So no choice of a script (a precondition, what is in a bundle) may
depend on whether a write is complete, or a script would not replay.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shardnet.errors import ConnectionFreed
from tests.watcher.kit import ENGINES
from tests.watcher.model_bench import LARGE_WRITE_BYTES, SMALL_WRITE_MAX_BYTES, UNREAD_MAX_BYTES, ModelBench, Pair

STEPS_MIN: Final = 2000  # Over all engines, in the default run.
ASKED_STEPS: Final = int(os.environ.get("SHARDNET_MODEL_STEPS", "0"))
STEPS_PER_SCRIPT: Final = 50
DEFAULT_SCRIPTS: Final = 200  # On each engine.
# Of the steps that hypothesis draws, more than half find something to do.
SCRIPTS: Final = ASKED_STEPS * 2 // STEPS_PER_SCRIPT // len(ENGINES) or DEFAULT_SCRIPTS

PAIRS_MAX: Final = 5
READS_MAX: Final = 7  # That wait on one connection: they need fewer system calls than it has in one turn.

SWAP_SIZES: Final = st.sampled_from([65536, 5000, 2 * UNREAD_MAX_BYTES])
READ_SIZES: Final = st.integers(1, 40)
LAST_BYTES: Final = st.integers(0, 5)  # Of a stream: fewer than most reads want.
TIMEOUTS: Final = st.sampled_from([None, 0.0, 1.0, 2.5, 6.0])

steps: Counter[str] = Counter()  # By engine.


class WatcherMachine(RuleBasedStateMachine):
    conns = Bundle("conns")  # Our ends.
    peers = Bundle("peers")  # The other ends of the same.
    ended = Bundle("ended")  # Those that have ended their stream.
    freed = Bundle("freed")  # Former ends of ours.

    engine: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.bench: ModelBench | None = None
        self.pairs: list[Pair] = []
        self.former: list[Pair] = []  # Those that were freed.
        self.failed = False

    @contextlib.contextmanager
    def step(self) -> Iterator[ModelBench]:
        steps[self.engine] += 1
        self.age += 1
        self.quiet = 0
        assert self.bench is not None
        try:
            yield self.bench
            self.bench.check_statistics()
        except BaseException:
            self.failed = True
            raise

    def open(self, swap_size: int) -> None:
        self.bench = ModelBench(self.engine, swap_size)
        self.age = 0  # Steps with this watcher, and waits since something else was done.
        self.quiet = 0
        self.time_matters = 0
        for pair in self.pairs:
            self.bench.plug(pair)
        for pair in self.former:
            self.bench.plug_dead(pair)

    def new_pair(self, unix: bool) -> Pair:
        pair = Pair(f"{'unix' if unix else 'tcp'}_{len(self.pairs)}", unix)
        self.pairs.append(pair)
        assert self.bench is not None
        self.bench.plug(pair)
        return pair

    def teardown(self) -> None:
        bench = self.bench
        if bench is None:
            return
        try:
            if not self.failed:
                self.failed = True
                for pair in self.pairs:
                    if pair.usable:
                        bench.read_on(pair, self.pairs)
                bench.close(self.pairs, self.former)
                self.failed = False
        finally:
            if self.failed:
                bench.abandon()

    # Connections.

    @initialize(targets=(conns, peers), swap_size=SWAP_SIZES, unix=st.lists(st.booleans(), min_size=2, max_size=3))
    def begin(self, swap_size: int, unix: list[bool]) -> Any:
        self.open(swap_size)
        return multiple(*map(self.new_pair, unix))

    @precondition(lambda self: len(self.pairs) < PAIRS_MAX)
    @rule(targets=(conns, peers), unix=st.booleans())
    def connect(self, unix: bool) -> Pair:
        with self.step():
            return self.new_pair(unix)

    @rule(target=freed, pair=conns)
    def free_and_connect_anew(self, pair: Pair) -> Pair:
        """Its descriptor has the same number then."""
        with self.step() as bench:
            former = copy.copy(pair)
            self.former.append(former)
            bench.free(pair)
            bench.plug(pair)
            return former

    @rule(pair=conns, ask_former=st.booleans())
    def detach_and_go_on(self, pair: Pair, ask_former: bool) -> None:
        with self.step() as bench:
            bench.detach(pair, ask_former=ask_former)

    @precondition(lambda self: self.age >= 15)
    @rule(swap_size=SWAP_SIZES)
    def close_and_open_another(self, swap_size: int) -> None:
        with self.step() as bench:
            bench.close(self.pairs, self.former)
            self.open(swap_size)

    # Operations.

    @rule(pair=conns, timeout=TIMEOUTS)
    def read_swap(self, pair: Pair, timeout: float | None) -> None:
        self.read(pair, None, timeout)

    @rule(pair=conns, size=READ_SIZES, timeout=TIMEOUTS)
    def read_own(self, pair: Pair, size: int, timeout: float | None) -> None:
        self.read(pair, size, timeout)

    @rule(pair=conns, size=READ_SIZES | st.integers(41, 200), timeout=TIMEOUTS)
    def read_full(self, pair: Pair, size: int, timeout: float | None) -> None:
        self.read(pair, size, timeout, full=True)

    def read(self, pair: Pair, size: int | None, timeout: float | None, *, full: bool = False) -> None:
        if len(pair.conn.reads) < READS_MAX:
            with self.step() as bench:
                self.time_matters += 2 * bool(timeout)
                bench.read(pair, size, timeout, full=full)

    @rule(pair=conns, count=st.integers(17, 40), late=st.booleans())
    def read_in_a_burst(self, pair: Pair, count: int, late: bool) -> None:
        """More operations that can go on at once than one turn carries out; the last one is not `late` all the same."""
        if not pair.talking or pair.conn.reads or pair.conn.unread:
            return
        with self.step() as bench:
            for left in reversed(range(count)):
                bench.read(pair, 1, 1.0 if late and not left else None)
            pair.send(count)
            bench.pass_time(1.0 if late else 0.0)
            bench.wait_until_nothing()

    @rule(pair=conns, size=st.integers(1, SMALL_WRITE_MAX_BYTES), timeout=TIMEOUTS)
    def write_small(self, pair: Pair, size: int, timeout: float | None) -> None:
        self.write(pair, size, timeout)

    @rule(pair=conns, timeout=TIMEOUTS)
    def write_large(self, pair: Pair, timeout: float | None) -> None:
        self.write(pair, LARGE_WRITE_BYTES, timeout)

    def write(self, pair: Pair, size: int, timeout: float | None) -> None:
        with self.step() as bench:
            self.time_matters += 2 * bool(timeout)
            bench.write(pair, size, timeout)

    @rule(
        pair=conns,
        size=st.integers(1, SMALL_WRITE_MAX_BYTES),
        read_bytes=st.sampled_from([0, 200_000]),
        large_timeout=st.sampled_from([None, 0.0]),
    )
    def write_small_behind_large(self, pair: Pair, size: int, read_bytes: int, large_timeout: float | None) -> None:
        """It waits, also when the peer has made room meanwhile; or the large one has broken the stream."""
        with self.step() as bench:
            bench.write(pair, LARGE_WRITE_BYTES, large_timeout)
            if pair.usable:
                pair.receive(read_bytes)
            bench.write(pair, size, None)

    @precondition(lambda self: self.bench.held)
    @rule(pair=conns, which=st.integers(0, 9), timeout=TIMEOUTS, behind_large=st.booleans())
    def write_what_was_read(self, pair: Pair, which: int, timeout: float | None, behind_large: bool) -> None:
        """Out of the swap buffer, which may be used again before the write is complete."""
        with self.step() as bench:
            self.time_matters += 2 * bool(timeout)
            if behind_large:
                bench.write(pair, LARGE_WRITE_BYTES, None)
            bench.write_held(pair, *bench.held[which % len(bench.held)], timeout)

    @precondition(lambda self: self.time_matters < 6)
    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0, 6.0]))
    def sleep(self, seconds: float) -> None:
        with self.step() as bench:
            self.time_matters += 2 * bool(seconds)
            bench.sleep(seconds)

    @rule(pair=freed, full=st.booleans(), timeout=TIMEOUTS)
    def ask_of_freed(self, pair: Pair, full: bool, timeout: float | None) -> None:
        with self.step() as bench:
            bench.read(pair, 5, timeout, full=full)
            bench.write(pair, 5, timeout)
            with pytest.raises(OSError if pair.conn.gone else ConnectionFreed):
                bench.watcher.detach(pair.sock)
            bench.watcher.free(pair.sock)

    # What the peers do.

    @rule(pair=peers, size=st.integers(1, 10) | st.integers(1, 60) | st.integers(1, UNREAD_MAX_BYTES))
    def peer_sends(self, pair: Pair, size: int) -> None:
        if pair.takes(size):
            with self.step():
                pair.send(size)

    @rule(pair=peers, sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6))
    def peer_sends_bit_by_bit(self, pair: Pair, sizes: list[int]) -> None:
        if pair.takes(sum(sizes)):
            with self.step() as bench:
                for size in sizes:
                    pair.send(size)
                    bench.wait(self.pairs)

    @rule(pair=peers)
    def peer_sends_urgent_byte(self, pair: Pair) -> None:
        mark = pair.conn.mark
        if pair.talking and not pair.unix and (mark is None or pair.conn.taken > mark):
            with self.step():  # Of two marks that are ahead the kernel knows one.
                pair.send_urgent()

    @rule(target=ended, pair=peers, last=LAST_BYTES)
    def peer_ends_its_stream(self, pair: Pair, last: int) -> Any:
        if not pair.talking or not self.others_talk(pair):
            return multiple()
        with self.step():
            if pair.takes(last):
                pair.send(last)
            pair.end()
            return pair

    @rule(pair=peers, last=LAST_BYTES)
    def peer_resets(self, pair: Pair, last: int) -> None:
        if pair.usable and self.others_talk(pair):
            with self.step():
                if pair.takes(last):
                    pair.send(last)
                pair.reset()

    @rule(pair=consumes(ended))
    def ended_peer_resets(self, pair: Pair) -> None:
        """An error may stand behind the end, which reads have met."""
        if pair.usable and pair.conn.ended:
            with self.step() as bench:
                bench.read(pair, 1, None)
                bench.write(pair, 1, None)
                bench.wait(self.pairs)
                pair.reset()
                bench.read(pair, 1, None)

    def others_talk(self, pair: Pair) -> bool:
        """Without one that does, little would happen in the rest of the script."""
        return any(other.talking for other in self.pairs if other is not pair)

    @rule(pair=peers, size=st.integers(1, 2000) | st.integers(1, 1_000_000))
    def peer_reads_some(self, pair: Pair, size: int) -> None:
        if pair.usable:
            with self.step():
                pair.receive(size)

    @rule(pair=conns)
    def peer_reads_on(self, pair: Pair) -> None:
        if pair.usable:
            with self.step() as bench:
                bench.read_on(pair, self.pairs)

    # Time, and what the caller does with what it gets.

    @precondition(lambda self: self.time_matters)
    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        with self.step() as bench:
            self.time_matters -= 1
            bench.pass_time(seconds)

    @precondition(lambda self: self.quiet < 2)
    @rule()
    def wait(self) -> None:
        quiet = self.quiet
        with self.step() as bench:
            self.quiet = quiet + 1
            bench.wait(self.pairs)

    @rule(pair=peers, sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), keep=st.booleans())
    def receive_into_swap(self, pair: Pair, sizes: list[int], keep: bool) -> None:
        """After which the caller has something in hand, of several reads perhaps."""
        if pair.takes(sum(sizes)) and len(pair.conn.reads) + len(sizes) <= READS_MAX:
            with self.step() as bench:
                for size in sizes:
                    pair.send(size)
                    bench.read(pair, None, None)
                bench.wait(self.pairs)
                if keep and bench.held:
                    bench.keep_slice(*bench.held[0], 0, 20)

    @precondition(lambda self: self.bench.held)
    @rule(which=st.integers(0, 9), start=st.integers(0, 5), size=st.integers(1, 20))
    def keep_a_slice(self, which: int, start: int, size: int) -> None:
        with self.step() as bench:
            completion, data = bench.held[which % len(bench.held)]
            start %= len(data)
            bench.keep_slice(completion, data, start, start + size)

    @precondition(lambda self: self.bench.kept)
    @rule()
    def let_go_of_slices(self) -> None:
        with self.step() as bench:
            bench.kept.clear()


@pytest.mark.slow
@pytest.mark.timeout(0 if ASKED_STEPS else 400)  # It takes far less; but to make a failing script short takes minutes.
def test_watcher_does_what_the_model_foretells(engine: str) -> None:
    class Machine(WatcherMachine):
        pass

    Machine.engine = engine
    steps[engine] = 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=SCRIPTS,
            stateful_step_count=STEPS_PER_SCRIPT,
            derandomize=not ASKED_STEPS,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # It traces each line, which takes longer than all the rest.
            suppress_health_check=[HealthCheck.too_slow],  # Sockets are, for hypothesis.
        ),
    )
    print(f"{engine}: {steps[engine]} steps")
    assert steps[engine] >= (ASKED_STEPS or STEPS_MIN) // len(ENGINES)
