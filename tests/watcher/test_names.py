"""The names of the contract: where they come from, how they are called, and what is to be seen of what they return."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import math
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import shardnet
import shardnet.errors
import shardnet.watcher
from shardnet.watcher import (
    Channel,
    Completion,
    ConnectionFreed,
    DeadlineExceeded,
    Op,
    Statistics,
    Watcher,
    WatcherClosed,
)
from tests.engine.kit import PATIENCE_S, open_fds, receive_all, wait_unread
from tests.watcher.elsewhere import in_thread
from tests.watcher.kit import ENGINES, Bench

ERRORS = [
    "ConnectionBroken",
    "ConnectionFreed",
    "DeadlineExceeded",
    "InternalError",
    "PeerError",
    "ShardnetError",
    "SystemFault",
    "UsageError",
    "WatcherClosed",
]


@pytest.mark.parametrize("name", ["Watcher", "Op", "Completion", "Channel", "Statistics", *ERRORS])
def test_name_is_the_same_wherever_it_is_imported_from(name: str) -> None:
    home = importlib.import_module("shardnet.watcher")
    assert getattr(shardnet, name) is getattr(home, name)
    assert name in shardnet.__all__
    assert name in home.__all__


@pytest.mark.parametrize("name", ERRORS)
def test_error_has_its_home_in_the_errors(name: str) -> None:
    assert getattr(shardnet.watcher, name) is getattr(shardnet.errors, name)
    assert name in shardnet.errors.__all__


def test_every_error_of_the_watchers_is_exported_by_it() -> None:
    exported = {getattr(shardnet.watcher, name) for name in shardnet.watcher.__all__}
    raised = {ConnectionFreed, WatcherClosed, DeadlineExceeded, shardnet.errors.ConnectionBroken}
    assert {base for error in raised for base in error.__mro__ if base.__module__ == "shardnet.errors"} <= exported


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", "swap_size=65536, *, poller=None"),
        ("read", "conn, buffer=None, *, ctx=None, timeout=None"),
        ("read_full", "conn, buffer, *, ctx=None, timeout=None"),
        ("write", "conn, data, *, ctx=None, timeout=None"),
        ("accept", "listener, *, ctx=None, timeout=None"),
        ("connect", "address, *, ctx=None, timeout=None"),
        ("sleep", "seconds, *, ctx=None"),
        ("free", "conn"),
        ("detach", "conn"),
        ("wait_io", "timeout=None"),
        ("wake", ""),
        ("set_affinity", "cpu"),
        ("statistics", ""),
        ("close", ""),
    ],
)
def test_method_is_called_as_the_contract_says(name: str, parameters: str) -> None:
    signature = inspect.signature(getattr(Watcher, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare[1:])) == f"({parameters})"
    assert inspect.getdoc(getattr(Watcher, name))


def test_public_face_of_the_watcher_is_what_the_contract_names() -> None:
    assert {name for name in vars(Watcher) if not name.startswith("_")} == {
        "read",
        "read_full",
        "write",
        "accept",
        "connect",
        "sleep",
        "free",
        "detach",
        "wait_io",
        "wake",
        "set_affinity",
        "statistics",
        "close",
        "closed",
    }


# Making one.


@pytest.mark.parametrize("swap_size", [0, -1, -(1 << 70)])
def test_watcher_refuses_a_swap_buffer_without_room(engine: str, swap_size: int) -> None:
    before = open_fds()
    with pytest.raises(ValueError, match="swap_size"):
        Watcher(swap_size, **ENGINES[engine])
    assert open_fds() <= before


def test_watcher_takes_the_smallest_swap_buffer(engine: str) -> None:
    with Bench(engine, swap_size=1) as bench:
        assert bench.watcher.statistics().swap_capacity_bytes == 1
        ours, theirs = bench.tcp()
        theirs.sendall(b"ab")
        wait_unread(ours.fileno(), 2)
        bench.watcher.read(ours)
        assert bench.one().data == b"a"


def test_watcher_that_cannot_be_made_leaves_no_descriptor(engine: str) -> None:
    """No machine has that much memory."""
    before = open_fds()
    with pytest.raises(MemoryError):
        Watcher(1 << 62, **ENGINES[engine])
    assert open_fds() <= before


def test_watcher_takes_the_best_poller_without_a_name() -> None:
    with Watcher() as watcher:
        assert watcher.statistics().swap_capacity_bytes == 65536


@pytest.mark.parametrize("poller", ["", "EPOLL", "io_uring", "select"])
def test_watcher_refuses_a_poller_that_it_does_not_know(poller: str) -> None:
    before = open_fds()
    with pytest.raises(ValueError, match=r"poller .*'epoll' and 'poll'"):
        Watcher(poller=poller)
    assert open_fds() <= before


def test_poller_is_taken_by_keyword_alone() -> None:
    with pytest.raises(TypeError):
        Watcher(65536, "epoll")  # type: ignore[call-arg]


# As a context manager.


def test_watcher_is_closed_at_the_end_of_a_block(engine: str) -> None:
    made = Watcher(**ENGINES[engine])
    with made as watcher:
        assert watcher is made
        assert watcher.closed is False
        watcher.sleep(60)
    assert watcher.closed is True
    assert [type(completion.error) for completion in watcher.wait_io()] == [WatcherClosed]


def test_watcher_is_closed_by_an_exception_which_passes(engine: str) -> None:
    with pytest.raises(ZeroDivisionError), Watcher(**ENGINES[engine]) as watcher:
        raise ZeroDivisionError
    assert watcher.closed


def test_watcher_may_be_closed_inside_its_block(engine: str) -> None:
    with Watcher(**ENGINES[engine]) as watcher:
        watcher.close()
        assert watcher.closed


# Waiting.


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
def test_wait_io_returns_an_empty_list_when_the_time_is_over(bench: Bench, timeout: float) -> None:
    assert bench.watcher.wait_io(timeout) == []
    ours, _ = bench.tcp()
    bench.watcher.read(ours)
    assert bench.watcher.wait_io(timeout) == []


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 1e9, 60])
def test_wait_io_returns_when_there_is_something(bench: Bench, timeout: float | None) -> None:
    bench.watcher.sleep(0.001, ctx="over")
    completions = bench.watcher.wait_io(timeout)
    assert isinstance(completions, list)
    assert [completion.ctx for completion in completions] == ["over"]


def test_wait_io_returns_what_is_there_without_waiting(bench: Bench) -> None:
    bench.watcher.sleep(0)
    bench.watcher.sleep(0)
    assert len(bench.watcher.wait_io(0)) == 2


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan])
def test_wait_io_refuses_a_time_that_cannot_be(bench: Bench, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        bench.watcher.wait_io(timeout)


def test_wait_io_that_refuses_takes_no_swap_buffer_back(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"mine")
    bench.watcher.read(ours)
    (completion,) = bench.watcher.wait_io()
    with pytest.raises(ValueError, match="timeout"):
        bench.watcher.wait_io(-1)
    assert bytes(completion.data) == b"mine"


# Completions.


def test_op_has_five_members() -> None:
    assert [op.name for op in Op] == ["READ", "WRITE", "ACCEPT", "CONNECT", "TIMER"]
    assert issubclass(Op, enum.Enum)


def face(completion: Completion) -> tuple[Any, ...]:
    assert isinstance(completion, Completion)
    assert isinstance(completion.data, memoryview)
    return (
        completion.op,
        completion.ctx,
        completion.conn,
        completion.is_swap_buffer,
        completion.size,
        bytes(completion.data),
        completion.error,
    )


def test_completion_of_a_read_into_the_swap_buffer(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"hello")
    bench.watcher.read(ours, ctx="c")
    (completion,) = bench.watcher.wait_io()
    assert face(completion) == (Op.READ, "c", ours, True, 5, b"hello", None)
    assert bytes(completion.buffer) == b"hello"


@pytest.mark.parametrize("method", ["read", "read_full"])
def test_completion_of_a_read_into_a_buffer(bench: Bench, method: str) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(5)
    theirs.sendall(b"hello")
    wait_unread(ours.fileno(), 5)
    getattr(bench.watcher, method)(ours, buffer, ctx="c")
    (completion,) = bench.watcher.wait_io()
    assert face(completion) == (Op.READ, "c", ours, False, 5, b"hello", None)
    assert completion.buffer is buffer


def test_data_of_a_completion_is_the_part_of_the_buffer_that_was_filled(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(b"........")
    theirs.sendall(b"abc")
    bench.watcher.read(ours, buffer)
    (completion,) = bench.watcher.wait_io()
    assert bytes(completion.data) == bytes(buffer[: completion.size]) == b"abc"
    completion.data[:1] = b"X"  # No copy.
    assert buffer == b"Xbc....."


def test_completion_of_a_write(bench: Bench) -> None:
    ours, _ = bench.tcp()
    data = b"hello"
    bench.watcher.write(ours, data, ctx="c")
    (completion,) = bench.watcher.wait_io()
    assert face(completion) == (Op.WRITE, "c", ours, False, 5, b"hello", None)
    assert completion.buffer is data


def test_completions_of_accept_and_connect(bench: Bench) -> None:
    listener = bench.listener()
    bench.watcher.accept(listener, ctx="accept")
    bench.watcher.connect(listener.getsockname(), ctx="connect")
    conns = {}
    for answer in bench.collect(2):
        conn = answer.conn
        assert isinstance(conn, Channel)
        assert face(answer.completion) == (answer.op, answer.op.name.lower(), conn, False, 0, b"", None)
        assert answer.completion.buffer is None
        conns[answer.ctx] = conn
    accepted, connected = conns["accept"], conns["connect"]
    assert (accepted.peer, accepted.local) == (connected.local, connected.peer)
    bench.watcher.free(accepted)
    bench.watcher.free(connected)


def test_completions_of_accept_and_connect_that_failed_have_no_connection(bench: Bench) -> None:
    nobody = bench.keep(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    bench.watcher.connect(nobody.getsockname(), ctx="c")
    (completion,) = bench.watcher.wait_io(PATIENCE_S)
    assert face(completion) == (Op.CONNECT, "c", None, False, 0, b"", completion.error)
    assert isinstance(completion.error, ConnectionRefusedError)
    bench.watcher.accept(bench.listener(), ctx="a", timeout=0)
    (completion,) = bench.watcher.wait_io(PATIENCE_S)
    assert face(completion) == (Op.ACCEPT, "a", None, False, 0, b"", completion.error)
    assert isinstance(completion.error, DeadlineExceeded)


def test_completion_of_a_sleep(bench: Bench) -> None:
    bench.watcher.sleep(0, ctx="c")
    (completion,) = bench.watcher.wait_io()
    assert face(completion) == (Op.TIMER, "c", None, False, 0, b"", None)
    assert completion.buffer is None


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_sleep_refuses_a_time_that_cannot_be(bench: Bench, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        bench.watcher.sleep(seconds)
    assert bench.watcher.statistics().submitted == 0


def test_completion_says_what_it_is(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"hello")
    theirs.close()
    bench.watcher.read(ours)
    (completion,) = bench.watcher.wait_io()
    assert repr(completion) == f"<Completion READ of {ours!r}: 5 bytes>"
    bench.watcher.read(ours)
    (ended,) = bench.watcher.wait_io()
    assert repr(ended) == f"<Completion READ of {ours!r}: 0 bytes {ended.error!r}>"
    assert "5 bytes" in repr(completion)  # Also when its buffer is gone.


def test_data_that_its_holder_releases_is_released_for_him_alone(bench: Bench) -> None:
    """`with completion.data as data` is good manners, and must not take memory from the watcher or from others."""
    ours, theirs = bench.tcp()
    for data in (b"first", b"second", b""):
        if data:
            theirs.sendall(data)
        else:
            theirs.close()
        bench.watcher.read(ours)
        (completion,) = bench.watcher.wait_io()
        with completion.data as view:
            assert bytes(view) == data
    bench.watcher.sleep(0)
    (timer,) = bench.watcher.wait_io()
    with timer.data as view:
        assert view.nbytes == 0
    for _ in range(2):
        bench.watcher.read(ours)
        (completion,) = bench.watcher.wait_io()
        assert (bytes(completion.data), bytes(completion.buffer)) == (b"", b"")
    assert bench.watcher.statistics().swap_in_use_bytes == 0


# Channels.


def test_channel_has_a_face(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    assert channel.peer == theirs.getsockname()
    assert channel.local == theirs.getpeername()
    assert os.fstat(channel.fileno())
    assert repr(channel) == f"<Channel {channel.fileno()} of {channel.peer!r}>"
    assert {name for name in dir(channel) if not name.startswith("_")} == {"end_output", "fileno", "local", "peer"}
    bench.watcher.free(channel)
    assert channel.fileno() == -1
    assert channel.peer == theirs.getsockname()
    assert repr(channel) == f"<Channel -1 of {channel.peer!r}>"
    for ask in (channel.end_output, lambda: channel.local):
        with pytest.raises(ConnectionFreed):
            ask()


def test_channel_ends_its_output_and_reads_on(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    bench.watcher.write(channel, b"last")
    assert bench.one().error is None
    channel.end_output()
    assert receive_all(theirs) == b"last"
    theirs.sendall(b"answer")
    bench.watcher.read(channel)
    assert bench.one().data == b"answer"
    bench.watcher.write(channel, b"x")
    assert isinstance(bench.one().error, BrokenPipeError)
    bench.watcher.free(channel)


def test_channel_is_detached_as_a_socket(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    number = channel.fileno()
    sock = bench.keep(bench.watcher.detach(channel))
    assert isinstance(sock, socket.socket)
    assert sock.fileno() == number
    assert sock.getpeername() == theirs.getsockname()
    assert channel.fileno() == -1
    sock.sendall(b"x")
    assert theirs.recv(1) == b"x"


# Statistics.


def test_statistics_are_plain_and_frozen(bench: Bench) -> None:
    said = bench.watcher.statistics()
    assert isinstance(said, Statistics)
    assert {type(value) for value in dataclasses.asdict(said).values()} == {int}
    field = dataclasses.fields(said)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(said, field, 1)
    assert said.submitted == said.completed == said.pending == said.connections == 0


def check(said: Statistics) -> Statistics:
    """What holds always."""
    assert said.submitted == said.completed + said.pending
    outcomes = (said.completed_ok, said.completed_eof, said.completed_cancelled, said.completed_deadline)
    assert said.completed == sum(outcomes) + said.completed_reset + said.completed_error
    assert min(dataclasses.asdict(said).values()) >= 0
    assert said.waiting <= said.completed
    assert said.connections_pending <= said.connections
    assert said.swap_in_use_bytes <= said.swap_peak_bytes
    return said


def test_statistics_add_up_at_every_moment(bench: Bench) -> None:
    watcher = bench.watcher
    ours, theirs = bench.tcp()
    silent, _ = bench.tcp()
    steps: list[Callable[[], object]] = [
        lambda: watcher.read(ours),
        lambda: watcher.read(silent, timeout=0),
        lambda: watcher.read(silent, timeout=60),
        lambda: watcher.write(ours, b"x" * 7),
        lambda: watcher.sleep(60),
        lambda: watcher.accept(bench.listener(), timeout=0),
        lambda: theirs.sendall(b"y" * 9),
        lambda: watcher.wait_io(0),
        lambda: theirs.shutdown(socket.SHUT_WR),
        lambda: watcher.read(ours),
        lambda: bench.until(lambda: watcher.statistics().completed_eof == 1, []),
        lambda: watcher.free(silent),
        lambda: watcher.wait_io(0),
    ]
    for step in steps:
        step()
        check(watcher.statistics())
    said = check(watcher.statistics())
    assert (said.submitted, said.pending, said.waiting, said.deadlines) == (7, 1, 0, 1)
    assert (said.completed_ok, said.completed_eof, said.completed_cancelled, said.completed_deadline) == (2, 1, 1, 2)
    assert (said.received_bytes, said.sent_bytes) == (9, 7)
    assert (said.connections, said.connections_pending) == (1, 0)
    watcher.close()
    said = check(watcher.statistics())
    assert (said.pending, said.connections, said.deadlines, said.waiting) == (0, 0, 0, 1)


def test_statistics_of_the_swap_buffer(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    theirs.sendall(b"hello")
    bench.watcher.read(ours)
    (completion,) = bench.watcher.wait_io()
    said = check(bench.watcher.statistics())
    assert (said.swap_in_use_bytes, said.swap_peak_bytes, said.swap_capacity_bytes) == (5, 5, 65536)
    assert bytes(completion.data) == b"hello"
    bench.none()
    said = check(bench.watcher.statistics())
    assert (said.swap_in_use_bytes, said.swap_peak_bytes, said.swap_exhausted, said.swap_abandoned) == (0, 5, 0, 0)


# Affinity.


@pytest.mark.parametrize("cpu", [-1, os.cpu_count(), (os.cpu_count() or 1) + 100, 1 << 20, 1 << 70, -(1 << 70)])
def test_set_affinity_refuses_a_cpu_that_does_not_exist(bench: Bench, cpu: int) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match="set_affinity"):
        bench.watcher.set_affinity(cpu)
    assert os.sched_getaffinity(0) == before


def test_set_affinity_pins_the_calling_thread_and_no_other(engine: str) -> None:
    allowed = os.sched_getaffinity(0)

    def pin(cpu: int) -> set[int]:
        with Watcher(**ENGINES[engine]) as watcher:
            watcher.set_affinity(cpu)
            return os.sched_getaffinity(0)

    for cpu in (min(allowed), max(allowed)):
        assert in_thread(partial(pin, cpu)) == {cpu}
        assert os.sched_getaffinity(0) == allowed
