"""The `write` that asyncio's handlers call for each message: compiled, under the classes of asyncio that are not.

Lives here: what is the same for transport and writer. Must not live here: what either does when there is more to it.
"""

from __future__ import annotations

from typing import Any, Final

from shardnet.connection.stream import Stream

LATE: Final = 0  # Not written: the connection is not open any more, or `data` is of no type for it.
SENT: Final = 1
QUEUED: Final = 2  # Something is unsent.


class Writing:
    """A base that has no fields, as it has to fit beside another one. The connection is in `_conn`."""

    __slots__ = ()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        outcome = _write(self._conn, data)  # type: ignore[attr-defined]  # a field of the subclass
        if outcome == LATE:
            self._write_late(data)
        elif outcome == QUEUED:
            self.note_unsent()

    def _write_late(self, data: Any) -> None:
        """What there is to say about a write that was none."""
        raise NotImplementedError

    def note_unsent(self) -> None:
        """Something is unsent: pause whoever writes, if it is too much."""
        raise NotImplementedError


def _write(conn: Stream, data: Any) -> int:
    if not conn.write_plainly(data):
        return LATE
    return QUEUED if conn.unsent_bytes else SENT
