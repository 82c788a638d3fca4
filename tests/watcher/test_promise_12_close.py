"""Promise 12: `close` completes everything that waits; the next `wait_io` hands it out, and then there is no more."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.watcher import Completion, ConnectionFreed, Op, Watcher, WatcherClosed
from shardnet.watcher.queued import CALLS_PER_TURN_MAX, QueuedEndpoint
from tests.engine.kit import PATIENCE_S, open_fds, tcp_pair, wait_unread
from tests.watcher.elsewhere import at_end, in_thread, interrupted, is_open
from tests.watcher.kit import ENGINES, Bench

BATCH_MAX = 4096

# Every way to submit, and `detach`, which is refused likewise.
SUBMISSIONS: dict[str, Callable[[Watcher, socket.socket], object]] = {
    "read": lambda watcher, conn: watcher.read(conn),
    "read into a buffer": lambda watcher, conn: watcher.read(conn, bytearray(1)),
    "read_full": lambda watcher, conn: watcher.read_full(conn, bytearray(1)),
    "write": lambda watcher, conn: watcher.write(conn, b"x"),
    "accept": lambda watcher, conn: watcher.accept(conn),
    "connect": lambda watcher, conn: watcher.connect(("127.0.0.1", 9)),
    "sleep": lambda watcher, conn: watcher.sleep(0),
    "detach": lambda watcher, conn: watcher.detach(conn),
}


def hand_out(watcher: Watcher) -> list[Completion]:
    """What a closed watcher still hands out, which must come without waiting."""
    batches: list[Completion] = []
    with contextlib.suppress(WatcherClosed):
        while True:
            batch = watcher.wait_io()
            assert 0 < len(batch) <= BATCH_MAX
            batches += batch
    return batches


def full_listener(bench: Bench) -> socket.socket:
    """One whose backlog is full, so that connecting to it does not come to an end."""
    listener = bench.listener(backlog=0)
    bench.keep(socket.create_connection(listener.getsockname()))
    return listener


def submit_each_kind(bench: Bench) -> dict[str, Op]:
    """One operation of each kind that waits, by its context."""
    watcher = bench.watcher
    swap, _ = bench.tcp()
    own, _ = bench.tcp()
    full, _ = bench.unix()
    write, _ = bench.tcp(4096)
    channel, _ = bench.accepted()
    watcher.read(swap, ctx="swap")
    watcher.read(swap, ctx="second")
    watcher.read(own, bytearray(4), ctx="own", timeout=60)
    watcher.read_full(full, bytearray(4), ctx="full")
    watcher.read(channel, ctx="channel")
    watcher.write(write, bytes(1 << 20), ctx="write")
    watcher.write(write, b"x", ctx="behind", timeout=60)
    watcher.accept(bench.listener(), ctx="accept", timeout=60)
    watcher.connect(full_listener(bench).getsockname(), ctx="connect")
    watcher.sleep(60, ctx="timer")
    bench.none()
    kinds = {"accept": Op.ACCEPT, "connect": Op.CONNECT, "timer": Op.TIMER, "write": Op.WRITE, "behind": Op.WRITE}
    return {**dict.fromkeys(("swap", "second", "own", "full", "channel"), Op.READ), **kinds}


def test_close_completes_operations_of_every_kind(bench: Bench) -> None:
    kinds = submit_each_kind(bench)
    bench.watcher.close()
    completions = bench.watcher.wait_io()
    assert {completion.ctx: completion.op for completion in completions} == kinds
    assert len(completions) == len(kinds)
    assert {type(completion.error) for completion in completions} == {WatcherClosed}
    sizes = {completion.ctx: completion.size for completion in completions}
    assert 0 < sizes.pop("write") < 1 << 20
    assert set(sizes.values()) == {0}
    made = {completion.ctx for completion in completions if completion.conn is None}
    assert made == {"accept", "connect", "timer"}
    said = bench.watcher.statistics()
    assert (said.completed_cancelled, said.pending, said.waiting) == (len(kinds), 0, 0)
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()


def test_close_keeps_the_order_of_each_connection(bench: Bench) -> None:
    ours, _ = bench.tcp(4096)
    for index in range(20):
        bench.watcher.read(ours, ctx=index)
        bench.watcher.write(ours, bytes(1 << 19), ctx=index)
    bench.watcher.close()
    completions = bench.watcher.wait_io()
    for op in (Op.READ, Op.WRITE):
        assert [completion.ctx for completion in completions if completion.op is op] == list(range(20))


def test_close_hands_out_what_waited_before_and_what_it_completes_itself(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    freed, _ = bench.tcp()
    bench.watcher.read(freed, ctx="freed")
    bench.watcher.free(freed)
    theirs.sendall(b"hello")
    wait_unread(ours.fileno(), 5)
    bench.watcher.read(ours, ctx="read")
    bench.watcher.write(ours, b"x", ctx="write")
    bench.watcher.read(ours, ctx="waits")
    assert bench.watcher.statistics().waiting == 3
    bench.watcher.close()
    completions = bench.watcher.wait_io()
    assert [completion.ctx for completion in completions] == ["freed", "read", "write", "waits"]
    assert [type(completion.error) for completion in completions[::3]] == [ConnectionFreed, WatcherClosed]
    assert [completion.error for completion in completions[1:3]] == [None, None]
    assert bytes(completions[1].data) == b"hello"
    assert hand_out(bench.watcher) == []


def test_close_hands_out_more_than_one_call_may_carry(bench: Bench) -> None:
    ours, _ = bench.tcp()
    waiting, _ = bench.tcp()
    for index in range(2000):
        bench.watcher.read(waiting, ctx=index)
    bench.watcher.free(waiting)
    for index in range(2000, 9000):
        bench.watcher.read(ours, ctx=index)
    bench.watcher.close()
    sizes = []
    contexts: list[Any] = []
    with contextlib.suppress(WatcherClosed):
        while True:
            completions = bench.watcher.wait_io(60)
            sizes.append(len(completions))
            contexts += [completion.ctx for completion in completions]
    assert sizes == [4096, 4096, 808]
    assert contexts == list(range(9000))


@pytest.mark.parametrize("timeout", [None, 0, 60])
def test_wait_io_raises_when_everything_was_handed_out(bench: Bench, timeout: float | None) -> None:
    bench.watcher.sleep(60)
    bench.watcher.close()
    assert len(bench.watcher.wait_io(timeout)) == 1
    for _ in range(3):
        with pytest.raises(WatcherClosed):
            bench.watcher.wait_io(timeout)


def test_wait_io_raises_at_once_when_nothing_was_asked(bench: Bench) -> None:
    bench.watcher.close()
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()


@pytest.mark.parametrize("handed_out", [False, True], ids=["before it was handed out", "after"])
@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_submission_raises_at_once(bench: Bench, submit: Callable[..., object], handed_out: bool) -> None:
    used, theirs = bench.tcp()
    fresh, _ = bench.tcp()
    listener = bench.listener()
    bench.watcher.read(used)
    bench.watcher.close()
    if handed_out:
        hand_out(bench.watcher)
    for conn in (fresh, used, listener):
        with pytest.raises(WatcherClosed):
            submit(bench.watcher, conn)
    assert fresh.fileno() >= 0, "a submission that was refused took the socket over"
    assert bench.watcher.statistics().submitted == 1
    assert at_end(theirs)


def test_close_twice_is_silent(bench: Bench) -> None:
    ours, _ = bench.tcp()
    bench.watcher.read(ours)
    bench.watcher.close()
    bench.watcher.close()
    assert bench.watcher.closed
    assert [type(completion.error) for completion in bench.watcher.wait_io()] == [WatcherClosed]
    bench.watcher.close()
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()
    bench.watcher.close()
    assert bench.watcher.statistics().completed == 1


def test_close_closes_every_connection_at_once(bench: Bench) -> None:
    """Before any `wait_io`: those with something pending, and the idle ones."""
    idle, idle_peer = bench.tcp()
    busy, busy_peer = bench.tcp()
    channel, channel_peer = bench.accepted()
    numbers = [idle.fileno(), busy.fileno(), channel.fileno()]
    bench.watcher.read(idle, timeout=0)
    bench.one()
    bench.watcher.read(busy)
    bench.watcher.close()
    assert not any(map(is_open, numbers))
    assert all(map(at_end, (idle_peer, busy_peer, channel_peer)))
    assert channel.fileno() == -1


def test_close_leaves_no_descriptor() -> None:
    for kwargs in ENGINES.values():
        before = open_fds()
        Watcher(**kwargs).close()
        assert open_fds() <= before


def test_close_leaves_a_listener_open(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    bench.none()
    bench.watcher.close()
    assert len(hand_out(bench.watcher)) == 1
    bench.keep(socket.create_connection(listener.getsockname()))
    listener.settimeout(PATIENCE_S)
    bench.keep(listener.accept()[0])


def test_close_gives_buffers_back(bench: Bench) -> None:
    ours, _ = bench.tcp(4096)
    taken, given = bytearray(10), bytearray(1 << 20)
    bench.watcher.read(ours, taken)
    bench.watcher.write(ours, given)
    bench.watcher.close()
    taken.append(1)
    given.append(1)


def test_swap_buffer_is_readable_after_close_until_the_next_wait(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    second, second_peer = bench.tcp()
    theirs.sendall(b"first")
    bench.watcher.read(ours)
    (first,) = bench.watcher.wait_io()
    second_peer.sendall(b"second")
    wait_unread(second.fileno(), 6)
    bench.watcher.read(second)
    bench.watcher.close()
    assert bytes(first.data) == b"first"  # Handed out before, and its owner has not come back.
    (handed_out,) = bench.watcher.wait_io()
    assert handed_out.is_swap_buffer
    assert bytes(handed_out.buffer) == bytes(handed_out.data) == b"second"
    with pytest.raises(ValueError, match="swap buffer"):
        _ = first.data
    kept = handed_out.data[:3]
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()
    assert bytes(kept) == b"sec"


def test_swap_buffers_of_every_batch_are_readable_after_close(bench: Bench) -> None:
    ours, theirs = bench.unix()
    number = ours.fileno()
    for index in range(6000):
        theirs.sendall(index.to_bytes(2, "big"))
        wait_unread(number, 2)
        bench.watcher.read(ours)
    bench.watcher.close()
    values: list[int] = []
    for size in (4096, 1904):
        completions = bench.watcher.wait_io()
        assert len(completions) == size
        values += [int.from_bytes(completion.data, "big") for completion in completions]
    assert values == list(range(6000))


# From another thread.


def test_close_from_another_thread_ends_a_wait(engine: str) -> None:
    """Again and again, so that it comes before the wait, in its beginning, and into its middle."""
    for _ in range(20):
        ours, theirs = tcp_pair()
        watcher = Watcher(**ENGINES[engine])
        watcher.read(ours, ctx="waits")
        about_to_wait = threading.Event()

        def close(watcher: Watcher = watcher, about_to_wait: threading.Event = about_to_wait) -> None:
            assert about_to_wait.wait(PATIENCE_S)
            watcher.close()

        closer = threading.Thread(target=close)
        closer.start()
        about_to_wait.set()
        (completion,) = watcher.wait_io(PATIENCE_S)
        closer.join()
        assert (completion.ctx, type(completion.error)) == ("waits", WatcherClosed)
        with pytest.raises(WatcherClosed):
            watcher.wait_io()
        with theirs:
            assert at_end(theirs)


def test_close_from_another_thread_ends_a_wait_for_nothing(bench: Bench) -> None:
    about_to_wait = threading.Event()

    def close() -> None:
        assert about_to_wait.wait(PATIENCE_S)
        bench.watcher.close()

    closer = threading.Thread(target=close)
    closer.start()
    about_to_wait.set()
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io(PATIENCE_S)
    closer.join()


def test_close_from_another_thread_while_the_owner_computes(bench: Bench) -> None:
    kinds = submit_each_kind(bench)
    ours, theirs = bench.tcp()
    in_thread(bench.watcher.close)
    assert bench.watcher.closed
    for submit in SUBMISSIONS.values():
        with pytest.raises(WatcherClosed):
            submit(bench.watcher, ours)
    assert ours.fileno() >= 0
    bench.watcher.free(ours)
    assert at_end(theirs)
    completions = bench.watcher.wait_io(0)
    assert {completion.ctx: completion.op for completion in completions} == kinds
    assert {type(completion.error) for completion in completions} == {WatcherClosed}
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()


def test_close_from_another_thread_leaves_the_owners_swap_buffers_alone(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"mine")
    bench.watcher.read(ours)
    (completion,) = bench.watcher.wait_io()
    in_thread(bench.watcher.close)
    assert bytes(completion.data) == b"mine"


def test_close_from_many_threads_completes_once(bench: Bench) -> None:
    ours, _ = bench.tcp()
    bench.watcher.read(ours)
    threads = [threading.Thread(target=bench.watcher.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    completions = bench.watcher.wait_io(PATIENCE_S)
    while not completions:
        completions = bench.watcher.wait_io(PATIENCE_S)
    for thread in threads:
        thread.join()
    assert [type(completion.error) for completion in completions] == [WatcherClosed]
    assert bench.watcher.statistics().completed == 1


def test_close_by_the_owner_finishes_a_close_from_another_thread(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    in_thread(bench.watcher.close)
    bench.watcher.close()
    assert at_end(theirs)
    assert len(hand_out(bench.watcher)) == 1


def test_watcher_that_was_closed_from_another_thread_and_then_dropped_leaves_no_descriptor(engine: str) -> None:
    """Its owner need not come back: he has nothing left to ask."""
    before = open_fds()
    ours, theirs = tcp_pair()
    number = ours.fileno()
    watcher = Watcher(**ENGINES[engine])
    watcher.read(ours)
    in_thread(watcher.close)
    del watcher
    theirs.close()
    assert not is_open(number)
    assert open_fds() <= before


def test_close_from_a_signal_handler_ends_a_wait(bench: Bench) -> None:
    """The handler runs in the owner's own thread, in the middle of its wait."""
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, ctx="waits")
    with interrupted(bench.watcher.close):
        (completion,) = bench.watcher.wait_io(PATIENCE_S)
    assert (completion.ctx, type(completion.error)) == ("waits", WatcherClosed)
    assert at_end(theirs)
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()


def test_nothing_of_a_connection_is_kept_that_had_more_to_do_in_the_next_turn(bench: Bench) -> None:
    before = living_endpoints()
    ours, theirs = tcp_pair()
    with theirs:
        reads = 2 * CALLS_PER_TURN_MAX
        for _ in range(reads):
            bench.watcher.read(ours, bytearray(1))
        del ours
        theirs.sendall(b"x" * reads)
        while not bench.watcher.wait_io(PATIENCE_S):
            pass
        assert bench.watcher.statistics().pending == CALLS_PER_TURN_MAX
        bench.watcher.close()
        assert len(hand_out(bench.watcher)) == CALLS_PER_TURN_MAX
    assert living_endpoints() == before


def living_endpoints() -> int:
    gc.collect()
    return sum(isinstance(thing, QueuedEndpoint) for thing in gc.get_objects())
