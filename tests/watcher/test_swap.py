"""The swap buffer alone: which memory a receive fills, and when it is used again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shardnet.watcher.endpoint import CHUNK_MAX_BYTES
from shardnet.watcher.swap import ROOM_MIN_BYTES, SPARES_MAX, SPILL_BYTES, Block, Swap
from tests.engine.kit import wait_unread

SIZE = 2 * ROOM_MIN_BYTES


class Wire:
    """Bytes on their way to a swap buffer."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    def into(self, target: Block | Swap, data: bytes) -> memoryview:
        """Receive `data`, all of it in one call, and take it."""
        self.theirs.sendall(data)
        wait_unread(self.ours.fileno(), len(data))
        assert target.receive(self.ours.fileno()) == len(data)
        taken = target.take(len(data))
        view = taken if isinstance(taken, memoryview) else taken.view
        assert view == data
        return view


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with wire.ours, wire.theirs:
        yield wire


def memory(view: memoryview) -> int:
    return id(view.obj)


# Blocks.


def test_block_is_filled_from_the_front(wire: Wire) -> None:
    block = Block(10)
    views = [wire.into(block, data) for data in (b"one", b"two", b"four")]
    assert (block.room, block.used, block.lent) == (0, 10, 3)
    assert block.memory == b"onetwofour"
    assert views == [b"one", b"two", b"four"]


def test_block_receives_no_more_than_it_has_room_for(wire: Wire) -> None:
    block = Block(4)
    wire.theirs.sendall(b"123456")
    assert block.receive(wire.ours.fileno()) == 4
    block.take(4)
    assert bytes(block.memory) == b"1234"
    assert wire.ours.recv(10) == b"56"


def test_block_receives_no_more_than_a_chunk(wire: Wire) -> None:
    """However large it is: who is flooded has to let others have their turn."""
    block = Block(3 * CHUNK_MAX_BYTES)
    wire.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * CHUNK_MAX_BYTES)
    wire.theirs.sendall(bytes(CHUNK_MAX_BYTES + 100))
    assert block.receive(wire.ours.fileno()) == CHUNK_MAX_BYTES


def test_block_tells_not_now_and_the_end(wire: Wire) -> None:
    block = Block(10)
    assert block.receive(wire.ours.fileno()) == -1
    wire.theirs.close()
    assert block.receive(wire.ours.fileno()) == 0
    assert (block.used, block.lent) == (0, 0)


def test_block_that_nobody_holds_begins_again_in_the_same_memory(wire: Wire) -> None:
    block = Block(10)
    before = id(block.memory)
    wire.into(block, b"old").release()
    assert block.renew()
    assert (id(block.memory), len(block.memory), block.used) == (before, 10, 0)
    wire.into(block, b"newer")
    assert bytes(block.memory[:5]) == b"newer"


@pytest.mark.parametrize("hold", [lambda view: view, lambda view: view[1:2], lambda view: memoryview(view).cast("B")])
def test_block_that_somebody_holds_is_his(wire: Wire, hold: object) -> None:
    block = Block(10)
    assert callable(hold)
    held = hold(wire.into(block, b"kept"))
    assert not block.renew()
    assert bytes(held) in b"kept"


# The swap buffer.


def test_swap_puts_small_reads_behind_each_other(wire: Wire) -> None:
    swap = Swap(SIZE)
    views = [wire.into(swap, data) for data in (b"one", b"two")]
    assert memory(views[0]) == memory(views[1])
    assert bytes(views[0].obj[:6]) == b"onetwo"  # type: ignore[index]
    assert (swap.in_use_bytes, swap.peak_bytes, swap.exhausted, swap.abandoned) == (6, 6, 0, 0)


def test_swap_fills_another_block_while_one_is_in_the_callers_hands(wire: Wire) -> None:
    swap = Swap(SIZE)
    first = wire.into(swap, b"one")
    swap.give_back(0)
    second = wire.into(swap, b"two")
    assert memory(first) != memory(second)
    assert bytes(first) == b"one"
    assert swap.in_use_bytes == 6


def test_swap_alternates_between_few_blocks_when_the_caller_keeps_coming_back(wire: Wire) -> None:
    swap = Swap(SIZE)
    seen = set()
    pending = 0
    for number in range(100):
        seen.add(memory(wire.into(swap, b"%d" % number)))
        swap.give_back(pending)  # What was handed out the time before.
        pending = 1
    assert len(seen) <= 1 + SPARES_MAX
    assert (swap.abandoned, swap.exhausted, swap.peak_bytes) == (0, 0, 4)


def test_swap_releases_what_is_given_back(wire: Wire) -> None:
    swap = Swap(SIZE)
    first, second = wire.into(swap, b"one"), wire.into(swap, b"two")
    swap.give_back(1)
    with pytest.raises(ValueError, match="released"):
        bytes(first)
    assert bytes(second) == b"two"
    assert swap.in_use_bytes == 3
    swap.give_back(1)
    with pytest.raises(ValueError, match="released"):
        bytes(second)
    assert (swap.in_use_bytes, swap.peak_bytes) == (0, 6)


def test_swap_does_not_use_a_block_again_that_has_been_given_back_in_part(wire: Wire) -> None:
    swap = Swap(SIZE)
    views = [wire.into(swap, data) for data in (b"one", b"two")]
    swap.give_back(1)
    others = [wire.into(swap, b"x" * 3) for _ in range(3)]
    assert memory(views[1]) not in {memory(view) for view in others}
    assert bytes(views[1]) == b"two"
    swap.give_back(4)
    assert swap.in_use_bytes == 0


@pytest.mark.parametrize("rounds", [1, 2, 3, 10])
def test_slice_that_is_kept_never_changes(wire: Wire, rounds: int) -> None:
    """Promise 7: before a block is used again it is asked whether anybody still holds a part."""
    swap = Swap(SIZE)
    kept = []
    for number in range(rounds):
        data = b"%04d" % number * 1000
        kept.append((wire.into(swap, data)[10:], data[10:]))
        swap.give_back(1)
    for held, data in kept:
        assert held == data
    assert swap.abandoned == rounds


def test_slice_that_was_kept_and_let_go_costs_no_block(wire: Wire) -> None:
    swap = Swap(SIZE)
    part = wire.into(swap, b"text")[1:]
    del part
    swap.give_back(1)
    assert swap.abandoned == 0


def test_swap_that_is_full_goes_on_in_a_block_of_useful_size(wire: Wire) -> None:
    swap = Swap(SIZE)
    wire.into(swap, b"x" * (SIZE - ROOM_MIN_BYTES))  # Room for just one more that is not a fragment.
    inside = wire.into(swap, b"y" * 10)
    assert swap.exhausted == 0
    spilled = wire.into(swap, b"z" * 30_000)
    assert memory(spilled) != memory(inside)
    assert len(spilled.obj) == SPILL_BYTES  # type: ignore[arg-type]
    assert swap.exhausted == 1
    assert swap.in_use_bytes == SIZE - ROOM_MIN_BYTES + 10 + 30_000
    wire.into(swap, b"z" * 32_000)
    assert swap.exhausted == 1
    wire.into(swap, b"z" * 10)
    assert swap.exhausted == 2


def test_swap_keeps_no_block_that_was_needed_once(wire: Wire) -> None:
    """After a burst it holds what it held before."""
    swap = Swap(SIZE)
    count = 20
    for number in range(count):
        wire.into(swap, b"%02d" % number * (ROOM_MIN_BYTES // 2))
        swap.give_back(0)  # The caller comes back, and has been given nothing yet.
    assert len(swap._blocks) > 10
    swap.give_back(count)
    assert swap.in_use_bytes == 0
    assert len(swap._blocks) <= 1 + SPARES_MAX
    wire.into(swap, b"small again")
    assert swap.size_bytes == SIZE


@pytest.mark.parametrize("size", [1, 2, 7])
def test_swap_smaller_than_useful_is_filled_all_the_same(wire: Wire, size: int) -> None:
    swap = Swap(size)
    views = [wire.into(swap, b"a" * size), wire.into(swap, b"b" * size)]
    assert views == [b"a" * size, b"b" * size]
    assert (len(views[0].obj), len(views[1].obj)) == (size, SPILL_BYTES)  # type: ignore[arg-type]
    assert swap.exhausted == 1


def test_swap_owns_what_will_be_used_again_and_nothing_else(wire: Wire) -> None:
    swap = Swap(SIZE)
    view = wire.into(swap, b"text")
    assert swap.owns(view)
    assert swap.owns(view[1:].cast("B"))
    assert not swap.owns(memoryview(bytearray(b"text")))
    assert not swap.owns(memoryview(b"text"))
    assert not Swap(SIZE).owns(view)
    kept = view[1:]
    swap.give_back(1)
    assert not swap.owns(kept)  # It was left to its holder.


def test_coming_back_without_reads_changes_nothing(wire: Wire) -> None:
    swap = Swap(SIZE)
    wire.into(swap, b"x")
    swap.give_back(1)
    before = dict(swap._blocks)
    for _ in range(10):
        swap.give_back(0)
    assert swap._blocks == before
