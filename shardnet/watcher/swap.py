"""The swap buffer: where reads go that bring no buffer of their own.

Many small reads share one piece of memory, one behind the other, and what they received belongs to the caller until it
comes back for more. So there are two pieces, a *block* each: while one is in the caller's hands, reads that complete
already fill the other. When that is full before the caller comes back, a spill block stands in.

A caller may keep a slice longer than it should. It must not change under him: so before a block is used again, every
view that was handed out is released, and the memory is asked whether anybody still holds it. A bytearray that does
not let its size be changed is held; then it is left to its holder, and a fresh one takes its place. The question costs
some hundred nanoseconds.

Lives here: memory, and who may touch it. Must not live here: completions.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

from shardnet.watcher import _sys
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES

ROOM_MIN_BYTES: Final = 4096  # With less room a block counts as full: no receives in useless fragments.
SPILL_BYTES: Final = 65536
SPARES_MAX: Final = 2  # One is filled while one is in the caller's hands; the other is for who comes back in parts.


class Block:
    """A piece of memory, filled from the front. What was taken of it is the caller's until it is given back."""

    __slots__ = ("_view", "lent", "memory", "used")

    def __init__(self, size_bytes: int) -> None:
        self.memory = bytearray(size_bytes)
        self._view = memoryview(self.memory)
        self.used = 0
        self.lent = 0  # Views that were taken, and not given back.

    @property
    def room(self) -> int:
        return len(self.memory) - self.used

    def receive(self, fd: int) -> int:
        """Receive behind what is taken; how many bytes came, 0 at end of stream, -1 for "not now"."""
        end = self.used + min(self.room, CHUNK_MAX_BYTES)
        return _sys.receive_into(fd, self._view[self.used : end])

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, for the caller."""
        view = self._view[self.used : self.used + size]
        self.used += size
        self.lent += 1
        return view

    def renew(self) -> bool:
        """Begin at the front again: False when somebody still holds a part of the memory, which is then his."""
        self._view.release()
        try:
            self.memory.append(0)  # Refused while anything is exported.
        except BufferError:
            return False
        self.memory.pop()
        self._view = memoryview(self.memory)
        self.used = 0
        return True


class Loan:
    """A part of a block in the caller's hands, until it is over."""

    __slots__ = ("block", "over", "size", "view")

    def __init__(self, block: Block, size: int) -> None:
        self.block = block
        self.size = size
        self.view = block.take(size)  # Which the caller may release before us.
        self.over = False


class Swap:
    """The blocks of one watcher."""

    __slots__ = (
        "_blocks",
        "_filling",
        "_loans",
        "_room_min",
        "_spares",
        "abandoned",
        "exhausted",
        "in_use_bytes",
        "peak_bytes",
        "size_bytes",
    )

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.in_use_bytes = 0  # Taken, and not given back.
        self.peak_bytes = 0
        self.exhausted = 0  # Blocks that were full before the caller came back.
        self.abandoned = 0  # Blocks that were left to somebody who kept a slice.
        self._room_min = max(1, min(ROOM_MIN_BYTES, size_bytes // 2))
        self._loans: deque[Loan] = deque()
        self._blocks: dict[int, Block] = {}  # All that are in use, by the identity of their memory.
        self._spares: list[Block] = []
        self._filling = self._new_block(size_bytes)

    def receive(self, fd: int) -> int:
        """Receive what `take` may then hand out; how many bytes came, 0 at end of stream, -1 for "not now"."""
        if self._filling.room < self._room_min:
            self.exhausted += 1
            self._filling = self._new_block(SPILL_BYTES)
        return self._filling.receive(fd)

    def take(self, size: int) -> Loan:
        """The `size` bytes that were just received."""
        loan = Loan(self._filling, size)
        self._loans.append(loan)
        self.in_use_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.in_use_bytes)
        return loan

    @property
    def lent(self) -> int:
        """How many loans are not over."""
        return len(self._loans)

    def owns(self, view: memoryview) -> bool:
        """Whether `view` shows memory that will be used again."""
        return id(view.obj) in self._blocks

    def give_back(self, count: int) -> None:
        """The `count` oldest loans are over."""
        for _ in range(count):
            loan = self._loans.popleft()
            loan.over = True
            block = loan.block
            self.in_use_bytes -= loan.size
            with contextlib.suppress(BufferError):  # Something made of it holds on; `renew` will meet it.
                loan.view.release()
            block.lent -= 1
            if not block.lent and block is not self._filling:
                self._retire(block)
        if self._filling.used:
            self._turn_over()

    def _turn_over(self) -> None:
        """Fill another block. What was taken of this one and not given back has not been handed out yet."""
        if not self._filling.lent:
            self._retire(self._filling)
        self._filling = self._spares.pop() if self._spares else self._new_block(self.size_bytes)

    def _retire(self, block: Block) -> None:
        """Everything that was taken of the block was given back: keep it for later, if it is fit for that."""
        if not block.renew():
            self.abandoned += 1
        elif len(block.memory) == self.size_bytes and len(self._spares) < SPARES_MAX:
            self._spares.append(block)
            return
        del self._blocks[id(block.memory)]

    def _new_block(self, size_bytes: int) -> Block:
        block = Block(size_bytes)
        self._blocks[id(block.memory)] = block
        return block
