"""What gaio's own cases leave out: what is freed, closed, used up, and forked."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Final

import pytest

from shardnet.watcher import Channel, ConnectionFreed, Op, WatcherClosed
from shardnet.watcher.operations import COMPLETIONS_PER_WAIT_MAX
from tests.engine.kit import receive_all, receive_exactly, wait_for, wait_unread
from tests.watcher.elsewhere import copy_at, in_child, no_descriptors_left
from tests.watcher.kit import Bench

MANY: Final = 20_000
BLOCK: Final = 1 << 20


# Free with pending operations.


def test_free_answers_what_waits_reads_first(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    buffers = [bytearray(10), bytearray(10)]
    theirs.sendall(b"abc")
    wait_unread(ours.fileno(), 3)
    watcher = bench.watcher
    watcher.write(ours, bytes(BLOCK), ctx="write 1")
    watcher.read_full(ours, buffers[0], ctx="read 1")
    watcher.write(ours, b"never", ctx="write 2", timeout=9.0)
    watcher.read(ours, buffers[1], ctx="read 2", timeout=9.0)
    watcher.read(ours, ctx="read 3")
    bench.none()
    watcher.free(ours)
    answers = bench.collect(5)
    assert [answer.ctx for answer in answers] == ["read 1", "read 2", "read 3", "write 1", "write 2"]
    assert all(type(answer.error) is ConnectionFreed and answer.conn is ours for answer in answers)
    assert answers[0].data == b"abc"
    written = answers[3].size
    assert 0 < written < BLOCK
    assert [answer.size for answer in answers] == [3, 0, 0, written, 0]
    for buffer in buffers:
        buffer.clear()
    assert len(receive_all(theirs)) == written
    bench.none()


# Descriptor numbers that come again.


@pytest.mark.fault("F12")
def test_reused_number_gets_no_news_of_its_predecessor(bench: Bench) -> None:
    """Also when another holder of the freed connection keeps it alive, as a child does: epoll would go on telling."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    holder = bench.keep(ours.dup())
    bench.watcher.read(ours, ctx="old")
    bench.none()
    theirs.sendall(b"old")
    original, new_peer = bench.tcp()
    bench.watcher.free(ours)
    new = bench.keep(copy_at(original, number))
    bench.watcher.read(new, ctx="new")
    [freed] = bench.collect(1)
    assert (freed.ctx, freed.conn, type(freed.error)) == ("old", ours, ConnectionFreed)
    theirs.sendall(b"older")
    wait_for(holder, select.POLLIN)
    bench.none()
    new_peer.sendall(b"new")
    came = bench.one()
    assert (came.ctx, came.conn, came.data) == ("new", new, b"new")
    assert receive_exactly(holder, 8) == b"oldolder"


def test_reused_number_does_not_inherit_completions_that_wait(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    theirs.sendall(b"old")
    wait_unread(number, 3)
    bench.watcher.read(ours, ctx="old")
    original, new_peer = bench.tcp()
    bench.watcher.free(ours)
    new = bench.keep(copy_at(original, number))
    new_peer.sendall(b"new")
    wait_unread(number, 3)
    bench.watcher.read(new, ctx="new")
    assert [(answer.ctx, answer.conn, answer.data) for answer in bench.collect(2)] == [
        ("old", ours, b"old"),
        ("new", new, b"new"),
    ]


# Double free.


def test_double_free_is_silent_and_spares_the_successor(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    number = ours.fileno()
    original, new_peer = bench.tcp()
    bench.watcher.read(ours)
    bench.watcher.free(ours)
    assert type(bench.one().error) is ConnectionFreed
    new = bench.keep(copy_at(original, number))
    original.close()
    bench.watcher.read(new)
    bench.watcher.free(ours)
    bench.watcher.free(ours)
    bench.none()
    assert bench.watcher.statistics().completed == 1
    new_peer.sendall(b"new")
    assert bench.one().data == b"new"
    assert receive_all(theirs) == b""


def test_double_free_of_what_was_never_used_closes_it_once(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.free(ours)
    assert ours.fileno() == -1
    assert receive_all(theirs) == b""
    bench.watcher.free(ours)
    bench.none()
    assert bench.watcher.statistics().submitted == 0


# EMFILE in accept.


def test_accept_without_descriptors_says_so_and_loses_no_connection(bench: Bench) -> None:
    watcher = bench.watcher
    listener = bench.listener()
    ours, theirs = bench.tcp()
    for ctx in range(3):
        watcher.accept(listener, ctx=ctx)
    knocking = [bench.keep(socket.create_connection(listener.getsockname())) for _ in range(2)]
    with no_descriptors_left():
        failed = bench.one()
        assert (failed.op, failed.ctx, failed.conn, failed.size) == (Op.ACCEPT, 0, None, 0)
        assert isinstance(failed.error, OSError)
        assert failed.error.errno == errno.EMFILE
        # It concerns nobody else.
        watcher.read(ours)
        theirs.sendall(b"x")
        assert bench.one()[:4] == (Op.READ, None, ours, b"x")
    accepted = bench.collect(2)
    assert [(answer.ctx, answer.error) for answer in accepted] == [(1, None), (2, None)]
    channels = [answer.conn for answer in accepted if isinstance(answer.conn, Channel)]
    assert sorted(channel.peer for channel in channels) == sorted(peer.getsockname() for peer in knocking)
    for channel in channels:
        watcher.free(channel)


# Completions queued at close.


def test_close_hands_out_what_was_done_and_what_waited(bench: Bench) -> None:
    watcher = bench.watcher
    ours, theirs = bench.tcp()
    listener = bench.listener()
    theirs.sendall(b"data")
    wait_unread(ours.fileno(), 4)
    watcher.read(ours, ctx="done read")
    watcher.write(ours, b"x", ctx="done write")
    watcher.read(ours, ctx="read", timeout=60.0)
    watcher.read_full(ours, bytearray(4), ctx="read_full")
    watcher.accept(listener, ctx="accept")
    watcher.sleep(60.0, ctx="sleep")
    watcher.close()
    batch = watcher.wait_io()
    assert [completion.ctx for completion in batch[:2]] == ["done read", "done write"]
    assert [completion.error for completion in batch[:2]] == [None, None]
    assert bytes(batch[0].data) == b"data"  # Still the caller's, since it was only now handed out.
    waited = {completion.ctx: type(completion.error) for completion in batch[2:]}
    assert waited == dict.fromkeys(["read", "read_full", "accept", "sleep"], WatcherClosed)
    assert len(batch) == 6
    with pytest.raises(WatcherClosed):
        watcher.wait_io(0)
    assert receive_all(theirs) == b"x"


def test_close_hands_out_in_parts_what_is_more_than_a_part(bench: Bench) -> None:
    for ctx in range(MANY):
        bench.watcher.sleep(60.0, ctx=ctx)
    bench.watcher.close()
    contexts: list[object] = []
    while len(contexts) < MANY:
        batch = bench.watcher.wait_io()
        assert 0 < len(batch) <= COMPLETIONS_PER_WAIT_MAX
        assert all(type(completion.error) is WatcherClosed for completion in batch)
        contexts += [completion.ctx for completion in batch]
    assert contexts == list(range(MANY))
    with pytest.raises(WatcherClosed):
        bench.watcher.wait_io()


# Fork.


def test_fork_leaves_the_watcher_to_the_parent(bench: Bench) -> None:
    watcher = bench.watcher
    ours, theirs = bench.tcp()
    listener = bench.listener()
    watcher.read(ours, timeout=60.0)
    bench.none()

    def use() -> str:
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: watcher.read(ours),
            "read_full": lambda: watcher.read_full(ours, bytearray(1)),
            "write": lambda: watcher.write(ours, b"from the child"),
            "accept": lambda: watcher.accept(listener),
            "connect": lambda: watcher.connect(listener.getsockname()),
            "sleep": lambda: watcher.sleep(0),
            "free": lambda: watcher.free(ours),
            "detach": lambda: watcher.detach(ours),
            "wait_io": lambda: watcher.wait_io(0),
            "wake": watcher.wake,
            "statistics": watcher.statistics,
            "set_affinity": lambda: watcher.set_affinity(0),
        }
        allowed = []
        for name, call in calls.items():
            try:
                call()
            except RuntimeError:
                continue
            allowed.append(name)
        watcher.close()
        return f"allowed: {allowed}"

    assert in_child(use) == "allowed: []"
    theirs.sendall(b"to the parent")
    answer = bench.one()
    assert (answer.data, answer.error) == (b"to the parent", None)
    watcher.write(ours, b"from the parent")
    assert bench.one().error is None
    assert receive_exactly(theirs, 15) == b"from the parent"


def test_fork_allows_the_child_a_watcher_of_its_own(bench: Bench, engine: str) -> None:
    bench.watcher.sleep(60.0)

    def work() -> str:
        with Bench(engine) as own:
            ours, theirs = own.tcp()
            theirs.sendall(b"x")
            own.watcher.read(ours)
            return own.one().data.decode()

    assert in_child(work) == "x"
    bench.none()
