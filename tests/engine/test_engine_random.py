"""Random operations against a small model: bytes in are bytes out, completions are submissions.

A failing seed is a script: the same seed does the same operations in the same order.
"""

from __future__ import annotations

import contextlib
import random
import socket

import pytest

from shardnet.errors import ConnectionFreed
from shardnet.watcher._sys import EVENT_IN
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.timers import Timer
from tests.engine.kit import Bench, RecordingEndpoint, reset

STEPS = 2000
PAIRS = 6


class Interrupted(BaseException):
    """What a hook raises now and then."""


class Pair:
    """An endpoint, its peer, and what the model knows of them."""

    def __init__(self, bench: Bench, name: str, chance: random.Random) -> None:
        self.name = name
        self.tcp = chance.random() < 0.6
        self.endpoint: RecordingEndpoint
        self.endpoint, self.peer = (
            bench.tcp(name, buffer_bytes=chance.choice([30_000, 200_000])) if self.tcp else (bench.unix(name))
        )
        self.peer.setblocking(False)
        self.chance = chance
        self.inward = bytearray()  # What the peer has sent.
        self.read_now = 0  # Completions of `receive_now`.
        self.posts = 0
        self.outward = bytearray()  # What was submitted.
        self.delivered = bytearray()  # What the peer has received.
        self.writes = 0
        self.queued = False
        self.sent_hooks = 0
        self.urgent = False
        self.ended = False
        self.gone = False  # The peer was reset.
        self.endpoint.then = {"received": self.on_received, "sent": self.on_sent, "failed": self.maybe_raise}

    @property
    def live(self) -> bool:
        return self.endpoint.fd >= 0

    @property
    def sound(self) -> bool:
        """Nothing happened that may lose bytes."""
        return self.live and not self.gone

    def on_received(self) -> None:
        if self.chance.random() < 0.3:
            self.post()
        self.maybe_raise()

    def on_sent(self) -> None:
        assert self.queued
        assert self.endpoint.unsent_bytes == 0
        self.queued = False
        if self.chance.random() < 0.3:
            self.submit()
        self.maybe_raise()

    def maybe_raise(self) -> None:
        if self.chance.random() < 0.05:
            raise Interrupted

    # What happens.

    def post(self) -> None:
        if self.live:
            self.posts += not self.endpoint.reading
            self.endpoint.post_read(self.chance.choice([1, 10, 1000, 65536, 100_000]))

    def withdraw(self) -> None:
        self.endpoint.withdraw_read()

    def submit(self) -> None:
        data = self.chance.randbytes(self.chance.choice([1, 50, 3000, 100_000]))
        try:
            self.queued |= not self.endpoint.submit_write(self.chance.choice([bytes, bytearray, memoryview])(data))
        except ConnectionFreed:
            assert not self.live
        except OSError:
            assert self.gone
            self.writes += 1
        else:
            self.writes += 1
            self.outward += data

    def peer_send(self) -> None:
        if not self.gone and not self.ended:
            data = self.chance.randbytes(self.chance.choice([1, 500, 5000, 100_000]))
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.inward += data[: self.peer.send(data)]

    def peer_urgent(self) -> None:
        if self.tcp and not (self.gone or self.ended or self.urgent):
            self.urgent = True
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.peer.send(b"!", socket.MSG_OOB)

    def peer_receive(self) -> None:
        if not self.gone:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.delivered += self.peer.recv(self.chance.choice([10, 5000, 200_000]))

    def peer_end(self) -> None:
        if not self.gone and self.chance.random() < 0.2:
            self.ended = True
            with contextlib.suppress(OSError):
                self.peer.shutdown(socket.SHUT_WR)

    def peer_reset(self) -> None:
        if not self.gone and self.chance.random() < 0.05:
            self.gone = True
            reset(self.peer)

    # What must hold.

    def over(self) -> bool:
        """For a sound pair: whether all has arrived at both ends. Helps it along."""
        self.peer_receive()
        if len(self.endpoint.received) < len(self.inward):
            self.post()
        return len(self.endpoint.received) >= len(self.inward) and len(self.delivered) >= len(self.outward)


class World:
    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench = bench
        self.chance = chance
        self.pairs = [Pair(bench, f"{number}", chance) for number in range(PAIRS)]
        self.former: list[Pair] = []
        self.timers: list[Timer] = []
        self.armed = 0
        self.whole = True  # No batch was left over by an exception.

    def step(self) -> None:
        pair = self.chance.choice(self.pairs)
        action = self.chance.choice(
            [self.turn] * 6
            + [pair.post, pair.peer_send, pair.peer_receive, pair.submit] * 3
            + [pair.withdraw, pair.peer_end, pair.peer_reset, pair.peer_urgent]
            + [lambda: self.receive_now(pair)] * 2
            + [lambda: self.replace(pair), self.arm, self.disarm]
        )
        action()

    def turn(self) -> None:
        try:
            self.bench.engine.turn(0)
            self.whole = True
        except Interrupted:
            self.whole = False

    def receive_now(self, pair: Pair) -> None:
        if pair.live and self.whole and not pair.endpoint.reading:
            try:
                data = pair.endpoint.receive_now(self.chance.choice([1, 100, 65536]))
            except OSError:
                assert pair.gone
                pair.read_now += 1
                return
            if data is not None:
                pair.read_now += 1
                pair.endpoint.received += data

    def replace(self, pair: Pair) -> None:
        if self.chance.random() < 0.1:
            self.bench.engine.free(pair.endpoint)
            self.former.append(pair)
            fresh = Pair(self.bench, f"{len(self.former) + PAIRS}", self.chance)
            self.pairs[self.pairs.index(pair)] = fresh

    def arm(self) -> None:
        self.armed += 1
        self.timers.append(self.bench.engine.after(self.chance.choice([0.0, 0.001, 50.0]), lambda: None))

    def disarm(self) -> None:
        if self.timers:
            self.bench.engine.cancel(self.chance.choice(self.timers))

    def finish(self) -> None:
        """All that can still arrive arrives; then the engine is closed."""
        for pair in self.pairs:
            if pair.sound:
                self.bench.engine.watch(pair.peer.fileno(), EVENT_IN, pair)

        def over() -> bool:
            self.bench.engine.guests_ready.clear()
            return [pair.over() for pair in self.pairs if pair.sound].count(False) == 0  # Every one is helped along.

        while True:
            try:
                self.bench.until(over)
                break
            except Interrupted:
                continue
        self.turn()  # `on_sent` of what arrived just now.
        self.bench.engine.close()


@pytest.mark.parametrize("swap_size", [1000, 65536])
@pytest.mark.parametrize("seed", range(15))
def test_bytes_and_completions_add_up_whatever_happens(seed: int, swap_size: int) -> None:
    with Bench(swap_size) as bench:
        world = World(bench, random.Random(seed))
        for _ in range(STEPS):
            world.step()
        world.finish()
        every = world.pairs + world.former
        for pair in every:
            received, delivered = pair.endpoint.received, pair.delivered
            assert received == pair.inward[: len(received)], pair.name
            assert delivered == pair.outward[: len(delivered)], pair.name
        for pair in world.pairs:
            if not pair.gone:
                assert (len(pair.endpoint.received), len(pair.delivered)) == (len(pair.inward), len(pair.outward))
                assert not pair.queued
        reads, writes = bench.counts(Op.READ), bench.counts(Op.WRITE)
        assert sum(reads.values()) == sum(pair.posts + pair.read_now for pair in every)
        assert sum(writes.values()) == sum(pair.writes for pair in every)
        assert sum(bench.counts(Op.TIMER).values()) == world.armed
        assert bench.received_bytes == sum(len(pair.endpoint.received) for pair in every)
        assert bench.sent_bytes == sum(pair.endpoint.sent_bytes for pair in every)
        told = [what for _, what, _ in bench.journal]
        told_reads = sum(reads.get(outcome, 0) for outcome in (Outcome.OK, Outcome.EOF))
        assert told.count("received") + told.count("end") <= told_reads
