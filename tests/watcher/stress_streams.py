"""Streams that both ends of a connection know by position, so that each can check every byte that it gets.

The end that opens a connection first says its number, in `PREAMBLE` bytes. From seed and number follow what sort of
connection it is, and where in one pool of random bytes each direction begins. The pool's length is odd: a stream that
has slipped by a power of two is not taken for right.

Lives here: what both the stress and its peers must agree on. Must not live here: sockets.
"""

from __future__ import annotations

import enum
import random
import struct
from typing import Final, NamedTuple

POOL_BYTES: Final = (1 << 20) + 7
PREAMBLE: Final = struct.Struct("!Q")
PART_MAX_BYTES: Final = 1 << 20


class Role(enum.Enum):
    """What sort of connection one is."""

    TALK = enum.auto()  # Both ends say something now and then.
    ECHO = enum.auto()  # The watcher sends back what it gets. Both directions begin at one place.
    BULK = enum.auto()  # Up to 1 MiB at a time.
    LAZY = enum.auto()  # The peer mostly does not read.
    IDLE = enum.auto()  # Next to nothing is ever said.


ROLES: Final = (Role.TALK,) * 8 + (Role.ECHO,) * 4 + (Role.BULK,) + (Role.LAZY,) * 3 + (Role.IDLE,) * 4


class Plan(NamedTuple):
    """What both ends know of a connection: its sort, and where its two directions begin."""

    role: Role
    to_watcher: int
    to_peer: int


class Streams:
    """The pool of one run."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        pool = random.Random(seed).randbytes(POOL_BYTES)
        self._pool = pool + pool  # So that a part from anywhere is one slice.
        self._view = memoryview(self._pool)

    def plan(self, number: int) -> Plan:
        chance = random.Random(self._seed << 64 | number)
        role = chance.choice(ROLES)
        to_watcher = chance.randrange(POOL_BYTES)
        return Plan(role, to_watcher, to_watcher if role is Role.ECHO else chance.randrange(POOL_BYTES))

    def part(self, start: int, position: int, size: int) -> memoryview:
        """`size` bytes, at most `PART_MAX_BYTES`, from `position` on of the stream that begins at `start`."""
        offset = (start + position) % POOL_BYTES
        return self._view[offset : offset + size]

    def matches(self, data: memoryview, start: int, position: int) -> bool:
        """Whether `data` is what stands there."""
        return self._pool.startswith(data, (start + position) % POOL_BYTES)
