"""Promise 13: a connection that nobody holds any more is closed, unless something is pending on it."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from shardnet.watcher import Channel, DeadlineExceeded, Op, Watcher, WatcherClosed
from tests.engine.kit import PATIENCE_S, open_fds, tcp_pair
from tests.watcher.elsewhere import at_end, in_thread, is_open
from tests.watcher.kit import ENGINES, Bench


class Held:
    """A user's object that holds a connection, and may hold itself."""

    def __init__(self, conn: socket.socket | Channel) -> None:
        self.conn = conn
        self.itself: Held | None = None


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Cycles are collected by hand alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def warned(*texts: str) -> Iterator[None]:
    """These `ResourceWarning`s come and no other, also out of what the garbage collector calls."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [warning.category for warning in caught] == [ResourceWarning] * len(texts), caught
    for warning, text in zip(caught, texts, strict=True):
        assert text in str(warning.message)


def adopted(bench: Bench) -> tuple[socket.socket, socket.socket]:
    """A connection that the watcher has taken over and that the bench does not hold, and its peer."""
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    bench.watcher.read(ours, timeout=0)
    assert isinstance(bench.one().error, DeadlineExceeded)
    return ours, theirs


def test_connection_that_nobody_holds_is_closed_with_a_warning(bench: Bench) -> None:
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    number = ours.fileno()
    bench.watcher.read(ours, timeout=0)
    assert isinstance(bench.one().error, DeadlineExceeded)
    assert bench.watcher.statistics().connections_dropped == 0
    with warned(f"a connection (descriptor {number}) was dropped: free() it"):
        del ours
    assert not is_open(number)
    assert at_end(theirs)
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_dropped, said.submitted) == (0, 1, 1)
    bench.none()


def test_channel_that_nobody_holds_is_closed_with_a_warning(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    number = channel.fileno()
    with warned(f"descriptor {number}"):
        del channel
    assert at_end(theirs)
    assert bench.watcher.statistics().connections_dropped == 1


def test_channel_that_was_connected_and_that_nobody_holds_is_closed(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.connect(listener.getsockname())
    theirs = bench.keep(listener.accept()[0])
    with warned("dropped"):
        bench.one()  # Its completion was all that held it.
    assert at_end(theirs)
    assert bench.watcher.statistics().connections_dropped == 1


def test_completion_holds_its_connection(bench: Bench) -> None:
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    bench.watcher.write(ours, b"x")
    with warned():
        del ours  # The completion waits for `wait_io`.
    (completion,) = bench.watcher.wait_io()
    with warned():
        assert bench.watcher.statistics().connections == 1
    assert completion.conn is not None
    assert theirs.recv(1) == b"x"
    with warned("dropped"):
        del completion
    assert at_end(theirs)


def test_connection_in_a_cycle_is_closed_when_the_cycle_is_collected(bench: Bench) -> None:
    with no_collection():
        ours, theirs = adopted(bench)
        held = Held(ours)
        held.itself = held
        with warned():
            del ours, held
        assert bench.watcher.statistics().connections == 1
        with warned("dropped"):
            gc.collect()
    assert at_end(theirs)
    assert bench.watcher.statistics().connections_dropped == 1


def test_many_connections_are_closed_and_counted(bench: Bench) -> None:
    """gaio's GC: two hundred, dropped at once."""
    before = open_fds()
    conns: list[Any] = []
    for _ in range(200):
        ours, theirs = tcp_pair()
        bench.watcher.write(ours, b"x")
        conns.append((ours, bench.keep(theirs)))
    del ours
    bench.collect(200)
    peers = [theirs for _, theirs in conns]
    with warned(*["dropped"] * 200):
        conns.clear()
        gc.collect()
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_dropped) == (0, 200)
    for theirs in peers:
        assert theirs.recv(1) == b"x"
        assert at_end(theirs)
        theirs.close()
    assert open_fds() <= before


def test_freed_connection_is_forgotten_in_silence(bench: Bench) -> None:
    ours, _ = adopted(bench)
    channel, _ = bench.accepted()
    bench.watcher.free(ours)
    bench.watcher.free(channel)
    with warned():
        del ours, channel
    assert bench.watcher.statistics().connections_dropped == 0


def test_detached_connection_is_forgotten_in_silence(bench: Bench) -> None:
    ours, theirs = adopted(bench)
    again = bench.keep(bench.watcher.detach(ours))
    with warned():
        del ours
    again.sendall(b"x")
    assert theirs.recv(1) == b"x"
    assert bench.watcher.statistics().connections_dropped == 0


def test_connection_with_a_read_pending_lives_on(bench: Bench) -> None:
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    identity = id(ours)
    bench.watcher.read(ours, ctx="waits")
    bench.none()
    with warned():
        del ours
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_pending, said.connections_dropped) == (1, 1, 0)
    theirs.sendall(b"x")
    (completion,) = bench.watcher.wait_io(PATIENCE_S)
    assert (completion.op, completion.ctx, bytes(completion.data)) == (Op.READ, "waits", b"x")
    assert isinstance(completion.conn, socket.socket)
    assert id(completion.conn) == identity
    assert bench.watcher.statistics().connections_pending == 0
    with warned("dropped"):
        del completion
    assert at_end(theirs)
    assert bench.watcher.statistics().connections_dropped == 1


def test_connection_with_a_write_pending_sends_it_all(bench: Bench) -> None:
    ours, theirs = tcp_pair(4096)
    bench.keep(theirs)
    data = bytes(range(256)) * 1024
    bench.watcher.write(ours, data)
    bench.none()
    with warned():
        del ours
    received = bytearray()
    with warned("dropped"):
        while len(received) < len(data):
            received += theirs.recv(65536)
            for completion in bench.watcher.wait_io(0):
                assert (completion.size, completion.error) == (len(data), None)
                del completion
    assert received == data
    assert at_end(theirs)


def test_connection_with_the_second_of_two_pending_lives_on(bench: Bench) -> None:
    ours, theirs = tcp_pair()
    bench.keep(theirs)
    bench.watcher.read(ours, ctx=1)
    bench.watcher.read(ours, ctx=2)
    with warned():
        del ours
        theirs.sendall(b"a")
        assert bench.one()[1:4:2] == (1, b"a")
    theirs.sendall(b"b")
    with warned("dropped"):
        assert bench.one()[1:4:2] == (2, b"b")
        gc.collect()


def test_pending_operation_in_a_cycle_keeps_its_connection(bench: Bench) -> None:
    """The context holds the connection: only the watcher holds both."""
    with no_collection():
        ours, theirs = tcp_pair()
        bench.keep(theirs)
        held = Held(ours)
        held.itself = held
        bench.watcher.read(ours, ctx=held)
        with warned():
            del ours, held
        theirs.sendall(b"x")
        answer = bench.one()
        assert answer.ctx.conn is answer.conn
        assert answer.data == b"x"
        assert isinstance(answer.conn, socket.socket)
        bench.watcher.free(answer.conn)
        del answer


def test_both_kinds_are_counted(bench: Bench) -> None:
    pending, theirs = bench.tcp()
    bench.watcher.read(pending)
    idle, _ = adopted(bench)
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_pending, said.connections_dropped) == (2, 1, 0)
    with warned("dropped"):
        del idle
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_pending, said.connections_dropped) == (1, 1, 1)
    theirs.sendall(b"x")
    bench.one()
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_pending, said.connections_dropped) == (1, 0, 1)


# Collected in another thread.


def test_connection_collected_in_another_thread_is_closed_by_the_owners_next_wait(bench: Bench) -> None:
    with no_collection():
        ours, theirs = tcp_pair()
        bench.keep(theirs)
        number = ours.fileno()
        bench.watcher.read(ours, timeout=0)
        bench.collect(1)
        held = Held(ours)
        held.itself = held
        del ours, held
        assert is_open(number)
        in_thread(gc.collect)
        with warned(f"descriptor {number}"):
            assert bench.watcher.wait_io(0) == []
    assert not is_open(number)
    assert at_end(theirs)
    said = bench.watcher.statistics()
    assert (said.connections, said.connections_dropped) == (0, 1)


def test_connection_dropped_by_another_thread_is_closed_while_the_owner_waits(bench: Bench) -> None:
    held: list[socket.socket] = []
    ours, theirs = adopted(bench)
    held.append(ours)
    del ours
    seen = []

    def drop() -> None:
        held.clear()
        seen.append(at_end(theirs))  # The owner closes it, without its wait coming to an end.
        bench.watcher.wake()

    dropper = threading.Thread(target=drop)
    with warned("dropped"):
        dropper.start()
        assert bench.watcher.wait_io(PATIENCE_S) == []
        dropper.join()
    assert seen == [True]
    assert bench.watcher.statistics().connections_dropped == 1


def test_connection_collected_in_another_thread_is_closed_by_close(bench: Bench) -> None:
    ours, theirs = adopted(bench)
    held = [ours]
    del ours
    in_thread(held.clear)
    with warned("dropped"):
        bench.watcher.close()
    assert at_end(theirs)


def test_numbers_of_connections_collected_in_another_thread_are_not_closed_twice(bench: Bench) -> None:
    ours, _ = adopted(bench)
    held = [ours]
    del ours
    in_thread(held.clear)
    with warned("dropped"):
        bench.none()
    again, theirs = bench.tcp()  # Gets the number.
    bench.watcher.read(again)
    bench.none()
    theirs.sendall(b"x")
    assert bench.one().data == b"x"


# The watcher itself.


def test_watcher_that_nobody_closed_warns_and_leaves_no_descriptor(engine: str) -> None:
    before = open_fds()
    idle, idle_peer = tcp_pair()
    busy, busy_peer = tcp_pair(4096)
    watcher = Watcher(**ENGINES[engine])
    watcher.read(idle, timeout=0)
    watcher.read(busy)
    watcher.write(busy, bytes(1 << 20))
    watcher.sleep(60)
    assert len(watcher.wait_io()) == 1
    with warned("watcher was dropped"):
        del watcher
    with idle_peer, busy_peer:
        assert at_end(idle_peer)
    del idle, busy
    assert open_fds() <= before


def test_watcher_that_nobody_closed_leaves_a_listener_open(bench: Bench, engine: str) -> None:
    listener = bench.listener()
    watcher = Watcher(**ENGINES[engine])
    watcher.accept(listener)
    with warned("watcher was dropped"):
        del watcher
        gc.collect()
    bench.keep(socket.create_connection(listener.getsockname()))
    listener.settimeout(PATIENCE_S)
    bench.keep(listener.accept()[0])


def test_watcher_in_a_cycle_is_closed_when_the_cycle_is_collected(engine: str) -> None:
    """A context that holds the watcher: the watcher holds the operation, which holds the context."""
    before = open_fds()
    with no_collection():
        ours, theirs = tcp_pair()
        watcher = Watcher(**ENGINES[engine])
        watcher.read(ours, ctx=watcher)
        watcher.accept(ours_listener := socket.create_server(("127.0.0.1", 0)), ctx=watcher)
        with warned():
            del watcher, ours
        with warned("watcher was dropped"):
            gc.collect()
    with theirs, ours_listener:
        assert at_end(theirs)
    assert open_fds() <= before


def test_watcher_collected_in_another_thread_leaves_no_descriptor(engine: str) -> None:
    before = open_fds()
    ours, theirs = tcp_pair()
    watchers = [Watcher(**ENGINES[engine])]
    watchers[0].read(ours)
    with warned("watcher was dropped"):
        in_thread(watchers.clear)
    with theirs:
        assert at_end(theirs)
    del ours
    assert open_fds() <= before


def test_watcher_that_was_closed_is_dropped_in_silence(engine: str) -> None:
    ours, theirs = tcp_pair()
    watcher = Watcher(**ENGINES[engine])
    watcher.read(ours)
    watcher.close()
    assert type(watcher.wait_io()[0].error) is WatcherClosed
    with warned(), theirs:
        del watcher, ours


def test_channel_outlives_its_watcher(engine: str) -> None:
    with Bench(engine) as bench:
        channel, _ = bench.accepted()
    with warned():
        assert channel.fileno() == -1
        assert repr(channel)
        del bench
        assert channel.fileno() == -1
