"""The board: one piece of shared memory in which every process of a server counts.

It is a memfd, made before the first fork and sparse: pages that nobody touches cost nothing. It holds a directory
(who has which row) and rows (a schema, then cells of eight bytes). A row belongs to one incarnation of a worker, not
to a shard, because two generations serve one shard during a reload. A worker counts straight into the cells of its
row, without locks and with nothing to flush: each cell, and each word of the directory, has exactly one writer and
is stored whole, so that no reader ever sees half a value.

When a worker has ended, the supervisor folds its row: counters and histograms are added to those of the shard's own
row, in which the supervisor also says what it knows of the shard; gauges vanish, and the row is free again. A reader
that came in between would count twice or not at all, so the directory carries a sequence number, odd while the
supervisor changes who has which row; a reader copies, and starts over if the number was odd or has moved. The writer
never waits. (That stores are seen in the order they were made is the machine's promise on x86-64; elsewhere it rests on
the hundreds of instructions that the interpreter puts between any two of them.)

Lives here: the memory, its layout, claiming, folding, copying. Must not live here: which metrics there are, when a
worker has ended, clocks.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from typing import Final, assert_never

from shardnet.board.row import (
    AT_GENERATION,
    AT_HEARTBEAT,
    AT_INCARNATION,
    AT_PID,
    AT_ROLE,
    AT_SHARD,
    AT_STARTED,
    CELL_BYTES,
    ENTRY_WORDS,
    ROW_BYTES,
    SCHEMA_MAX_BYTES,
    Row,
)
from shardnet.board.schema import Declaration, Kind, add_cells, parse_schema
from shardnet.board.snapshot import Occupant, Role, RowImage, Snapshot, summarise
from shardnet.errors import InternalError, SystemFault

__all__ = ["Board"]

WORKERS_PER_SHARD_MAX: Final = 3  # One booting, one serving, one draining.

# A supervisor in the middle of a change is through within microseconds, unless it was preempted there, and never if
# it was killed there. 200 naps of 1 ms bound a reader's patience.
SNAPSHOT_ATTEMPTS: Final = 200
SNAPSHOT_NAP_S: Final = 0.001

# The directory is an entry of the board's own, then one for each row.
MAGIC: Final = int.from_bytes(b"shardnet", "big")
LAYOUT_VERSION: Final = 2
AT_MAGIC, AT_LAYOUT_VERSION, AT_SHARDS_MAX, AT_SEQUENCE = range(4)

# Rows: the supervisor's, one for each shard, then the workers'.
SUPERVISOR_ROW: Final = 0
SHARD_ROWS_FROM: Final = 1


class Board:
    """The shared memory as one process sees it. Survives forks; holds one descriptor, `fd`.

    `claim` and `fold` are the supervisor's alone; any process may take a `snapshot`.
    """

    def __init__(self, mapping: mmap.mmap, fd: int, shards_max: int) -> None:
        """Use `create()` or `attach()`."""
        self.fd = fd
        self.shards_max = shards_max
        self._mapping = mapping
        self._bytes = memoryview(mapping)
        self._words = self._bytes[: _directory_bytes(shards_max)].cast("Q")
        self._rows: dict[int, Row] = {}

    @classmethod
    def create(cls, shards_max: int) -> Board:
        """Makes a board with room for this many shards.

        Raises:
            SystemFault: the kernel has no memory, or no descriptor, for it.
        """
        try:
            fd = os.memfd_create("shardnet-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(fd, _board_bytes(shards_max))
                # Nobody opens it anew to write, by mistake; who has it open writes all the same.
                os.fchmod(fd, 0o400)
                # Truncating a memfd kills with SIGBUS whoever has it mapped.
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                mapping, fd = _map(fd)
            except OSError:
                os.close(fd)
                raise
        except OSError as exc:
            raise SystemFault(f"no shared memory for a board of {shards_max} shards: {exc.strerror}") from exc
        board = cls(mapping, fd, shards_max)
        board._words[AT_MAGIC] = MAGIC
        board._words[AT_LAYOUT_VERSION] = LAYOUT_VERSION
        board._words[AT_SHARDS_MAX] = shards_max
        for shard in range(shards_max):
            entry = board._entry(SHARD_ROWS_FROM + shard)
            entry[AT_ROLE], entry[AT_SHARD] = Role.SHARD, shard
        return board

    @classmethod
    def attach(cls, fd: int, *, readonly: bool = False) -> Board:
        """Maps the board behind a descriptor, which it takes over, or closes when it raises. `readonly`: to take
        snapshots of, and nothing else; the descriptor may be one that cannot be written to.

        Raises:
            SystemFault: what is behind it is no board, or one of another version's layout.
        """
        try:
            mapping, own_fd = _map(fd, mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as exc:
            with contextlib.suppress(OSError):  # It may not even have been open.
                os.close(fd)
            raise SystemFault(f"descriptor {fd} is no board: {exc}") from exc
        header = array.array("Q", mapping[: ENTRY_WORDS * CELL_BYTES].ljust(ENTRY_WORDS * CELL_BYTES, b"\0"))
        shards_max = header[AT_SHARDS_MAX]
        found = (header[AT_MAGIC], header[AT_LAYOUT_VERSION], len(mapping))
        if found != (MAGIC, LAYOUT_VERSION, _board_bytes(shards_max)):
            mapping.close()
            raise SystemFault(f"descriptor {fd} is no board of layout {LAYOUT_VERSION}")
        return cls(mapping, own_fd, shards_max)

    def claim(self, role: Role, shard: int, generation: int, incarnation: int, started_ns: int) -> int:
        """Takes a free row for a process about to start, and returns its number. `started_ns` is Unix time.

        Raises:
            SystemFault: every row is taken.
        """
        for index in self._rows_for(role):
            entry = self._entry(index)
            if entry[AT_ROLE] == Role.FREE:
                with self._changing():
                    entry[AT_SHARD] = shard
                    entry[AT_GENERATION] = generation
                    entry[AT_INCARNATION] = incarnation
                    entry[AT_STARTED] = started_ns
                    entry[AT_ROLE] = role
                return index
        raise SystemFault(f"every row of the board that a {role.name.lower()} may have is taken")

    def row(self, index: int) -> Row:
        """The row of that number. The caller is its owner, or only looks."""
        row = self._rows.get(index)
        if row is None:
            start = _directory_bytes(self.shards_max) + index * ROW_BYTES
            schema = self._bytes[start : start + SCHEMA_MAX_BYTES]
            cells = self._bytes[start + SCHEMA_MAX_BYTES : start + ROW_BYTES]
            row = self._rows[index] = Row(index, self._entry(index), schema, cells)
        return row

    def shard_row(self, shard: int) -> Row:
        """The shard's own row: the supervisor alone writes it."""
        return self.row(SHARD_ROWS_FROM + shard)

    def fold(self, index: int) -> int:
        """Adds the counters and histograms of a worker that has ended to those of its shard's row, and frees its row.

        The worker must be known to have ended: a process that still counts would count into the next one's row.
        Returns how many series were lost because the shard's row is full; 0 unless successive workers declare ever new
        metrics.
        """
        entry = self._entry(index)
        if entry[AT_ROLE] != Role.WORKER:
            raise InternalError(f"row {index} of the board is no worker's, and cannot be folded")
        kept = self.shard_row(entry[AT_SHARD])
        totals, lost = _totals(self.row(index), kept)
        # From here on readers wait, so all that could be worked out before has been.
        with self._changing():
            for cell, total in totals.items():
                kept.counts[cell] = total
            # Punched out of the memfd, a row is all zeros again, stray stores included, and costs nothing.
            start = _directory_bytes(self.shards_max) + index * ROW_BYTES
            self._mapping.madvise(mmap.MADV_REMOVE, start, ROW_BYTES)
            for word in range(ENTRY_WORDS):
                entry[word] = 0
        return lost

    def occupants(self) -> list[Occupant]:
        """Who has which row now: cheap, and for the supervisor exact; anyone else takes a snapshot."""
        entries = ((index, self._entry(index).tolist()) for index in range(_rows(self.shards_max)))
        return [
            Occupant(
                row=index,
                role=Role(entry[AT_ROLE]),
                shard=entry[AT_SHARD],
                generation=entry[AT_GENERATION],
                incarnation=entry[AT_INCARNATION],
                started_ns=entry[AT_STARTED],
                pid=entry[AT_PID],
                heartbeat_ns=entry[AT_HEARTBEAT],
            )
            for index, entry in entries
            if entry[AT_ROLE] != Role.FREE
        ]

    def snapshot(self) -> Snapshot:
        """What the board says now, every counter once.

        Raises:
            SystemFault: the supervisor stays in the middle of a change: it was killed, or stopped, there.
        """
        for _ in range(SNAPSHOT_ATTEMPTS):
            before = self._words[AT_SEQUENCE]
            if before % 2 == 0:
                images = [RowImage(o, *self.row(o.row).copy()) for o in self.occupants()]
                if self._words[AT_SEQUENCE] == before:
                    return summarise(images)
            else:
                time.sleep(SNAPSHOT_NAP_S)
        raise SystemFault("the board keeps changing; is the supervisor stopped?")

    def close(self) -> None:
        """Unmaps the board in this process. Every window taken from its rows must have been given up."""
        for row in self._rows.values():
            row.release()
        self._rows.clear()
        self._words.release()
        self._bytes.release()
        self._mapping.close()

    def _entry(self, index: int) -> memoryview:
        return self._words[(1 + index) * ENTRY_WORDS : (2 + index) * ENTRY_WORDS]

    def _rows_for(self, role: Role) -> range:
        match role:
            case Role.SUPERVISOR:
                return range(SUPERVISOR_ROW, SUPERVISOR_ROW + 1)
            case Role.WORKER:
                return range(SHARD_ROWS_FROM + self.shards_max, _rows(self.shards_max))
            case Role.FREE | Role.SHARD:
                raise InternalError(f"no process can have a {role.name.lower()} row")
            case _:
                assert_never(role)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self._words[AT_SEQUENCE] += 1
        try:
            yield
        finally:
            self._words[AT_SEQUENCE] += 1


def _totals(worker: Row, kept: Row) -> tuple[dict[int, int], int]:
    """What cells of the shard's row will hold with the worker's added, and how many series found no cell."""
    schema, counts = worker.copy()
    homes = {home: cell for declaration in kept.declarations() for home, cell in declaration.homes()}
    totals: dict[int, int] = {}
    lost = 0
    for declaration in parse_schema(schema, len(counts)):
        metric = declaration.metric
        if metric.kind is Kind.GAUGE:
            continue
        homeless = [values for values in declaration.label_values if (metric.series, values) not in homes]
        if homeless:
            try:
                first_cell = kept.declare(metric, homeless)
            except SystemFault:
                lost += len(homeless)
            else:
                homes |= dict(Declaration(metric, tuple(homeless), first_cell).homes())
        for values, cell in declaration.cells():
            home = homes.get((metric.series, values))
            if home is not None:
                for offset, cell_type in enumerate(metric.cell_types):
                    so_far = totals.get(home + offset, kept.counts[home + offset])
                    totals[home + offset] = add_cells(so_far, counts[cell + offset], cell_type)
    return totals, lost


def _rows(shards_max: int) -> int:
    return SHARD_ROWS_FROM + shards_max * (1 + WORKERS_PER_SHARD_MAX)


def _directory_bytes(shards_max: int) -> int:
    used = (1 + _rows(shards_max)) * ENTRY_WORDS * CELL_BYTES
    return -(-used // mmap.PAGESIZE) * mmap.PAGESIZE


def _board_bytes(shards_max: int) -> int:
    return _directory_bytes(shards_max) + _rows(shards_max) * ROW_BYTES


def _map(fd: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> tuple[mmap.mmap, int]:
    """Maps the file whole; returns the mapping, and the one descriptor that stays open for it in place of `fd`.

    A mapping keeps a duplicate of its descriptor to itself, and would close that number one day, whatever it stands
    for by then. After a fork descriptors are closed by number, so there had better be just one, and known.
    """
    duplicate = os.dup(fd)  # The lowest free number: the one that the mapping's own duplicate gets next.
    os.close(duplicate)
    mapping = mmap.mmap(fd, 0, prot=prot)
    if not os.path.samestat(os.fstat(duplicate), os.fstat(fd)):
        raise InternalError("a thread opened a file while the board was being mapped")
    os.close(fd)
    return mapping, duplicate
