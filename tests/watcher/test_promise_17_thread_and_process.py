"""Promise 17: a watcher belongs to one thread and one process. The others may wake it and close it, and no more."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from shardnet.watcher import Channel, Completion, Op, Watcher
from tests.engine.kit import PATIENCE_S, open_fds, tcp_pair
from tests.watcher.elsewhere import at_end, child, copy_at, in_child, in_thread, interrupted, is_open, successor
from tests.watcher.kit import ENGINES, Bench

Call = Callable[[Watcher, socket.socket], object]

# Everything but `wake` and `close`.
CALLS: dict[str, Call] = {
    "read": lambda watcher, sock: watcher.read(sock),
    "read into a buffer": lambda watcher, sock: watcher.read(sock, bytearray(1), timeout=0),
    "read_full": lambda watcher, sock: watcher.read_full(sock, bytearray(1)),
    "write": lambda watcher, sock: watcher.write(sock, b"x"),
    "accept": lambda watcher, sock: watcher.accept(sock),
    "connect": lambda watcher, sock: watcher.connect(("127.0.0.1", 9)),
    "sleep": lambda watcher, sock: watcher.sleep(0),
    "free": lambda watcher, sock: watcher.free(sock),
    "detach": lambda watcher, sock: watcher.detach(sock),
    "wait_io": lambda watcher, sock: watcher.wait_io(0),
    "statistics": lambda watcher, sock: watcher.statistics(),
    "set_affinity": lambda watcher, sock: watcher.set_affinity(min(os.sched_getaffinity(0))),
}


def outcomes(watcher: Watcher, sock: socket.socket) -> dict[str, str]:
    """What each call comes to, by its name."""
    told = {}
    for name, call in CALLS.items():
        try:
            told[name] = repr(call(watcher, sock))
        except Exception as error:
            told[name] = type(error).__name__
    return told


REFUSED = dict.fromkeys(CALLS, "RuntimeError")


# Threads.


def test_calls_from_another_thread_raise_runtime_error(bench: Bench) -> None:
    used, theirs = bench.tcp()
    fresh, _ = bench.tcp()
    bench.watcher.read(used)
    before = bench.watcher.statistics()
    for sock in (fresh, used, bench.listener()):
        assert in_thread(partial(outcomes, bench.watcher, sock)) == REFUSED
    assert fresh.fileno() >= 0, "a call that was refused took the socket over"
    assert bench.watcher.statistics() == before
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_calls_from_another_thread_raise_runtime_error_also_after_close(bench: Bench) -> None:
    fresh, _ = bench.tcp()
    bench.watcher.sleep(60)
    bench.watcher.close()
    assert in_thread(lambda: outcomes(bench.watcher, fresh)) == REFUSED
    assert fresh.fileno() >= 0
    assert len(bench.watcher.wait_io()) == 1


def test_watcher_belongs_to_the_thread_that_made_it_which_need_not_be_the_first(engine: str) -> None:
    def use() -> bytes:
        with Bench(engine) as bench:
            ours, theirs = bench.tcp()
            bench.watcher.read(ours)
            theirs.sendall(b"mine")
            return bench.one().data

    assert in_thread(use) == b"mine"


def test_watchers_of_two_threads_work_side_by_side(bench: Bench, engine: str) -> None:
    """One writes what the other reads."""
    ours, theirs = bench.unix()
    data = bytes(range(256)) * 1024

    def write() -> int:
        with Watcher(**ENGINES[engine]) as watcher:
            watcher.write(theirs, data)
            (completion,) = watcher.wait_io(PATIENCE_S)
            return completion.size

    writer = threading.Thread(target=write)
    writer.start()
    bench.watcher.read_full(ours, bytearray(len(data)))
    answer = bench.one()
    writer.join()
    assert answer.data == data


def orphan(engine: str, conn: socket.socket) -> Watcher:
    """A watcher with a read pending on `conn`, whose thread has ended."""
    made: list[Watcher] = []

    def make() -> None:
        made.append(Watcher(**ENGINES[engine]))
        made[0].read(conn)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def test_watcher_whose_thread_has_ended_can_be_closed_by_another(engine: str) -> None:
    before = open_fds()
    ours, theirs = tcp_pair()
    number = ours.fileno()
    watcher = orphan(engine, ours)
    watcher.close()
    assert watcher.closed
    with theirs:
        assert at_end(theirs)
    assert not is_open(number)
    watcher.close()
    assert open_fds() <= before


def test_watcher_whose_thread_has_ended_belongs_to_nobody_else(engine: str) -> None:
    ours, theirs = tcp_pair()
    watcher = orphan(engine, ours)
    with theirs, contextlib.closing(watcher):
        assert outcomes(watcher, theirs) == REFUSED
        watcher.wake()


def test_thread_that_gets_the_identity_of_an_ended_one_does_not_get_its_watcher(engine: str) -> None:
    """The system gives a thread's identity to one of the next that start, mostly the very next."""
    ours, theirs = tcp_pair()
    identity: list[int] = []
    told: list[Any] = []
    made: list[Watcher] = []

    def make() -> None:
        identity.append(threading.get_ident())
        made.append(Watcher(**ENGINES[engine]))
        made[0].read(ours)

    def use() -> None:
        if threading.get_ident() == identity[0]:
            told.append(outcomes(made[0], theirs))

    for target in (make, *[use] * 50):
        if not told:
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    with theirs, contextlib.closing(made[0]):
        if not told:
            pytest.skip("no thread got the identity of the one that had ended")
        assert told == [REFUSED]


# Waking.


def test_wake_ends_a_wait_from_another_thread(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    for _ in range(20):
        waker = threading.Thread(target=bench.watcher.wake)
        waker.start()
        assert bench.watcher.wait_io() == []
        waker.join()
    assert bench.watcher.statistics().pending == 1
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_wake_ends_a_wait_from_a_signal_handler(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    with interrupted(bench.watcher.wake):
        assert bench.watcher.wait_io() == []
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_wake_ends_the_next_wait_when_there_is_none_now(bench: Bench) -> None:
    bench.watcher.wake()
    bench.watcher.wake()
    assert bench.watcher.wait_io() == []
    in_thread(bench.watcher.wake)
    assert bench.watcher.wait_io() == []
    bench.watcher.sleep(0)
    assert bench.one().op is Op.TIMER  # None is left over.


def test_wake_keeps_no_completion_back(bench: Bench) -> None:
    ours, _ = bench.tcp()
    bench.watcher.write(ours, b"x")
    bench.watcher.wake()
    (completion,) = bench.watcher.wait_io()
    assert completion.op is Op.WRITE


def test_wake_from_many_threads_at_once_ends_a_wait(bench: Bench) -> None:
    threads = [threading.Thread(target=bench.watcher.wake) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert bench.watcher.wait_io() == []
    for thread in threads:
        thread.join()
    while bench.watcher.wait_io(0):  # Those that came later.
        pass
    bench.watcher.sleep(0)
    bench.until(lambda: bench.watcher.statistics().waiting == 0 == bench.watcher.statistics().pending, [])


def test_wake_is_silent_when_the_watcher_is_closed(bench: Bench) -> None:
    bench.watcher.close()
    bench.watcher.wake()
    in_thread(bench.watcher.wake)


def test_wake_of_a_closed_watcher_writes_into_nobodys_descriptor(engine: str) -> None:
    """Its own numbers are somebody else's by then."""
    before = open_fds()
    watcher = Watcher(**ENGINES[engine])
    numbers = sorted(map(int, open_fds() - before))
    watcher.close()
    with contextlib.ExitStack() as undo:
        ours, theirs = map(undo.enter_context, socket.socketpair())
        for number in numbers:
            if not is_open(number):
                undo.enter_context(copy_at(ours, number))
        watcher.wake()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


# Processes.


def test_calls_in_a_forked_child_raise_runtime_error(bench: Bench) -> None:
    used, theirs = bench.tcp()
    fresh, _ = bench.tcp()
    bench.watcher.read(used)
    bench.none()

    def use() -> dict[str, dict[str, str]]:
        told = {"fresh": outcomes(bench.watcher, fresh), "used": outcomes(bench.watcher, used)}
        try:
            bench.watcher.wake()
        except RuntimeError:
            told["wake"] = {}
        told["taken over"] = {} if fresh.fileno() < 0 else REFUSED
        return told

    expected = {"fresh": REFUSED, "used": REFUSED, "wake": {}, "taken over": REFUSED}
    assert in_child(use) == str(expected)
    bench.none()  # Nobody was woken.
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


def test_calls_in_a_forked_child_raise_runtime_error_also_after_close(bench: Bench) -> None:
    fresh, _ = bench.tcp()

    def use() -> dict[str, str]:
        bench.watcher.close()
        bench.watcher.close()
        assert bench.watcher.closed
        return outcomes(bench.watcher, fresh)

    assert in_child(use) == str(REFUSED)
    assert not bench.watcher.closed


def test_forked_child_makes_a_watcher_of_its_own(bench: Bench, engine: str) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    bench.none()

    def use() -> bytes:
        with Bench(engine) as own:
            mine, peer = own.tcp()
            own.watcher.read(mine)
            peer.sendall(b"own")
            return own.one().data

    assert in_child(use) == str(b"own")
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


class Busy:
    """A watcher that nobody else holds, with operations of each kind that wait, and the user's only references."""

    def __init__(self, engine: str, undo: contextlib.ExitStack) -> None:
        watcher = Watcher(**ENGINES[engine])
        self.listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = self.listener.getsockname()
        self.client = undo.enter_context(socket.create_connection(self.address))
        watcher.accept(self.listener)
        (accepted,) = watcher.wait_io()
        reading, self.reading_peer = tcp_pair()
        writing, self.writing_peer = socket.socketpair()
        idle, self.idle_peer = tcp_pair()
        for sock in (self.reading_peer, self.writing_peer, self.idle_peer):
            undo.enter_context(sock)
        self.data = bytes(range(256)) * 4096
        watcher.read(idle, timeout=0)
        watcher.read(reading, ctx="read")
        watcher.write(writing, self.data, ctx="write")
        watcher.accept(self.listener, ctx="accept")
        assert [completion.ctx for completion in watcher.wait_io()] == [None]
        self.conns: list[Any] = [reading, writing, idle, accepted.conn]
        self.watchers = [watcher]

    def close(self) -> None:
        for watcher in self.watchers:
            watcher.close()

    def check(self) -> None:
        """Everything that waits completes, when its time has come."""
        (watcher,) = self.watchers
        self.reading_peer.sendall(b"x")
        (read,) = watcher.wait_io(PATIENCE_S)
        assert (read.ctx, bytes(read.data)) == ("read", b"x")

        received = 0
        done: list[Completion] = []
        while not done:
            received += len(self.writing_peer.recv(1 << 16))
            done = watcher.wait_io(0)
        assert [(completion.ctx, completion.size) for completion in done] == [("write", len(self.data))]

        with socket.create_connection(self.address):
            (accepted,) = watcher.wait_io(PATIENCE_S)
            assert accepted.ctx == "accept"
            watcher.free(accepted.conn)  # type: ignore[arg-type]
        for conn, peer in ((self.conns[2], self.idle_peer), (self.conns[3], self.client)):
            watcher.read(conn, ctx="idle")
            assert watcher.wait_io(0) == []
            peer.sendall(b"y")
            assert [bytes(completion.data) for completion in watcher.wait_io(PATIENCE_S)] == [b"y"]


def end_at_once(busy: Busy) -> None: ...


def close(busy: Busy) -> None:
    busy.watchers[0].close()


def leave(busy: Busy) -> None:
    with busy.watchers[0]:
        pass


def drop_connections(busy: Busy) -> None:
    busy.conns.clear()


def drop_watcher(busy: Busy) -> None:
    busy.watchers.clear()


def drop_everything(busy: Busy) -> None:
    busy.conns.clear()
    busy.watchers.clear()


def close_and_drop(busy: Busy) -> None:
    busy.watchers[0].close()
    drop_everything(busy)


def close_in_a_grandchild(busy: Busy) -> None:
    assert in_child(busy.watchers[0].close) == "None"
    busy.watchers[0].close()


GOINGS = [
    end_at_once,
    close,
    leave,
    drop_connections,
    drop_watcher,
    drop_everything,
    close_and_drop,
    close_in_a_grandchild,
]


@pytest.mark.parametrize("lives", [False, True], ids=["that has ended", "that lives"])
@pytest.mark.parametrize("go", GOINGS)
def test_forked_child_does_not_disturb_its_parent(engine: str, go: Callable[[Busy], None], lives: bool) -> None:
    """What is registered with an epoll is shared by those who inherited it: who tidies up, tidies up for all."""
    with contextlib.ExitStack() as undo:
        busy = Busy(engine, undo)
        undo.callback(busy.close)

        def go_silently() -> list[str]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                go(busy)
            return [str(warning.message) for warning in caught]

        answer = undo.enter_context(child(go_silently)) if lives else in_child(go_silently)
        assert answer == "[]"
        busy.check()


@pytest.mark.parametrize("go", [close, leave, drop_everything, close_and_drop])
def test_forked_child_gives_up_its_copies(engine: str, go: Callable[[Busy], None]) -> None:
    """So that a connection that the parent frees ends for its peer, though the child lives."""
    with contextlib.ExitStack() as undo:
        busy = Busy(engine, undo)
        undo.callback(busy.close)
        undo.enter_context(child(lambda: go(busy)))
        for conn in busy.conns:
            busy.watchers[0].free(conn)
        assert at_end(busy.reading_peer)
        assert at_end(busy.idle_peer)
        assert at_end(busy.client)


def test_connection_that_a_child_still_holds_haunts_nobody(bench: Bench) -> None:
    """The kernel tells of a descriptor for as long as somebody holds a copy of it."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read(ours)
    bench.none()
    with child(lambda: None):
        bench.watcher.free(ours)
        assert bench.one().conn is ours
        again, _ = map(bench.keep, successor(number))
        bench.watcher.read(again)
        bench.none()
        theirs.sendall(b"into the void")
        turns = bench.watcher.statistics().turns
        bench.watcher.sleep(0.02)
        assert bench.one().op is Op.TIMER
        assert bench.watcher.statistics().turns - turns < 10


def test_parent_that_closes_does_not_disturb_its_forked_child(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener)
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    with child(lambda: bench.watcher.closed) as closed:
        assert closed == "False"
        bench.watcher.close()
        assert len(bench.watcher.wait_io()) == 2
    assert at_end(theirs)


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_child_forked_by_another_thread_closes_without_disturbing_the_owner(engine: str) -> None:
    with contextlib.ExitStack() as undo:
        busy = Busy(engine, undo)
        undo.callback(busy.close)

        def go() -> str:
            told = outcomes(busy.watchers[0], busy.client)
            close_and_drop(busy)
            return str(told == REFUSED)

        assert in_thread(lambda: in_child(go)) == "True"
        busy.check()


def test_watcher_inherited_from_the_grandparent_is_refused(bench: Bench) -> None:
    ours, _ = bench.tcp()
    assert in_child(lambda: in_child(lambda: outcomes(bench.watcher, ours))) == str(REFUSED)


def test_fork_does_not_hinder_the_parent(bench: Bench) -> None:
    """It is the child that the count of forks goes up in."""
    channel, theirs = bench.accepted()
    assert isinstance(channel, Channel)
    for _ in range(3):
        assert in_child(lambda: "here") == "here"
        bench.watcher.write(channel, b"x")
        assert bench.one().error is None
        bench.watcher.wake()
        assert bench.watcher.wait_io() == []
        assert theirs.recv(1) == b"x"
    bench.watcher.free(channel)
