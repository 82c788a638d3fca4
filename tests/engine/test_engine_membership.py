"""What belongs to an engine and how it leaves: adding, guests, waking, closing."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from shardnet.errors import WatcherClosed
from shardnet.watcher._sys import EVENT_IN, EVENT_OUT
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint
from tests.engine.kit import Bench, fill, open_fds, raiser, wait_for


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def take_guests(bench: Bench) -> list[tuple[object, int]]:
    ready, bench.engine.guests_ready = bench.engine.guests_ready, []
    return ready


# Endpoints.


def test_endpoints_are_those_added_and_not_freed(bench: Bench, pipe: tuple[int, int]) -> None:
    endpoints = [bench.unix(f"{number}")[0] for number in range(100)]
    bench.engine.watch(pipe[0], EVENT_IN, "guest")
    assert set(bench.engine.endpoints()) == set(endpoints)
    for endpoint in endpoints[::2]:
        bench.engine.free(endpoint)
    assert set(bench.engine.endpoints()) == set(endpoints[1::2])


def test_endpoint_added_twice_is_refused_and_goes_on(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.engine.add(endpoint)
    endpoint.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)


def test_second_endpoint_on_a_descriptor_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    """The newcomer used to take the place in the table although the kernel refused it: the first went deaf."""
    endpoint, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.engine.add(HookEndpoint(bench.engine.agenda, endpoint.fd))
    endpoint.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)
    assert bench.engine.endpoints() == [endpoint]


def test_endpoint_that_was_never_added_is_closed_by_free(bench: Bench) -> None:
    """Beyond the table's end it used to raise IndexError, the descriptor leaked."""
    left, right = socket.socketpair()
    bench.keep(right)
    number = os.dup2(left.fileno(), 3000)
    left.close()
    endpoint = HookEndpoint(bench.engine.agenda, number)
    bench.engine.free(endpoint)
    with pytest.raises(OSError):
        os.fstat(number)
    assert endpoint.fd == -1


def test_refused_descriptor_leaves_no_trace(bench: Bench) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        bench.engine.watch(file.fileno(), EVENT_IN, "a file is always ready")
    left, right = socket.socketpair()
    number = left.fileno()
    for sock in (left, right):
        sock.close()
    endpoint = HookEndpoint(bench.engine.agenda, number)
    with pytest.raises(OSError):
        bench.engine.add(endpoint)
    assert bench.engine.endpoints() == []


# Guests.


def test_guest_is_reported_as_long_as_it_is_ready(bench: Bench, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    token = object()
    bench.engine.watch(reader, EVENT_IN, token)
    bench.settle()
    assert take_guests(bench) == []
    os.write(writer, b"x")
    for _ in range(3):
        bench.engine.turn(None)
        assert take_guests(bench) == [(token, EVENT_IN)]
    os.read(reader, 1)
    bench.settle()
    assert take_guests(bench) == []


def test_guest_is_watched_for_what_was_asked_last(bench: Bench) -> None:
    left, right = socket.socketpair()
    bench.keep(left)
    bench.keep(right)
    bench.engine.watch(left.fileno(), EVENT_IN, "first")
    bench.settle()
    assert take_guests(bench) == []
    bench.engine.rewatch(left.fileno(), EVENT_IN | EVENT_OUT, "second")
    bench.engine.turn(None)
    assert take_guests(bench) == [("second", EVENT_OUT)]
    right.send(b"x")
    bench.engine.turn(None)
    assert take_guests(bench) == [("second", EVENT_IN | EVENT_OUT)]
    bench.engine.unwatch(left.fileno())
    bench.settle()
    assert take_guests(bench) == []


def test_guest_that_hangs_up_is_reported_whatever_was_asked(bench: Bench) -> None:
    reader, writer = os.pipe()
    bench.engine.watch(writer, EVENT_OUT, "writer")
    os.close(reader)
    bench.engine.turn(None)
    [(token, events)] = take_guests(bench)
    assert token == "writer"
    assert events & select.EPOLLERR
    bench.engine.unwatch(writer)
    os.close(writer)


def test_unwatch_is_right_for_a_descriptor_that_was_closed(bench: Bench) -> None:
    reader, writer = os.pipe()
    bench.engine.watch(reader, EVENT_IN, "reader")
    os.close(reader)
    bench.engine.unwatch(reader)
    bench.engine.unwatch(reader)
    bench.engine.unwatch(10_000)
    bench.engine.unwatch(-1)
    os.close(writer)


def test_unwatch_of_a_number_that_is_an_endpoint_by_now_leaves_the_endpoint_alone(bench: Bench) -> None:
    """A client library closes its socket and unregisters it later; meanwhile the number went to a new connection.

    That connection used to be thrown out of the epoll, and waited for ever.
    """
    endpoint, peer = bench.unix()
    reader, writer = os.pipe()
    number = reader
    bench.engine.watch(number, EVENT_IN, "reader")
    os.close(number)
    os.close(writer)
    left, right = socket.socketpair()
    bench.keep(right)
    if left.fileno() != number:
        os.dup2(left.fileno(), number)
        left.close()
        left = socket.socket(fileno=number)
    heir = bench.adopt(left, "heir", unix=True)
    assert heir.fd == number
    bench.engine.unwatch(number)
    with pytest.raises(FileNotFoundError):
        bench.engine.rewatch(number, EVENT_OUT, "reader")
    heir.post_read()
    right.sendall(b"x")
    bench.until(lambda: bench.of("heir"))
    assert set(bench.engine.endpoints()) == {endpoint, heir}
    peer.close()


def test_watch_of_an_endpoint_is_refused_and_the_endpoint_goes_on(bench: Bench) -> None:
    endpoint, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.engine.watch(endpoint.fd, EVENT_IN, "intruder")
    endpoint.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)
    assert take_guests(bench) == []


def test_hook_that_raises_loses_no_guest(bench: Bench, pipe: tuple[int, int]) -> None:
    endpoint, peer = bench.unix()
    endpoint.then["received"] = raiser(KeyboardInterrupt())
    endpoint.post_read()
    bench.engine.watch(pipe[0], EVENT_IN, "guest")
    os.write(pipe[1], b"x")
    peer.sendall(b"x")
    with pytest.raises(KeyboardInterrupt):
        bench.until(lambda: False)
    assert ("guest", EVENT_IN) in take_guests(bench)


# Waking.


def test_wake_ends_a_turn_that_waits_for_ever_and_only_one(bench: Bench) -> None:
    for _ in range(1000):
        bench.engine.wake()
    bench.engine.turn(None)
    fired: list[int] = []
    bench.engine.after(0.001, lambda: fired.append(1))
    turns = 0
    while not fired:
        bench.engine.turn(None)
        turns += 1
    assert turns <= 2
    assert bench.engine.guests_ready == []


def test_wake_from_another_thread(bench: Bench) -> None:
    for _ in range(20):
        thread = threading.Thread(target=bench.engine.wake)
        thread.start()
        bench.engine.turn(None)
        thread.join()


def test_wake_from_a_signal_handler(bench: Bench) -> None:
    """In the main thread, wherever it is at that moment: most often inside the wait."""
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, lambda *_: bench.engine.wake())
    try:
        for _ in range(20):
            thread = threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1))
            thread.start()
            bench.engine.turn(None)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_turn_does_not_wait_when_told_not_to(bench: Bench) -> None:
    for timeout_s in (0.0, -1.0, float("-inf"), 0.000001):
        bench.engine.turn(timeout_s)


# Closing.


def test_close_is_idempotent_and_leaks_no_descriptor() -> None:
    before = open_fds()
    engine = Engine()
    for _ in range(10):
        left, right = socket.socketpair()
        left.setblocking(False)
        engine.add(HookEndpoint(engine.agenda, left.detach(), unix=True))
        right.close()
    assert not engine.closed
    engine.close()
    engine.close()
    assert engine.closed
    assert open_fds() <= before


def test_close_cancels_everything_that_was_asked_once(bench: Bench) -> None:
    reading, _ = bench.unix("reading")
    writing, _ = bench.unix("writing")
    reading.post_read()
    fill(writing)
    written = bench.count(Op.WRITE, Outcome.OK)
    timers = [bench.engine.after(100.0, raiser(AssertionError("closed"))) for _ in range(3)]
    bench.engine.cancel(timers[0])
    bench.engine.close()
    bench.engine.cancel(timers[1])
    bench.engine.free(reading)
    assert bench.journal == []
    assert bench.counts(Op.READ) == {Outcome.CANCELLED: 1}
    assert bench.counts(Op.WRITE) == {Outcome.OK: written, Outcome.CANCELLED: 1}
    assert bench.counts(Op.TIMER) == {Outcome.CANCELLED: 3}
    assert bench.engine.endpoints() == []


def test_closed_watcher_refuses_what_is_asked_and_forgives_what_is_taken_back(bench: Bench) -> None:
    engine = bench.engine
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as other:
        sock.setblocking(False)
        listener = engine.listen(sock, lambda *_: None, raiser(AssertionError()))  # type: ignore[arg-type]
        engine.watch(other.fileno(), EVENT_IN, "guest")
        timer = engine.after(100.0, raiser(AssertionError()))
        engine.close()
        refused: list[Callable[[], object]] = [
            lambda: engine.turn(0),
            lambda: engine.add(HookEndpoint(engine.agenda, 0)),
            lambda: engine.listen(sock, lambda *_: None, raiser(AssertionError())),  # type: ignore[arg-type]
            lambda: engine.watch(other.fileno(), EVENT_IN, "guest"),
            lambda: engine.rewatch(other.fileno(), EVENT_OUT, "guest"),
            lambda: engine.after(0.0, lambda: None),
        ]
        for ask in refused:
            with pytest.raises(WatcherClosed):
                ask()
        engine.unwatch(other.fileno())
        engine.unlisten(listener)
        listener.pause()
        listener.resume()
        engine.cancel(timer)
        engine.wake()
        assert sock.fileno() >= 0


def test_wake_after_close_writes_to_nobody() -> None:
    """The number of the closed eventfd is somebody else's by then: it used to find eight strange bytes."""
    before = open_fds()
    engine = Engine()
    inside = {int(fd) for fd in open_fds() - before}
    engine.close()
    reader, writer = os.pipe()
    heirs = [os.dup2(writer, fd) for fd in inside - {reader, writer}]
    try:
        engine.wake()
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 8)
    finally:
        for fd in {reader, writer, *heirs}:
            os.close(fd)


@pytest.mark.parametrize("place", ["received", "sent", "timer", "deferred", "left over"])
def test_close_in_a_hook_ends_the_turn(bench: Bench, place: str) -> None:
    engine = bench.engine
    accepted: list[int] = []
    (first, first_peer), (second, second_peer) = bench.unix("first"), bench.unix("second")
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_connection(sock.getsockname()):
        sock.setblocking(False)
        wait_for(sock, select.POLLIN)
        if place == "timer":
            engine.listen(sock, lambda fd, _: accepted.append(fd), raiser(AssertionError()))  # type: ignore[arg-type]
        for endpoint, peer in ((first, first_peer), (second, second_peer)):
            endpoint.then["received"] = engine.close
            endpoint.then["sent"] = engine.close
            if place == "sent":
                fill(endpoint)
                peer.recv(endpoint.sent_bytes, socket.MSG_WAITALL)
            endpoint.post_read()
            peer.sendall(b"x")
        match place:
            case "timer":
                engine.after(0.0, engine.close)
            case "deferred":
                engine.defer(engine.close)
                engine.defer(bench.journal.append, ("deferred", "ran", None))
            case "left over":
                first.then["received"] = raiser(KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt):
                    engine.turn(0)
        engine.turn(0)
    assert engine.closed
    assert accepted == []
    assert sum(bench.counts(Op.READ).values()) == 2
    assert len(bench.journal) == {"timer": 0, "left over": 2}.get(place, 1)


def test_close_in_a_hook_of_an_accept_accepts_no_more(bench: Bench) -> None:
    accepted: list[int] = []

    def on_accept(fd: int, _address: object) -> None:
        accepted.append(fd)
        bench.engine.close()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        peers = [bench.keep(socket.create_connection(sock.getsockname())) for _ in range(3)]
        wait_for(sock, select.POLLIN)
        bench.engine.listen(sock, on_accept, raiser(AssertionError()))  # type: ignore[arg-type]
        bench.engine.turn(0)
    assert len(accepted) == 1
    assert len(peers) == 3
    os.close(accepted[0])
