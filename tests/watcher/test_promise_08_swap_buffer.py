"""The swap buffer is shared by many reads, never too small for one, and used again."""

from __future__ import annotations

import socket
import tracemalloc
from typing import Any

import pytest

from shardnet.watcher import Completion, Op
from tests.engine.kit import PATIENCE_S, wait_unread
from tests.watcher.kit import Bench
from tests.watcher.promise_kit import TIMEOUT_S, stop_time

USEFUL_BYTES = 4096


def ready(bench: Bench, sizes: list[int]) -> list[socket.socket]:
    """A connection for each size, with so many bytes in the kernel."""
    conns = []
    for index, size in enumerate(sizes):
        ours, theirs = bench.tcp()
        theirs.sendall(payload(index, size))
        wait_unread(ours.fileno(), size)
        conns.append(ours)
    return conns


def payload(index: int, size: int) -> bytes:
    return bytes([index % 256]) * size


def read_all(bench: Bench, conns: list[socket.socket]) -> list[Completion]:
    """A read on each, all of which complete before the caller comes back."""
    for conn in conns:
        bench.watcher.read(conn)
    assert bench.watcher.statistics().waiting == len(conns)
    completions = bench.watcher.wait_io(PATIENCE_S)
    assert len(completions) == len(conns)
    return completions


def check(completions: list[Completion], sizes: list[int]) -> None:
    for index, (completion, size) in enumerate(zip(completions, sizes, strict=True)):
        assert (completion.op, completion.error, completion.is_swap_buffer) == (Op.READ, None, True)
        assert completion.size == size
        assert bytes(completion.data) == bytes(completion.buffer) == payload(index, size)


# Shared.


@pytest.mark.parametrize("swap_size", [4096, 16384, 65536, 1 << 20])
def test_many_small_reads_share_it(engine: str, swap_size: int) -> None:
    with Bench(engine, swap_size) as bench:
        sizes = [1 + index for index in range(32)]  # 528 bytes in all.
        completions = read_all(bench, ready(bench, sizes))
        check(completions, sizes)
        said = bench.watcher.statistics()
        assert (said.swap_capacity_bytes, said.swap_exhausted) == (swap_size, 0)
        assert said.swap_in_use_bytes == said.swap_peak_bytes == sum(sizes)
        assert len({id(completion.data.obj) for completion in completions}) == 1


def test_reads_that_share_it_do_not_overlap(bench: Bench) -> None:
    completions = read_all(bench, ready(bench, [10, 10, 10]))
    for completion in completions:
        completion.data[:] = bytes([completion.size]) * 10
    completions[1].data[:] = b"0123456789"
    assert [bytes(completion.data) for completion in completions] == [b"\n" * 10, b"0123456789", b"\n" * 10]


def test_reads_that_complete_in_a_wait_share_it_as_well(bench: Bench) -> None:
    pairs = [bench.tcp() for _ in range(10)]
    for ours, _ in pairs:
        bench.watcher.read(ours)
    for index, (ours, theirs) in enumerate(pairs):
        theirs.sendall(payload(index, 100))
        del ours
    answers = bench.collect(10)
    assert sorted(answer.data for answer in answers) == [payload(index, 100) for index in range(10)]
    assert all(answer.completion.is_swap_buffer for answer in answers)
    assert bench.watcher.statistics().swap_exhausted == 0


def test_read_into_a_buffer_of_its_own_takes_none_of_it(bench: Bench) -> None:
    (conn,) = ready(bench, [100])
    bench.watcher.read(conn, bytearray(100))
    answer = bench.one()
    assert not answer.completion.is_swap_buffer
    said = bench.watcher.statistics()
    assert (said.swap_in_use_bytes, said.swap_peak_bytes) == (0, 0)


def test_read_that_fails_takes_none_of_it(bench: Bench) -> None:
    clock = stop_time(bench)
    silent, _ = bench.unix()
    ended, peer = bench.unix()
    peer.close()
    bench.watcher.read(silent, timeout=TIMEOUT_S)
    bench.watcher.read(ended)
    clock.advance(TIMEOUT_S)
    for answer in bench.collect(2):
        assert answer.error is not None
        assert (answer.data, answer.size, answer.completion.is_swap_buffer) == (b"", 0, True)
    said = bench.watcher.statistics()
    assert (said.swap_in_use_bytes, said.swap_peak_bytes, said.swap_exhausted) == (0, 0, 0)


# Exhausted.


@pytest.mark.parametrize("swap_size", [8192, 16384, 65536])
def test_reads_go_on_when_it_is_exhausted(engine: str, swap_size: int) -> None:
    with Bench(engine, swap_size) as bench:
        sizes = [3000] * (swap_size // 3000 + 10)
        completions = read_all(bench, ready(bench, sizes))
        check(completions, sizes)
        said = bench.watcher.statistics()
        assert said.swap_exhausted == 1
        assert said.swap_in_use_bytes == sum(sizes)


@pytest.mark.parametrize("left", [0, 1, 16, 100, 4095])
def test_read_is_never_cut_to_the_little_that_is_left(engine: str, left: int) -> None:
    with Bench(engine, swap_size=20000) as bench:
        sizes = [20000 - left, USEFUL_BYTES, USEFUL_BYTES]
        completions = read_all(bench, ready(bench, sizes))
        check(completions, sizes)
        assert bench.watcher.statistics().swap_exhausted == 1


def test_exhaustion_is_counted_each_time(engine: str) -> None:
    with Bench(engine, swap_size=8192) as bench:
        for round_ in range(1, 5):
            read_all(bench, ready(bench, [6000, 6000]))
            assert bench.watcher.statistics().swap_exhausted == round_
            bench.none()


def test_exhaustion_is_not_counted_when_the_caller_comes_back_in_time(engine: str) -> None:
    with Bench(engine, swap_size=8192) as bench:
        for _ in range(10):
            read_all(bench, ready(bench, [6000]))
            bench.none()
        assert bench.watcher.statistics().swap_exhausted == 0


def test_exhaustion_may_go_on_through_several_spills(engine: str) -> None:
    with Bench(engine, swap_size=8192) as bench:
        sizes = [30000] * 8
        completions = read_all(bench, ready(bench, sizes))
        got = [completion.size for completion in completions]
        # The first got what the swap buffer holds, the others something useful.
        assert got[0] == 8192
        assert min(got) >= USEFUL_BYTES
        for index, completion in enumerate(completions):
            assert completion.is_swap_buffer
            assert bytes(completion.data) == payload(index, completion.size)
        said = bench.watcher.statistics()
        assert said.swap_in_use_bytes == sum(got)
        assert said.swap_exhausted >= 3


@pytest.mark.parametrize("swap_size", [1, 2, 16, 100, 1000])
def test_tiny_swap_buffer_brings_every_byte_and_no_crumbs_but_its_own(engine: str, swap_size: int) -> None:
    with Bench(engine, swap_size) as bench:
        conns = ready(bench, [2000] * 4)
        completions = read_all(bench, conns)
        # The tiny one is full with the first read; what stands in for it is not tiny.
        assert [completion.size for completion in completions] == [swap_size, 2000, 2000, 2000]
        assert all(completion.is_swap_buffer for completion in completions)
        assert bench.watcher.statistics().swap_capacity_bytes == swap_size
        rest = 2000 - swap_size
        got = b""
        while len(got) < rest:
            (completion,) = read_all(bench, conns[:1])
            got += bytes(completion.data)
            assert completion.size > 0
        assert got == payload(0, rest)


def test_swap_buffer_of_one_byte_reads_a_stream_to_its_end(engine: str) -> None:
    with Bench(engine, swap_size=1) as bench:
        ours, theirs = bench.unix()
        theirs.sendall(b"tiny")
        theirs.close()
        got = b""
        while True:
            bench.watcher.read(ours)
            answer = bench.one()
            if answer.error is not None:
                break
            got += answer.data
        assert isinstance(answer.error, EOFError)
        assert got == b"tiny"


# What is handed out stays as it is until the caller comes back.


def test_reads_that_complete_meanwhile_do_not_touch_what_the_caller_has(engine: str) -> None:
    with Bench(engine, swap_size=8192) as bench:
        conns = ready(bench, [1000] * 3)
        first = read_all(bench, conns)
        for conn in ready(bench, [5000] * 30):
            bench.watcher.read(conn)  # Complete on return, and waiting.
        check(first, [1000] * 3)
        second = bench.watcher.wait_io(PATIENCE_S)
        check(second, [5000] * 30)
        assert bench.watcher.statistics().swap_in_use_bytes == 30 * 5000


def test_caller_may_come_back_in_the_middle_of_many_reads(engine: str) -> None:
    """Each batch overlaps with reads that have completed and are not handed out yet."""
    with Bench(engine, swap_size=8192) as bench:
        conns = ready(bench, [20000] * 3)
        totals = [0] * 3
        bench.watcher.read(conns[0], ctx=0)
        pending = {0}
        while sum(totals) < 60000:
            for completion in bench.watcher.wait_io(PATIENCE_S):
                who: Any = completion.ctx
                totals[who] += completion.size
                pending.discard(who)
                for index, conn in enumerate(conns):
                    if totals[index] < 20000 and index not in pending:
                        bench.watcher.read(conn, ctx=index)
                        pending.add(index)
                assert bytes(completion.data) == payload(who, completion.size)
        assert totals == [20000] * 3


# Used again.


def test_memory_is_used_again(bench: Bench) -> None:
    seen: list[object] = []
    for _ in range(20):
        (completion,) = read_all(bench, ready(bench, [100]))
        seen.append(completion.data.obj)
        bench.none()
    assert len({id(memory) for memory in seen}) <= 3
    said = bench.watcher.statistics()
    assert (said.swap_peak_bytes, said.swap_abandoned, said.swap_exhausted) == (100, 0, 0)


def test_memory_is_used_again_after_it_was_exhausted(engine: str) -> None:
    with Bench(engine, swap_size=8192) as bench:
        read_all(bench, ready(bench, [5000] * 20))
        seen: list[object] = []
        for _ in range(20):
            (completion,) = read_all(bench, ready(bench, [100]))
            seen.append(completion.data.obj)
        assert len({id(memory) for memory in seen}) <= 4
        said = bench.watcher.statistics()
        assert (said.swap_in_use_bytes, said.swap_abandoned) == (100, 0)


def test_exhaustion_leaves_no_memory_behind(engine: str) -> None:
    """What stood in for the swap buffer is gone when the caller is done with it."""
    with Bench(engine, swap_size=8192) as bench:
        conns = ready(bench, [5000] * 60)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            read_all(bench, conns)
            lent, _ = tracemalloc.get_traced_memory()
            bench.none()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert lent - before > 250_000
        assert after - before < 65536
        assert bench.watcher.statistics().swap_in_use_bytes == 0


def test_statistics_follow_what_is_in_use(bench: Bench) -> None:
    assert bench.watcher.statistics().swap_capacity_bytes == 65536
    conns = ready(bench, [1000, 2000, 500])

    def said() -> tuple[int, int]:
        statistics = bench.watcher.statistics()
        return statistics.swap_in_use_bytes, statistics.swap_peak_bytes

    assert said() == (0, 0)
    bench.watcher.read(conns[0])
    assert said() == (1000, 1000)
    bench.watcher.read(conns[1])
    assert said() == (3000, 3000)
    bench.watcher.wait_io(PATIENCE_S)
    assert said() == (3000, 3000)
    bench.watcher.read(conns[2])
    assert said() == (3500, 3500)
    bench.watcher.wait_io(PATIENCE_S)
    assert said() == (500, 3500)
    bench.none()
    assert said() == (0, 3500)
    assert bench.watcher.statistics().swap_capacity_bytes == 65536
