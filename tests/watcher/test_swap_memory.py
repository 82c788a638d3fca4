"""Ten thousand reads through the swap buffer own no buffer of their own: what they cost is counted by tracemalloc."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from shardnet.watcher import Op, Watcher
from tests.engine.kit import PATIENCE_S, wait_unread
from tests.watcher.kit import ENGINES

CONNECTIONS: Final = 10_000
BATCH: Final = 1000  # Connections that get their bytes together.
PAYLOAD: Final = 48  # A batch of them fits the swap buffer.
SWAP_BYTES: Final = 65536
FDS_NEEDED: Final = CONNECTIONS + 256

# What a connection and a read that waits on it may cost: an endpoint, two queues, an operation, their entries in the
# tables. The smallest buffer that would be worth having is several times that.
PER_CONNECTION_BYTES: Final = 1536
PER_COMPLETION_BYTES: Final = 1024
VIEW_BYTES: Final = 320  # Of these, the view of the swap buffer and its place in a queue.
BLOCKS_MAX: Final = 4  # One is filled, one at hand, two spare.
BUFFER_BYTES: Final = 4096
TABLES_MAX: Final = 32  # Allocations of that size which there may be all the same: tables that grow, and the blocks.

# The peers, in a process of their own: 20,000 descriptors are more than many a hard limit. It obeys lines that say how
# many connections are to get their bytes next.
PEERS: Final = f"""
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
port = int(sys.argv[1])
peers = [socket.create_connection(("127.0.0.1", port)) for _ in range({CONNECTIONS})]
position = 0
for line in sys.stdin:
    for peer in peers[position : position + int(line)]:
        peer.sendall(b"x" * {PAYLOAD})
    position += int(line)
"""


@pytest.fixture
def file_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FDS_NEEDED:
        pytest.skip(f"{CONNECTIONS} connections need {FDS_NEEDED} descriptors, and the hard limit is {hard}")
    if soft == resource.RLIM_INFINITY or soft >= FDS_NEEDED:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (FDS_NEEDED, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def served() -> Iterator[tuple[list[socket.socket], subprocess.Popen[str]]]:
    """Our ends of the connections, in the order in which their peers get to send, and the process of the peers."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        listener.settimeout(PATIENCE_S)
        command = [sys.executable, "-c", PEERS, str(listener.getsockname()[1])]
        peers = undo.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
        undo.callback(peers.kill)
        ours = [undo.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
        yield ours, peers


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def traced() -> int:
    return tracemalloc.get_traced_memory()[0]


def assert_few_are_large(what: str, views: int = 0) -> None:
    """No allocation as large as a buffer was made for each connection, whoever made it; and `swap.py` has made no more
    than a few blocks, and `views` of them."""
    traces = tracemalloc.take_snapshot().traces
    large = sum(trace.size >= BUFFER_BYTES for trace in traces)
    assert large <= TABLES_MAX, f"{what}: {large} allocations of {BUFFER_BYTES} bytes and more"
    swap = [trace.size for trace in traces if trace.traceback[0].filename.endswith("watcher/swap.py")]
    assert swap, "the blocks are allocated elsewhere by now"
    assert sum(swap) <= BLOCKS_MAX * SWAP_BYTES + views * VIEW_BYTES, f"{what}: {sum(swap)} bytes by swap.py"


def receive(watcher: Watcher, count: int, then: Callable[[int], object]) -> int:
    """Take `count` completions, hold each to what it should be, and return how many calls it took. `then` is called
    while a batch is in the caller's hands, with its size."""
    calls = taken = 0
    while taken < count:
        batch = watcher.wait_io(PATIENCE_S)
        assert batch
        calls += 1
        taken += len(batch)
        for done in batch:
            assert (done.op, done.error, done.is_swap_buffer) == (Op.READ, None, True)
            assert done.data == b"x" * PAYLOAD
        then(len(batch))
    assert taken == count
    return calls


@pytest.mark.slow
@pytest.mark.timeout(180)  # Tracing makes everything slow, and there is much of it.
@pytest.mark.usefixtures("file_limit")
def test_swap_buffer_serves_ten_thousand_reads_without_a_buffer_for_each(engine: str) -> None:
    """Law: a read without a buffer owns none while it waits, and shares one when its bytes have come."""
    with served() as (ours, peers), tracing(), Watcher(SWAP_BYTES, **ENGINES[engine]) as watcher:
        assert peers.stdin is not None
        fds = [conn.fileno() for conn in ours]  # They are the watcher's from the first read on.
        before = traced()
        for number, conn in enumerate(ours):
            watcher.read(conn, ctx=number)
        assert watcher.wait_io(0) == []
        waiting = traced()
        assert (waiting - before) / CONNECTIONS < PER_CONNECTION_BYTES
        assert_few_are_large("while all reads wait")
        assert watcher.statistics().connections_pending == CONNECTIONS
        assert watcher.statistics().swap_in_use_bytes == 0

        def peak_is_low(completions: int) -> None:
            grown = tracemalloc.get_traced_memory()[1] - waiting
            assert grown < completions * PER_COMPLETION_BYTES + BLOCKS_MAX * SWAP_BYTES

        def check(completions: int) -> None:
            peak_is_low(completions)
            assert_few_are_large(f"with {completions} completions at hand", views=completions)

        calls = 0
        for first in range(0, CONNECTIONS, BATCH):
            print(BATCH, file=peers.stdin, flush=True)
            for fd in fds[first : first + BATCH]:
                wait_unread(fd, PAYLOAD)
            tracemalloc.reset_peak()
            calls += receive(watcher, BATCH, check if first == 0 else peak_is_low)
            peak_is_low(BATCH)
        assert calls >= CONNECTIONS // BATCH

        assert watcher.wait_io(0) == []
        assert_few_are_large("after all reads have completed")
        assert traced() <= waiting
        said = watcher.statistics()
        assert said.completed_ok == CONNECTIONS
        assert said.swap_in_use_bytes == 0
        assert PAYLOAD <= said.swap_peak_bytes <= BATCH * PAYLOAD <= said.swap_capacity_bytes
        assert (said.swap_exhausted, said.swap_abandoned) == (0, 0)
