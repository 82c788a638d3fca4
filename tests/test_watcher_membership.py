"""What belongs to a watcher and how it leaves: adding, guests, waking, closing."""

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
from shardnet.watcher import EVENT_IN, EVENT_OUT, Channel, Op, Outcome, Watcher
from tests.watcher_kit import Bench, fill, open_fds, raiser, wait_for


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
    ready, bench.watcher.guests_ready = bench.watcher.guests_ready, []
    return ready


# Channels.


def test_channels_are_those_added_and_not_freed(bench: Bench, pipe: tuple[int, int]) -> None:
    channels = [bench.unix(f"{number}")[0] for number in range(100)]
    bench.watcher.watch(pipe[0], EVENT_IN, "guest")
    assert set(bench.watcher.channels()) == set(channels)
    for channel in channels[::2]:
        bench.watcher.free(channel)
    assert set(bench.watcher.channels()) == set(channels[1::2])


def test_channel_added_twice_is_refused_and_goes_on(bench: Bench) -> None:
    channel, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.watcher.add(channel)
    channel.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)


def test_second_channel_on_a_descriptor_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    """The newcomer used to take the place in the table although the kernel refused it: the first went deaf."""
    channel, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.watcher.add(Channel(bench.watcher.agenda, channel.fd))
    channel.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)
    assert bench.watcher.channels() == [channel]


def test_channel_that_was_never_added_is_closed_by_free(bench: Bench) -> None:
    """Beyond the table's end it used to raise IndexError, the descriptor leaked."""
    left, right = socket.socketpair()
    bench.keep(right)
    number = os.dup2(left.fileno(), 3000)
    left.close()
    channel = Channel(bench.watcher.agenda, number)
    bench.watcher.free(channel)
    with pytest.raises(OSError):
        os.fstat(number)
    assert channel.fd == -1


def test_refused_descriptor_leaves_no_trace(bench: Bench) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        bench.watcher.watch(file.fileno(), EVENT_IN, "a file is always ready")
    left, right = socket.socketpair()
    number = left.fileno()
    for sock in (left, right):
        sock.close()
    channel = Channel(bench.watcher.agenda, number)
    with pytest.raises(OSError):
        bench.watcher.add(channel)
    assert bench.watcher.channels() == []


# Guests.


def test_guest_is_reported_as_long_as_it_is_ready(bench: Bench, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    token = object()
    bench.watcher.watch(reader, EVENT_IN, token)
    bench.settle()
    assert take_guests(bench) == []
    os.write(writer, b"x")
    for _ in range(3):
        bench.watcher.turn(None)
        assert take_guests(bench) == [(token, EVENT_IN)]
    os.read(reader, 1)
    bench.settle()
    assert take_guests(bench) == []


def test_guest_is_watched_for_what_was_asked_last(bench: Bench) -> None:
    left, right = socket.socketpair()
    bench.keep(left)
    bench.keep(right)
    bench.watcher.watch(left.fileno(), EVENT_IN, "first")
    bench.settle()
    assert take_guests(bench) == []
    bench.watcher.rewatch(left.fileno(), EVENT_IN | EVENT_OUT, "second")
    bench.watcher.turn(None)
    assert take_guests(bench) == [("second", EVENT_OUT)]
    right.send(b"x")
    bench.watcher.turn(None)
    assert take_guests(bench) == [("second", EVENT_IN | EVENT_OUT)]
    bench.watcher.unwatch(left.fileno())
    bench.settle()
    assert take_guests(bench) == []


def test_guest_that_hangs_up_is_reported_whatever_was_asked(bench: Bench) -> None:
    reader, writer = os.pipe()
    bench.watcher.watch(writer, EVENT_OUT, "writer")
    os.close(reader)
    bench.watcher.turn(None)
    [(token, events)] = take_guests(bench)
    assert token == "writer"
    assert events & select.EPOLLERR
    bench.watcher.unwatch(writer)
    os.close(writer)


def test_unwatch_is_right_for_a_descriptor_that_was_closed(bench: Bench) -> None:
    reader, writer = os.pipe()
    bench.watcher.watch(reader, EVENT_IN, "reader")
    os.close(reader)
    bench.watcher.unwatch(reader)
    bench.watcher.unwatch(reader)
    bench.watcher.unwatch(10_000)
    bench.watcher.unwatch(-1)
    os.close(writer)


def test_unwatch_of_a_number_that_is_a_channel_by_now_leaves_the_channel_alone(bench: Bench) -> None:
    """A client library closes its socket and unregisters it later; meanwhile the number went to a new connection.

    That connection used to be thrown out of the epoll, and waited for ever.
    """
    channel, peer = bench.unix()
    reader, writer = os.pipe()
    number = reader
    bench.watcher.watch(number, EVENT_IN, "reader")
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
    bench.watcher.unwatch(number)
    with pytest.raises(FileNotFoundError):
        bench.watcher.rewatch(number, EVENT_OUT, "reader")
    heir.post_read()
    right.sendall(b"x")
    bench.until(lambda: bench.of("heir"))
    assert set(bench.watcher.channels()) == {channel, heir}
    peer.close()


def test_watch_of_a_channel_is_refused_and_the_channel_goes_on(bench: Bench) -> None:
    channel, peer = bench.unix()
    with pytest.raises(FileExistsError):
        bench.watcher.watch(channel.fd, EVENT_IN, "intruder")
    channel.post_read()
    peer.sendall(b"x")
    bench.until(lambda: bench.journal)
    assert take_guests(bench) == []


def test_hook_that_raises_loses_no_guest(bench: Bench, pipe: tuple[int, int]) -> None:
    channel, peer = bench.unix()
    channel.then["received"] = raiser(KeyboardInterrupt())
    channel.post_read()
    bench.watcher.watch(pipe[0], EVENT_IN, "guest")
    os.write(pipe[1], b"x")
    peer.sendall(b"x")
    with pytest.raises(KeyboardInterrupt):
        bench.until(lambda: False)
    assert ("guest", EVENT_IN) in take_guests(bench)


# Waking.


def test_wake_ends_a_turn_that_waits_for_ever_and_only_one(bench: Bench) -> None:
    for _ in range(1000):
        bench.watcher.wake()
    bench.watcher.turn(None)
    fired: list[int] = []
    bench.watcher.after(0.001, lambda: fired.append(1))
    turns = 0
    while not fired:
        bench.watcher.turn(None)
        turns += 1
    assert turns <= 2
    assert bench.watcher.guests_ready == []


def test_wake_from_another_thread(bench: Bench) -> None:
    for _ in range(20):
        thread = threading.Thread(target=bench.watcher.wake)
        thread.start()
        bench.watcher.turn(None)
        thread.join()


def test_wake_from_a_signal_handler(bench: Bench) -> None:
    """In the main thread, wherever it is at that moment: most often inside the wait."""
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, lambda *_: bench.watcher.wake())
    try:
        for _ in range(20):
            thread = threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1))
            thread.start()
            bench.watcher.turn(None)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_turn_does_not_wait_when_told_not_to(bench: Bench) -> None:
    for timeout_s in (0.0, -1.0, float("-inf"), 0.000001):
        bench.watcher.turn(timeout_s)


# Closing.


def test_close_is_idempotent_and_leaks_no_descriptor() -> None:
    before = open_fds()
    watcher = Watcher()
    for _ in range(10):
        left, right = socket.socketpair()
        left.setblocking(False)
        watcher.add(Channel(watcher.agenda, left.detach(), unix=True))
        right.close()
    assert not watcher.closed
    watcher.close()
    watcher.close()
    assert watcher.closed
    assert open_fds() <= before


def test_close_cancels_everything_that_was_asked_once(bench: Bench) -> None:
    reading, _ = bench.unix("reading")
    writing, _ = bench.unix("writing")
    reading.post_read()
    fill(writing)
    written = bench.count(Op.WRITE, Outcome.OK)
    timers = [bench.watcher.after(100.0, raiser(AssertionError("closed"))) for _ in range(3)]
    bench.watcher.cancel(timers[0])
    bench.watcher.close()
    bench.watcher.cancel(timers[1])
    bench.watcher.free(reading)
    assert bench.journal == []
    assert bench.counts(Op.READ) == {Outcome.CANCELLED: 1}
    assert bench.counts(Op.WRITE) == {Outcome.OK: written, Outcome.CANCELLED: 1}
    assert bench.counts(Op.TIMER) == {Outcome.CANCELLED: 3}
    assert bench.watcher.channels() == []


def test_closed_watcher_refuses_what_is_asked_and_forgives_what_is_taken_back(bench: Bench) -> None:
    watcher = bench.watcher
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as other:
        sock.setblocking(False)
        listener = watcher.listen(sock, lambda *_: None, raiser(AssertionError()))  # type: ignore[arg-type]
        watcher.watch(other.fileno(), EVENT_IN, "guest")
        timer = watcher.after(100.0, raiser(AssertionError()))
        watcher.close()
        refused: list[Callable[[], object]] = [
            lambda: watcher.turn(0),
            lambda: watcher.add(Channel(watcher.agenda, 0)),
            lambda: watcher.listen(sock, lambda *_: None, raiser(AssertionError())),  # type: ignore[arg-type]
            lambda: watcher.watch(other.fileno(), EVENT_IN, "guest"),
            lambda: watcher.rewatch(other.fileno(), EVENT_OUT, "guest"),
            lambda: watcher.after(0.0, lambda: None),
        ]
        for ask in refused:
            with pytest.raises(WatcherClosed):
                ask()
        watcher.unwatch(other.fileno())
        watcher.unlisten(listener)
        listener.pause()
        listener.resume()
        watcher.cancel(timer)
        watcher.wake()
        assert sock.fileno() >= 0


def test_wake_after_close_writes_to_nobody() -> None:
    """The number of the closed eventfd is somebody else's by then: it used to find eight strange bytes."""
    before = open_fds()
    watcher = Watcher()
    inside = {int(fd) for fd in open_fds() - before}
    watcher.close()
    reader, writer = os.pipe()
    heirs = [os.dup2(writer, fd) for fd in inside - {reader, writer}]
    try:
        watcher.wake()
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 8)
    finally:
        for fd in {reader, writer, *heirs}:
            os.close(fd)


@pytest.mark.parametrize("place", ["received", "sent", "timer", "deferred", "left over"])
def test_close_in_a_hook_ends_the_turn(bench: Bench, place: str) -> None:
    watcher = bench.watcher
    accepted: list[int] = []
    (first, first_peer), (second, second_peer) = bench.unix("first"), bench.unix("second")
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_connection(sock.getsockname()):
        sock.setblocking(False)
        wait_for(sock, select.POLLIN)
        if place == "timer":
            watcher.listen(sock, lambda fd, _: accepted.append(fd), raiser(AssertionError()))  # type: ignore[arg-type]
        for channel, peer in ((first, first_peer), (second, second_peer)):
            channel.then["received"] = watcher.close
            channel.then["sent"] = watcher.close
            if place == "sent":
                fill(channel)
                peer.recv(channel.sent_bytes, socket.MSG_WAITALL)
            channel.post_read()
            peer.sendall(b"x")
        match place:
            case "timer":
                watcher.after(0.0, watcher.close)
            case "deferred":
                watcher.defer(watcher.close)
                watcher.defer(bench.journal.append, ("deferred", "ran", None))
            case "left over":
                first.then["received"] = raiser(KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt):
                    watcher.turn(0)
        watcher.turn(0)
    assert watcher.closed
    assert accepted == []
    assert sum(bench.counts(Op.READ).values()) == 2
    assert len(bench.journal) == {"timer": 0, "left over": 2}.get(place, 1)


def test_close_in_a_hook_of_an_accept_accepts_no_more(bench: Bench) -> None:
    accepted: list[int] = []

    def on_accept(fd: int, _address: object) -> None:
        accepted.append(fd)
        bench.watcher.close()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        peers = [bench.keep(socket.create_connection(sock.getsockname())) for _ in range(3)]
        wait_for(sock, select.POLLIN)
        bench.watcher.listen(sock, on_accept, raiser(AssertionError()))  # type: ignore[arg-type]
        bench.watcher.turn(0)
    assert len(accepted) == 1
    assert len(peers) == 3
    os.close(accepted[0])
