"""What the engine does for a message, piece by piece, under pytest-benchmark."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from shardnet.watcher import Op, Watcher
from shardnet.watcher._sys import SwapBuffer
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint
from shardnet.watcher.timers import TimerQueue

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

MESSAGE = bytes(64)
CROWD = 200


class Echo(HookEndpoint):
    """Sends back what it gets."""

    def __init__(self, engine: Engine, fd: int) -> None:
        super().__init__(engine.agenda, fd, unix=True)
        self._engine = engine
        self.post_read()

    def on_received(self, start: int, size: int) -> None:
        self.submit_write(self._engine.swap.take(start, size))
        self.post_read()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def crowd(engine: Engine, count: int) -> list[socket.socket]:
    """The peers of so many echoing endpoints."""
    peers = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        engine.add(Echo(engine, ours.detach()))
        peers.append(theirs)
    return peers


@pytest.mark.parametrize("count", [1, CROWD])
def test_turn_that_echoes(benchmark: BenchmarkFixture, engine: Engine, count: int) -> None:
    """One turn with `count` ready connections; the peers' sends and receives are in the time as well."""
    peers = crowd(engine, count)

    def turn() -> None:
        for peer in peers:
            peer.send(MESSAGE)
        engine.turn(0)
        for peer in peers:
            assert peer.recv(64) == MESSAGE

    benchmark(turn)
    for peer in peers:
        peer.close()


def test_turn_without_news(benchmark: BenchmarkFixture, engine: Engine) -> None:
    peers = crowd(engine, CROWD)
    engine.turn(0)
    benchmark(engine.turn, 0)
    for peer in peers:
        peer.close()


def test_swap_buffer_receives_and_hands_out(benchmark: BenchmarkFixture) -> None:
    swap = SwapBuffer(65536)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def pass_on() -> bytes:
            theirs.send(MESSAGE)
            return swap.take(0, swap.receive(ours.fileno(), 0, 65536))

        assert benchmark(pass_on) == MESSAGE


def test_timer_is_armed_and_cancelled(benchmark: BenchmarkFixture) -> None:
    """Among a thousand others, as deadlines are that are met."""
    timers = TimerQueue()
    for number in range(1000):
        timers.add(float(number), print)
    benchmark(lambda: timers.add(500.0, print).cancel())


def test_read_is_posted_and_withdrawn(benchmark: BenchmarkFixture, engine: Engine) -> None:
    [peer] = crowd(engine, 1)
    [endpoint] = engine.endpoints()
    assert isinstance(endpoint, HookEndpoint)

    def post_and_withdraw() -> None:
        endpoint.post_read()
        endpoint.withdraw_read()

    benchmark(post_and_withdraw)
    peer.close()


def test_watcher_reads_and_writes(benchmark: BenchmarkFixture) -> None:
    """An echo through the queued operations of a `Watcher`, its peer's part in it."""
    with Watcher() as watcher, socket.create_server(("127.0.0.1", 0)) as listener:
        watcher.accept(listener)
        with socket.create_connection(listener.getsockname()) as peer:
            [accepted] = watcher.wait_io()
            conn = accepted.conn
            assert conn is not None

            def echo() -> None:
                watcher.read(conn)
                peer.send(MESSAGE)
                answered = False
                while not answered:
                    for done in watcher.wait_io():
                        if done.op is Op.READ:
                            watcher.write(conn, done.data)
                        else:
                            answered = True
                assert peer.recv(64) == MESSAGE

            benchmark(echo)
