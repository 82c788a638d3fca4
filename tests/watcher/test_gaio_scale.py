"""gaio's own cases that need many connections, or many bytes, at full size: one watcher here, the clients elsewhere.

Which case of gaio's is which here: see the table in `test_gaio_cases`.
"""

from __future__ import annotations

import gc
import random
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from shardnet.watcher import Channel, Completion, DeadlineExceeded, Op, Watcher
from tests.engine.kit import PATIENCE_S, open_fds, receive_all, tcp_pair
from tests.watcher.kit import Bench
from tests.watcher.loadgen import GREETING, Clients

K: Final = 1024
M: Final = 1024 * K
HUGE: Final = 100 * M
TINY: Final = 16
SPARE: Final = 128  # Descriptors that are no connections, besides those that are open already.
ACCEPTS_WAITING: Final = 64
DEADLINE_S: Final = 1.0
DROPPED: Final = 200

Read = Callable[[Watcher, Channel], None]
pytestmark = pytest.mark.timeout(300)


def crowds(fast: str, slow: str) -> pytest.MarkDecorator:
    """Sizes of a crowd, in thousands."""
    sizes = [(name, ()) for name in fast.split()] + [(name, pytest.mark.slow) for name in slow.split()]
    params = [pytest.param(int(name.removesuffix("k")) * K, id=name, marks=marks) for name, marks in sizes]
    return pytest.mark.parametrize("connections", params)


@pytest.fixture(autouse=True)
def _limit_restored() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def make_room(connections: int) -> None:
    """Let this process have so many descriptors more."""
    needed = connections + len(open_fds()) + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{connections} connections need {needed} descriptors, and the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def completions(watcher: Watcher) -> Iterator[Completion]:
    """One after the other, for ever."""
    while True:
        batch = watcher.wait_io(PATIENCE_S)
        assert batch, f"nothing comes any more: {watcher.statistics()}"
        yield from batch


@contextmanager
def served(bench: Bench, connections: int, size_bytes: int, read: Read) -> Iterator[list[Channel]]:
    """A crowd of clients, each of which has back what it sent, and none of which has closed yet.

    `read` is to ask for the next bytes of a connection. The end of the stream, in the end, must answer the last of it.
    """
    make_room(connections)
    watcher = bench.watcher
    listener = bench.listener(backlog=K)
    with Clients("crowd", listener.getsockname()[1], connections, size_bytes) as clients:
        answers = completions(watcher)
        channels = list(echo(watcher, listener, answers, connections, size_bytes, read))
        assert len(set(channels)) == watcher.statistics().connections == connections
        yield channels
        clients.dismiss()
        for _ in range(connections):
            answer = next(answers)
            assert (answer.op, answer.size, type(answer.error)) == (Op.READ, 0, EOFError)
            assert answer.conn is not None
            watcher.free(answer.conn)
        clients.finish()
    bench.none()


def echo(
    watcher: Watcher,
    listener: socket.socket,
    answers: Iterator[Completion],
    connections: int,
    size_bytes: int,
    read: Read,
) -> Iterator[Channel]:
    """Accept so many clients, greet them, and send back what they send, until all of them have all of it."""
    asked = min(ACCEPTS_WAITING, connections)
    for _ in range(asked):
        watcher.accept(listener)
    unsent = connections * (len(GREETING) + size_bytes)
    while unsent:
        answer = next(answers)
        assert answer.error is None
        conn = answer.conn
        assert isinstance(conn, Channel)
        match answer.op:
            case Op.ACCEPT:
                yield conn
                watcher.write(conn, GREETING)
                if asked < connections:
                    watcher.accept(listener)
                    asked += 1
            case Op.READ:
                watcher.write(conn, answer.data)
            case Op.WRITE:
                unsent -= answer.size
                read(watcher, conn)


def read_swap(watcher: Watcher, conn: Channel) -> None:
    watcher.read(conn)


@crowds("1k 2k", "4k 8k 10k 12k")
def test_crowd_has_back_what_it_sends(bench: Bench, connections: int) -> None:
    with served(bench, connections, K, read_swap):
        said = bench.watcher.statistics()
        assert said.received_bytes == connections * K
        assert said.pending == said.connections_pending == connections


@crowds("1k 2k", "4k")
def test_crowd_has_back_what_it_sends_when_that_is_tiny(bench: Bench, connections: int) -> None:
    with served(bench, connections, TINY, read_swap):
        assert bench.watcher.statistics().received_bytes == connections * TINY


@pytest.mark.slow
def test_crowd_has_back_what_it_sends_when_buffers_are_mixed(engine: str) -> None:
    """One read in thirteen shares the swap buffer, the others bring a buffer of their own."""
    chance = random.Random(1)
    swapped = Counter[bool]()

    def read(watcher: Watcher, conn: Channel) -> None:
        swap = chance.randrange(13) == 0
        swapped[swap] += 1
        watcher.read(conn, None if swap else bytearray(K))

    with Bench(engine, swap_size=10 * M) as bench, served(bench, 10 * K, K, read):
        assert bench.watcher.statistics().received_bytes == 10 * M
        assert min(swapped[True], swapped[False]) > K
        assert bench.watcher.statistics().swap_exhausted == 0


@pytest.mark.slow
def test_crowd_never_exhausts_a_swap_buffer_that_holds_all_it_sends(engine: str) -> None:
    with Bench(engine, swap_size=10 * M) as bench, served(bench, 10 * K, K, read_swap):
        said = bench.watcher.statistics()
        assert (said.received_bytes, said.swap_exhausted, said.swap_abandoned) == (10 * M, 0, 0)
        assert K <= said.swap_peak_bytes <= 10 * M


@crowds("1k", "2k 4k 8k")
def test_silent_crowd_gets_a_deadline_each(bench: Bench, connections: int) -> None:
    watcher = bench.watcher
    with served(bench, connections, 0, lambda watcher, conn: None) as channels:
        for number, channel in enumerate(channels):
            watcher.read(channel, ctx=number, timeout=DEADLINE_S)
        assert watcher.statistics().deadlines == connections
        answers = completions(watcher)
        expired = Counter[object]()
        for _ in range(connections):
            answer = next(answers)
            assert (answer.op, answer.size, type(answer.error)) == (Op.READ, 0, DeadlineExceeded)
            assert answer.conn is channels[int(str(answer.ctx))]
            expired[answer.ctx] += 1
        assert expired == Counter(range(connections))
        bench.none()
        said = watcher.statistics()
        assert (said.completed_deadline, said.deadlines, said.connections) == (connections, 0, connections)
        for channel in channels:
            watcher.read(channel)  # They are none the worse for it.


def test_dropped_connections_are_closed_and_counted(bench: Bench) -> None:
    """But not the one on which a read waits."""
    make_room(2 * DROPPED)  # Both ends are here.
    watcher = bench.watcher
    with ExitStack() as undo:
        peers = []
        for number in range(DROPPED + 1):
            ours, theirs = tcp_pair()
            peers.append(undo.enter_context(theirs))
            watcher.write(ours, bytes(K), ctx=number)
        watcher.read(ours, ctx="reads")
        del ours
        answers = bench.collect(DROPPED + 1)
        assert [answer.ctx for answer in answers] == list(range(DROPPED + 1))
        with pytest.warns(ResourceWarning, match="was dropped: free") as warned:
            answers.clear()
        gc.collect()
        assert len(warned) == DROPPED
        said = watcher.statistics()
        assert (said.connections_dropped, said.connections, said.connections_pending) == (DROPPED, 1, 1)
        theirs = peers.pop()
        assert all(receive_all(peer) == bytes(K) for peer in peers)
        theirs.sendall(b"x")
        kept = bench.one()
        assert (kept.ctx, kept.data) == ("reads", b"x")
        assert kept.conn is not None
        watcher.free(kept.conn)


@pytest.mark.slow
def test_huge_echo_has_every_byte(bench: Bench) -> None:
    watcher = bench.watcher
    listener = bench.listener()
    buffer = bytearray(64 * K)
    echoed = 0
    watcher.accept(listener)
    with Clients("pour", listener.getsockname()[1], 1, HUGE) as clients:
        answers = completions(watcher)
        conn = next(answers).conn
        assert conn is not None
        while echoed < HUGE:
            watcher.read(conn, buffer)
            came = next(answers)
            assert (came.op, came.error) == (Op.READ, None)
            watcher.write(conn, came.data)
            went = next(answers)
            assert (went.op, went.error, went.size) == (Op.WRITE, None, came.size)
            echoed += went.size
        bench.none()
        watcher.free(conn)
        clients.dismiss()
        clients.finish()
    assert watcher.statistics().received_bytes == watcher.statistics().sent_bytes == HUGE


@pytest.mark.slow
def test_read_full_of_much_completes_once_while_as_much_is_written(bench: Bench) -> None:
    watcher = bench.watcher
    listener = bench.listener()
    data = random.Random(1).randbytes(HUGE)
    buffer = bytearray(HUGE)
    watcher.accept(listener)
    with Clients("mirror", listener.getsockname()[1], 1) as clients:
        answers = completions(watcher)
        conn = next(answers).conn
        assert conn is not None
        watcher.write(conn, data)
        watcher.read_full(conn, buffer)
        done = sorted((next(answers) for _ in range(2)), key=lambda answer: answer.op)
        assert [(answer.op, answer.size, answer.error) for answer in done] == [
            (Op.READ, HUGE, None),
            (Op.WRITE, HUGE, None),
        ]
        right = buffer == data  # Apart from the assertion, which would print them.
        assert right
        bench.none()
        watcher.free(conn)
        clients.finish()
