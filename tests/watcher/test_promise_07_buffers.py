"""Whose a buffer is, and when: the caller's own, and the swap buffer."""

from __future__ import annotations

import ctypes
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardnet.watcher import Completion, ConnectionFreed, DeadlineExceeded, Op, WatcherClosed
from tests.engine.kit import PATIENCE_S, receive_exactly, reset, wait_unread
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import TIMEOUT_S, full, stop_time

MEGABYTE = 1 << 20

# The caller's own.

Pend = Callable[[Bench, bytearray, float | None], tuple[Any, Any]]


def _read(bench: Bench, buffer: bytearray, timeout: float | None) -> tuple[Any, Any]:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours, buffer, timeout=timeout)
    return ours, theirs


def _read_full(bench: Bench, buffer: bytearray, timeout: float | None) -> tuple[Any, Any]:
    ours, theirs = bench.tcp()
    bench.watcher.read_full(ours, buffer, timeout=timeout)
    return ours, theirs


def _read_full_half_done(bench: Bench, buffer: bytearray, timeout: float | None) -> tuple[Any, Any]:
    ours, theirs = bench.tcp()
    theirs.sendall(b"x")
    wait_unread(ours.fileno(), 1)
    bench.watcher.read_full(ours, buffer, timeout=timeout)
    return ours, theirs


def _write(bench: Bench, buffer: bytearray, timeout: float | None) -> tuple[Any, Any]:
    ours, theirs, _ = full(bench)
    bench.watcher.write(ours, buffer, timeout=timeout)
    return ours, theirs


def _write_half_done(bench: Bench, buffer: bytearray, timeout: float | None) -> tuple[Any, Any]:
    ours, theirs = bench.tcp(4096)
    buffer.extend(bytes(4 * MEGABYTE))
    bench.watcher.write(ours, buffer, timeout=timeout)
    return ours, theirs


PENDING: dict[str, Pend] = {
    "read": _read,
    "read_full": _read_full,
    "read_full_half_done": _read_full_half_done,
    "write": _write,
    "write_half_done": _write_half_done,
}


def check_held(buffer: bytearray) -> None:
    for resize in (buffer.clear, lambda: buffer.append(0), lambda: buffer.extend(b"xy"), buffer.pop):
        with pytest.raises(BufferError):
            resize()


@pytest.mark.parametrize("kind", PENDING)
@pytest.mark.parametrize("end", ["expire", "free", "close", "peer_resets"])
def test_buffer_cannot_be_resized_while_the_operation_is_pending_and_can_be_after(
    bench: Bench, kind: str, end: str
) -> None:
    clock = stop_time(bench)
    buffer = bytearray(4)
    ours, theirs = PENDING[kind](bench, buffer, TIMEOUT_S)
    bench.none()
    check_held(buffer)
    error: type[BaseException] = OSError
    match end:
        case "expire":
            clock.advance(TIMEOUT_S)
            error = DeadlineExceeded
        case "free":
            bench.watcher.free(ours)
            error = ConnectionFreed
        case "close":
            bench.watcher.close()
            error = WatcherClosed
        case _:
            reset(theirs)
    answer = bench.one()
    assert isinstance(answer.error, error)
    # The completion is kept, and holds nothing on.
    buffer.append(0)
    buffer.clear()


@pytest.mark.parametrize("kind", ["read", "read_full", "read_full_half_done"])
def test_buffer_can_be_resized_when_the_read_has_succeeded(bench: Bench, kind: str) -> None:
    buffer = bytearray(4)
    _, theirs = PENDING[kind](bench, buffer, None)
    check_held(buffer)
    theirs.sendall(b"four")
    answer = bench.one()
    assert answer.error is None
    assert answer.completion.buffer is buffer
    buffer.extend(b" more")


def test_buffer_cannot_be_resized_while_a_read_into_a_part_of_it_is_pending(bench: Bench) -> None:
    ours, theirs = bench.unix()
    buffer = bytearray(4)
    bench.watcher.read(ours, memoryview(buffer)[1:3])
    check_held(buffer)
    theirs.sendall(b"xy")
    assert bench.one().data == b"xy"  # With the completion, the caller's own view of it goes.
    assert buffer == b"\0xy\0"
    buffer.clear()


def test_buffer_can_be_resized_when_the_write_has_succeeded(bench: Bench) -> None:
    buffer = bytearray(b"four")
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, buffer)
    check_held(buffer)
    receive_exactly(theirs, size)
    answer = bench.one()
    assert answer.completion.buffer is buffer
    buffer.clear()
    assert receive_exactly(theirs, 4) == b"four"


def test_buffer_can_be_resized_after_a_call_that_raises(bench: Bench) -> None:
    ours, _ = bench.unix()
    buffer = bytearray(4)
    with pytest.raises(ValueError, match="timeout"):
        bench.watcher.read(ours, buffer, timeout=-1)
    with pytest.raises(TypeError):
        bench.watcher.write(None, buffer)  # type: ignore[arg-type]
    buffer.append(0)


def test_buffer_is_not_let_go_before_its_own_operation_is_complete(bench: Bench) -> None:
    ours, theirs = bench.unix()
    first, second = bytearray(2), bytearray(2)
    bench.watcher.read_full(ours, first)
    bench.watcher.read_full(ours, second)
    theirs.sendall(b"abc")
    bench.one()
    first.clear()
    check_held(second)
    theirs.sendall(b"d")
    bench.one()
    second.clear()


def test_buffer_is_kept_alive_though_the_caller_drops_it(bench: Bench) -> None:
    ours, theirs = bench.unix()
    bench.watcher.read_full(ours, bytearray(4))
    gc.collect()
    theirs.sendall(b"four")
    assert bench.one().completion.buffer == b"four"


def test_buffer_is_let_go_with_its_completion(bench: Bench) -> None:
    class Kept(bytearray):
        pass

    ours, theirs = bench.unix()
    buffer = Kept(4)
    gone = weakref.ref(buffer)
    bench.watcher.read(ours, buffer)
    theirs.sendall(b"four")
    bench.one()
    del buffer
    gc.collect()
    assert gone() is None


def test_view_may_be_released_by_the_caller_while_the_operation_is_pending(bench: Bench) -> None:
    ours, theirs = bench.unix()
    memory = bytearray(4)
    with memoryview(memory) as view:
        bench.watcher.read_full(ours, view)
    theirs.sendall(b"four")
    completions = bench.watcher.wait_io(PATIENCE_S)
    assert [(completion.size, completion.error) for completion in completions] == [(4, None)]
    assert memory == b"four"


# The swap buffer.


def receive(bench: Bench, ours: Any, theirs: Any, data: bytes) -> Completion:
    """A completion of a read into the swap buffer; `wait_io` is called no more often than it takes."""
    theirs.sendall(data)
    bench.watcher.read(ours)
    (completion,) = bench.watcher.wait_io(PATIENCE_S)
    assert completion.error is None
    assert completion.is_swap_buffer
    return completion


def test_swap_buffer_is_the_callers_until_the_next_wait(bench: Bench) -> None:
    ours, theirs = bench.unix()
    completion = receive(bench, ours, theirs, b"mine")
    data = completion.data
    assert (bytes(data), data.nbytes, completion.size) == (b"mine", 4, 4)
    assert bytes(completion.buffer) == b"mine"
    # Whatever the caller does meanwhile.
    other, others = bench.unix()
    others.sendall(b"another's")
    bench.watcher.read(other)
    theirs.sendall(b"late")
    bench.watcher.read(ours)
    bench.watcher.write(ours, b"answer")
    bench.watcher.statistics()
    bench.watcher.free(ours)
    bench.watcher.close()
    assert bytes(data) == bytes(completion.data) == b"mine"
    assert {answer.data for answer in bench.collect(3)} == {b"another's", b"late", b"answer"}
    with pytest.raises(ValueError, match="next wait_io"):
        completion.data  # noqa: B018 - asking raises


@pytest.mark.parametrize("then", ["nothing", "another_read"])
def test_swap_buffer_raises_after_the_next_wait(bench: Bench, then: str) -> None:
    ours, theirs = bench.unix()
    completion = receive(bench, ours, theirs, b"mine")
    data, buffer = completion.data, completion.buffer
    if then == "nothing":
        assert bench.watcher.wait_io(0) == []
    else:
        receive(bench, ours, theirs, b"else")
    for _ in range(2):
        with pytest.raises(ValueError, match="next wait_io"):
            completion.buffer  # noqa: B018 - asking raises
        with pytest.raises(ValueError, match="next wait_io"):
            completion.data  # noqa: B018 - asking raises
    for view in (data, buffer):
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    # The rest can be asked for ever.
    assert (completion.op, completion.conn, completion.size, completion.error) == (Op.READ, ours, 4, None)
    assert completion.is_swap_buffer
    assert repr(completion)


def test_own_buffer_does_not_raise_after_the_next_wait(bench: Bench) -> None:
    ours, theirs = bench.unix()
    buffer = bytearray(10)
    bench.watcher.read(ours, buffer)
    theirs.sendall(b"mine")
    answer = bench.one()
    assert not answer.completion.is_swap_buffer
    bench.none()
    assert answer.completion.buffer is buffer
    assert bytes(answer.completion.data) == b"mine"


# Ways to keep a part of a swap buffer, and what it shows then.
KEEP: dict[str, Callable[[memoryview], Any]] = {
    "slice": lambda data: data[1:3],
    "slice_of_all": lambda data: data[:],
    "view_of_it": lambda data: memoryview(data)[1:3],
    "cast": lambda data: data.cast("c")[1:3],
    "cast_of_a_cast": lambda data: data[:8].cast("I").cast("B")[1:3],
    "ctypes": lambda data: (ctypes.c_char * 2).from_buffer(data, 1),
    "pickle_buffer": lambda data: pickle.PickleBuffer(data[1:3]),
    "pickle_buffer_of_all": lambda data: pickle.PickleBuffer(data),
    "view_of_ctypes": lambda data: memoryview((ctypes.c_char * 2).from_buffer(data, 1)),
    "within_a_cycle": lambda data: _cycle(data[1:3]),
}


class Cycle:
    """Holds a view, and itself."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.self = self


def _cycle(view: memoryview) -> Any:
    return Cycle(view)


def _shown(kept: Any) -> bytes:
    return bytes(kept.view) if isinstance(kept, Cycle) else bytes(kept)


@pytest.mark.parametrize("way", KEEP)
def test_slice_that_is_kept_never_changes(engine: str, way: str) -> None:
    with Bench(engine, swap_size=64) as bench:
        ours, theirs = bench.unix()
        completion = receive(bench, ours, theirs, b"abcdefgh" * 4)
        kept = KEEP[way](completion.data)
        shown = _shown(kept)
        assert b"bc" in shown
        assert bench.watcher.statistics().swap_abandoned == 0
        del completion
        for index in range(20):
            receive(bench, ours, theirs, bytes([index]) * 64)
            assert _shown(kept) == shown
        assert bench.watcher.statistics().swap_abandoned == 1
        # What was left to its holder is his for good: it changes under nobody, and costs nothing more.
        del kept
        gc.collect()
        for index in range(20):
            receive(bench, ours, theirs, bytes([index]) * 64)
        assert bench.watcher.statistics().swap_abandoned == 1


@pytest.mark.parametrize("way", KEEP)
def test_completion_raises_after_the_next_wait_also_when_a_part_is_kept(bench: Bench, way: str) -> None:
    ours, theirs = bench.unix()
    completion = receive(bench, ours, theirs, b"abcdefgh")
    kept = KEEP[way](completion.data)
    bench.none()
    with pytest.raises(ValueError, match="next wait_io"):
        completion.buffer  # noqa: B018 - asking raises
    assert b"bc" in _shown(kept)


def test_every_slice_of_many_that_are_kept_stays_as_it_was(engine: str) -> None:
    with Bench(engine, swap_size=256) as bench:
        ours, theirs = bench.unix()
        kept = []
        for index in range(100):
            completion = receive(bench, ours, theirs, bytes([index]) * 200)
            if index % 3 == 0:
                kept.append((index, completion.data[50:150]))
            del completion
        bench.none()
        for index, view in kept:
            assert bytes(view) == bytes([index]) * 100
        assert bench.watcher.statistics().swap_abandoned == len(kept)


def test_slice_is_kept_though_others_of_its_batch_are_not(bench: Bench) -> None:
    """One piece of memory holds the reads of many connections: one that is kept keeps it all."""
    pairs = [bench.unix() for _ in range(4)]
    for index, (ours, theirs) in enumerate(pairs):
        theirs.sendall(bytes([ord("a") + index]) * 100)
        bench.watcher.read(ours)
    kept = bench.watcher.wait_io(PATIENCE_S)[2].data[:]
    for _ in range(10):
        for ours, theirs in pairs:
            theirs.sendall(b"-" * 1000)
            bench.watcher.read(ours)
        assert len(bench.watcher.wait_io(PATIENCE_S)) == 4
    assert bytes(kept) == b"c" * 100
    assert bench.watcher.statistics().swap_abandoned == 1


def test_slice_that_is_dropped_before_the_next_wait_costs_nothing(bench: Bench) -> None:
    ours, theirs = bench.unix()
    for index in range(10):
        completion = receive(bench, ours, theirs, b"abcdefgh")
        part = completion.data[index % 8 :]
        assert part.nbytes
        del part
    bench.none()
    assert bench.watcher.statistics().swap_abandoned == 0


def test_data_may_be_written_to_by_the_caller(bench: Bench) -> None:
    """It is his."""
    ours, theirs = bench.unix()
    completion = receive(bench, ours, theirs, b"mine")
    completion.data[:2] = b"MI"
    assert bytes(completion.data) == b"MIne"


# Writing what was received.

WRITTEN: dict[str, Callable[[memoryview], Any]] = {
    "data": lambda data: data,
    "slice": lambda data: data[:],
    "view": lambda data: memoryview(data),
    "cast": lambda data: data.cast("c"),
    "ctypes": lambda data: (ctypes.c_char * len(data)).from_buffer(data),
    "pickle_buffer": lambda data: pickle.PickleBuffer(data),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("behind", [0, 1, 3])
def test_write_of_swap_data_that_has_to_wait_sends_what_was_received(engine: str, way: str, behind: int) -> None:
    """Also when it waits behind others, and was not even tried."""
    with Bench(engine, swap_size=64) as bench:
        ours, theirs, size = full(bench)
        for _ in range(behind):
            bench.watcher.write(ours, b"ahead.")
        for index in range(5):
            completion = receive(bench, ours, theirs, bytes([ord("a") + index]) * 40)
            bench.watcher.write(ours, WRITTEN[way](completion.data))
            del completion
        for _ in range(20):
            receive(bench, ours, theirs, b"-" * 64)
        receive_exactly(theirs, size)
        expected = b"ahead." * behind + b"".join(bytes([ord("a") + index]) * 40 for index in range(5))
        done = 0
        while done < behind + 5:
            for completion in bench.watcher.wait_io(PATIENCE_S):
                assert (completion.op, completion.error) == (Op.WRITE, None)
                done += 1
        assert receive_exactly(theirs, len(expected)) == expected


def test_write_of_swap_data_that_has_to_wait_does_not_hold_the_swap_buffer(engine: str) -> None:
    with Bench(engine, swap_size=64) as bench:
        ours, theirs, size = full(bench)
        for _ in range(10):
            completion = receive(bench, ours, theirs, b"x" * 64)
            bench.watcher.write(ours, completion.data)
            del completion
        said = bench.watcher.statistics()
        assert (said.swap_abandoned, said.pending) == (0, 10)
        receive_exactly(theirs, size)
        done: list[Completion] = []
        while len(done) < 10:
            done += bench.watcher.wait_io(PATIENCE_S)
        assert [completion.size for completion in done] == [64] * 10
        assert receive_exactly(theirs, 640) == b"x" * 640


@pytest.mark.parametrize("swap_size", [100, 4096, 65536])
@pytest.mark.parametrize("connect", ["tcp", "unix"])
def test_echo_to_a_peer_that_does_not_read_is_exact(engine: str, swap_size: int, connect: str) -> None:
    data = bytes((index * 7 + index // 251) % 256 for index in range(256 * 1024))
    with Bench(engine, swap_size) as bench:
        ours, theirs = bench.tcp(8192) if connect == "tcp" else bench.unix()
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(theirs.sendall, data)
            echoed = wrote = 0
            bench.watcher.read(ours)
            while echoed < len(data):
                for completion in bench.watcher.wait_io(PATIENCE_S):
                    assert completion.error is None
                    if completion.op is Op.WRITE:
                        wrote += completion.size
                        continue
                    echoed += completion.size
                    bench.watcher.write(ours, completion.data)
                    bench.watcher.read(ours)
            sending.result()
            assert bench.watcher.statistics().sent_bytes < len(data)  # Or nothing had to wait.
            receiving = pool.submit(receive_exactly, theirs, len(data))
            while wrote < len(data):
                for completion in bench.watcher.wait_io(PATIENCE_S):
                    assert (completion.op, completion.error) == (Op.WRITE, None)
                    wrote += completion.size
            assert receiving.result() == data


def test_write_of_swap_data_to_another_connection_is_exact(engine: str) -> None:
    with Bench(engine, swap_size=64) as bench:
        ours, theirs = bench.unix()
        other, others, size = full(bench)
        expected = b""
        for index in range(10):
            completion = receive(bench, ours, theirs, bytes([index]) * 50)
            bench.watcher.write(other, completion.data[5:45])
            expected += bytes([index]) * 40
            del completion
        receive_exactly(others, size)
        done = 0
        while done < 10:
            done += len(bench.watcher.wait_io(PATIENCE_S))
        assert receive_exactly(others, 400) == expected
