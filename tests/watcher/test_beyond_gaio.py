"""What gaio's own cases leave out: bytes, buffers and deadlines. Ends of all kinds: `test_beyond_gaio_ends`."""

from __future__ import annotations

import errno
import importlib
import random
import socket
from typing import Final

import pytest

from shardnet.watcher import (
    ConnectionBroken,
    DeadlineExceeded,
    Op,
)
from shardnet.watcher.operations import COMPLETIONS_PER_WAIT_MAX
from tests.engine.kit import receive_all, receive_exactly, reset, wait_unread
from tests.watcher.elsewhere import receiving
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import stop_time

ITEMS: Final = {
    "buffer validity until the next wait_io": "test_beyond_gaio::test_swap_buffer_",
    "swap exhaustion": "test_beyond_gaio::test_exhausted_swap_",
    "EOF with a partial read_full": "test_beyond_gaio::test_read_full_",
    "mixed deadlines in one queue": "test_beyond_gaio::test_mixed_deadlines_",
    "free with pending operations": "test_beyond_gaio_ends::test_free_",
    "RST": "test_beyond_gaio::test_reset_",
    "half-close": "test_beyond_gaio::test_half_close_",
    "fd reuse after free": "test_beyond_gaio_ends::test_reused_number_",
    "double free": "test_beyond_gaio_ends::test_double_free_",
    "EMFILE in accept": "test_beyond_gaio_ends::test_accept_without_descriptors_",
    "completions queued at close": "test_beyond_gaio_ends::test_close_",
    "a consumer that does not call wait_io for long": "test_beyond_gaio::test_absent_consumer_",
    "1-byte SO_SNDBUF": "test_beyond_gaio::test_smallest_send_buffer_",
    "fork": "test_beyond_gaio_ends::test_fork_",
}
MANY: Final = 20_000  # More completions than gaio's channel of results holds.
BLOCK: Final = 1 << 20


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_has_a_test(item: str) -> None:
    module, start = ITEMS[item].split("::")
    assert any(name.startswith(start) for name in vars(importlib.import_module(f"tests.watcher.{module}"))), item


# Buffer validity until the next wait_io.


def test_swap_buffer_is_the_callers_until_the_next_wait_io(bench: Bench) -> None:
    watcher = bench.watcher
    pairs = [bench.unix() for _ in range(8)]
    for number, (ours, theirs) in enumerate(pairs):
        theirs.sendall(bytes([number]) * 1000)
        watcher.read(ours, ctx=number)
    batch = watcher.wait_io(1)
    assert [bytes(completion.data) for completion in batch] == [bytes([number]) * 1000 for number in range(8)]
    # Operations that complete meanwhile, and a look at the statistics, are no coming back.
    for number, (ours, theirs) in enumerate(pairs):
        theirs.sendall(b"later" * 200)
        watcher.read(ours, ctx=number)
    watcher.statistics()
    assert [bytes(completion.data) for completion in batch] == [bytes([number]) * 1000 for number in range(8)]
    later = watcher.wait_io(1)
    for completion in batch:
        assert completion.size == 1000
        with pytest.raises(ValueError, match="before the next wait_io"):
            _ = completion.buffer
        with pytest.raises(ValueError, match="before the next wait_io"):
            _ = completion.data
    assert [bytes(completion.data) for completion in later] == [b"later" * 200] * 8


def test_swap_buffer_slice_that_is_kept_never_changes(bench: Bench) -> None:
    ours, theirs = bench.unix()
    chance = random.Random(1)
    kept: list[tuple[memoryview, bytes]] = []
    for number in range(200):
        data = chance.randbytes(1000)
        theirs.sendall(data)
        bench.watcher.read(ours)
        [completion] = bench.watcher.wait_io(1)
        assert completion.data == data
        if number % 5 == 0:
            kept.append((completion.data[100:200], data[100:200]))
    assert all(view == data for view, data in kept)
    assert bench.watcher.statistics().swap_abandoned == len(kept)


# Swap exhaustion.


def test_exhausted_swap_buffer_makes_no_small_pieces(engine: str) -> None:
    chance = random.Random(1)
    with Bench(engine, swap_size=8192) as bench:
        sent = [chance.randbytes(5000) for _ in range(30)]
        for number, data in enumerate(sent):
            ours, theirs = bench.unix()
            theirs.sendall(data)
            bench.watcher.read(ours, ctx=number)
        batch = bench.watcher.wait_io(1)
        assert [completion.ctx for completion in batch] == list(range(30))
        assert all(completion.is_swap_buffer and completion.error is None for completion in batch)
        assert [bytes(completion.data) for completion in batch] == sent
        said = bench.watcher.statistics()
        assert said.swap_exhausted >= 1
        assert said.swap_in_use_bytes == 30 * 5000
        bench.none()
        assert bench.watcher.statistics().swap_in_use_bytes == 0


def test_exhausted_swap_buffer_of_one_byte_loses_none(engine: str) -> None:
    with Bench(engine, swap_size=1) as bench:
        ours, theirs = bench.unix()
        data = random.Random(1).randbytes(10_000)
        theirs.sendall(data)
        received = b""
        while len(received) < len(data):
            bench.watcher.read(ours)
            bench.watcher.read(ours)
            answers = bench.collect(2)
            assert all(answer.error is None and answer.completion.is_swap_buffer for answer in answers)
            received += b"".join(answer.data for answer in answers)
            if len(received) == len(data):
                break
            assert answers[1].size > 1  # The second of a turn comes upon a full buffer.
        assert received == data
        assert bench.watcher.statistics().swap_exhausted >= 1


# EOF with a partial read_full.


def test_read_full_that_meets_the_end_says_what_it_has(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    buffer = bytearray(b"-" * 10)
    bench.watcher.read_full(ours, buffer, ctx="part")
    bench.watcher.read_full(ours, bytearray(5), ctx="behind")
    theirs.sendall(b"one")
    bench.none()
    theirs.sendall(b"two")
    theirs.close()
    part, behind = bench.collect(2)
    assert (part.ctx, part.size, part.data, type(part.error)) == ("part", 6, b"onetwo", EOFError)
    assert (behind.ctx, behind.size, behind.data, type(behind.error)) == ("behind", 0, b"", EOFError)
    assert buffer == b"onetwo----"
    buffer.clear()  # It is the caller's again.


# Mixed deadlines in one queue.


def test_mixed_deadlines_of_reads_expire_each_for_itself(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.tcp()
    for ctx, timeout in enumerate([None, 5.0, None, 1.0, 3.0, None]):
        bench.watcher.read(ours, bytearray(1), ctx=ctx, timeout=timeout)
    clock.advance(0.5)
    bench.none()
    clock.advance(1.0)
    assert [(answer.ctx, type(answer.error)) for answer in bench.collect(1)] == [(3, DeadlineExceeded)]
    bench.none()
    clock.advance(100.0)
    assert [(answer.ctx, type(answer.error)) for answer in bench.collect(2)] == [
        (4, DeadlineExceeded),
        (1, DeadlineExceeded),
    ]
    theirs.sendall(b"abc")
    assert [(answer.ctx, answer.data, answer.error) for answer in bench.collect(3)] == [
        (0, b"a", None),
        (2, b"b", None),
        (5, b"c", None),
    ]


def test_mixed_deadlines_of_writes_leave_no_hole_in_the_stream(bench: Bench) -> None:
    """A write that expires before its first byte was never there."""
    clock = stop_time(bench)
    ours, theirs = bench.tcp(4096)
    block = random.Random(1).randbytes(BLOCK)
    bench.watcher.write(ours, block, ctx="moves")
    bench.watcher.write(ours, b"never", ctx="expires", timeout=1.0)
    bench.watcher.write(ours, b"behind", ctx="behind")
    clock.advance(2.0)
    expired = bench.one()
    assert (expired.ctx, expired.size, type(expired.error)) == ("expires", 0, DeadlineExceeded)
    with receiving(theirs, BLOCK + 6) as received:
        answers = bench.collect(2)
    assert [(answer.ctx, answer.size, answer.error) for answer in answers] == [
        ("moves", BLOCK, None),
        ("behind", 6, None),
    ]
    same = received.result() == block + b"behind"
    assert same


def test_mixed_deadlines_of_writes_break_the_stream_when_one_stops_in_its_middle(bench: Bench) -> None:
    clock = stop_time(bench)
    ours, theirs = bench.tcp(4096)
    bench.watcher.write(ours, bytes(BLOCK), ctx="stops", timeout=1.0)
    bench.watcher.write(ours, b"never", ctx=1)
    bench.watcher.write(ours, b"never", ctx=2, timeout=9.0)
    clock.advance(2.0)
    stopped, *behind = bench.collect(3)
    assert (stopped.ctx, type(stopped.error)) == ("stops", DeadlineExceeded)
    assert 0 < stopped.size < BLOCK
    assert [(answer.ctx, answer.size, type(answer.error)) for answer in behind] == [
        (1, 0, ConnectionBroken),
        (2, 0, ConnectionBroken),
    ]
    theirs.sendall(b"still heard")
    bench.watcher.read(ours)
    assert bench.one().data == b"still heard"
    bench.watcher.free(ours)
    assert len(receive_all(theirs)) == stopped.size


# RST.


def test_reset_wakes_both_directions(bench: Bench) -> None:
    ours, theirs = bench.tcp(4096)
    bench.watcher.read(ours)
    bench.watcher.write(ours, bytes(BLOCK))
    bench.none()
    reset(theirs)
    read, write = sorted(bench.collect(2), key=lambda answer: answer.op)
    assert (read.op, read.size, type(read.error)) == (Op.READ, 0, ConnectionResetError)
    assert write.op is Op.WRITE
    assert 0 < write.size < BLOCK
    # Whoever is told of a reset first takes it off the socket; to the other the kernel says that the pipe is broken.
    assert isinstance(write.error, ConnectionResetError | BrokenPipeError)
    assert write.error.errno in (errno.ECONNRESET, errno.EPIPE)
    assert bench.watcher.statistics().completed_reset == 2
    bench.none()


def test_reset_leaves_a_read_full_what_it_has(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read_full(ours, bytearray(10))
    theirs.sendall(b"four")
    bench.none()
    reset(theirs)
    answer = bench.one()
    assert (answer.size, answer.data, type(answer.error)) == (4, b"four", ConnectionResetError)
    assert isinstance(answer.error, OSError)
    assert answer.error.errno == errno.ECONNRESET


# Half-close.


def test_half_close_by_the_peer_leaves_writing(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    assert bench.one().data == b"last words"
    for _ in range(3):
        bench.watcher.read(ours)
        answer = bench.one()
        assert (answer.size, type(answer.error)) == (0, EOFError)
    block = random.Random(1).randbytes(BLOCK)
    bench.watcher.write(ours, block)
    with receiving(theirs, BLOCK) as received:
        answer = bench.one()
    assert (answer.op, answer.size, answer.error) == (Op.WRITE, BLOCK, None)
    same = received.result() == block
    assert same


def test_half_close_by_a_channel_leaves_reading(bench: Bench) -> None:
    channel, theirs = bench.accepted()
    bench.watcher.write(channel, b"last words")
    assert bench.one().error is None
    channel.end_output()
    assert receive_all(theirs) == b"last words"
    bench.watcher.read(channel)
    theirs.sendall(b"the answer")
    assert bench.one().data == b"the answer"
    bench.watcher.write(channel, b"x")
    assert isinstance(bench.one().error, BrokenPipeError)
    bench.watcher.free(channel)


# A consumer that does not call wait_io for long.


def test_absent_consumer_finds_every_completion_in_order(bench: Bench) -> None:
    """gaio stands still when 16384 results wait, and everybody with it."""
    watcher = bench.watcher
    ours, theirs = bench.tcp()
    data = random.Random(1).randbytes(MANY)
    theirs.sendall(data)
    wait_unread(ours.fileno(), MANY)
    buffer = bytearray(MANY)
    view = memoryview(buffer)
    for position in range(MANY):
        watcher.read(ours, view[position : position + 1], ctx=position)
    assert watcher.statistics().waiting == MANY
    other, other_peer = bench.tcp()
    watcher.write(other, b"not stopped")
    assert receive_exactly(other_peer, 11) == b"not stopped"
    contexts: list[object] = []
    while watcher.statistics().waiting:
        batch = watcher.wait_io()
        assert 0 < len(batch) <= COMPLETIONS_PER_WAIT_MAX
        contexts += [completion.ctx for completion in batch]
    assert contexts == [*range(MANY), None]
    assert buffer == data


def test_absent_consumer_finds_every_byte_in_the_swap_buffers(bench: Bench) -> None:
    watcher = bench.watcher
    sent = [number.to_bytes(2, "big") * 2000 for number in range(60)]
    for data in sent:
        ours, theirs = bench.unix()
        theirs.sendall(data)
        watcher.read(ours)
    said = watcher.statistics()
    assert (said.waiting, said.swap_in_use_bytes) == (60, 60 * 4000)
    assert said.swap_exhausted >= 1
    batch = watcher.wait_io(1)
    assert [bytes(completion.data) for completion in batch] == sent
    bench.none()
    assert watcher.statistics().swap_in_use_bytes == 0


def test_absent_consumer_meets_no_deadline_that_was_kept(bench: Bench) -> None:
    """What came in time is no worse for being fetched late."""
    clock = stop_time(bench)
    ours, theirs = bench.tcp()
    silent, _ = bench.tcp()
    bench.watcher.read(ours, ctx="came", timeout=1.0)
    bench.watcher.read(silent, ctx="silent", timeout=1.0)
    bench.watcher.sleep(0.5, ctx="sleep")
    theirs.sendall(b"x")
    clock.advance(1000.0)
    answers = {answer.ctx: answer for answer in bench.collect(3)}
    assert (answers["came"].data, answers["came"].error) == (b"x", None)
    assert type(answers["silent"].error) is DeadlineExceeded
    assert answers["sleep"].error is None


# 1-byte SO_SNDBUF.


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_smallest_send_buffer_passes_every_byte(bench: Bench, kind: str) -> None:
    ours, theirs = bench.tcp() if kind == "tcp" else bench.unix()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # The kernel makes its least of it.
    blocks = [random.Random(seed).randbytes(BLOCK // 2) for seed in range(3)]
    with receiving(theirs, 3 * BLOCK // 2) as received:
        for block in blocks:
            bench.watcher.write(ours, block)
        answers = bench.collect(3)
    assert [(answer.size, answer.error) for answer in answers] == [(BLOCK // 2, None)] * 3
    same = received.result() == b"".join(blocks)
    assert same
