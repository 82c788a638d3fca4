"""Where lines go: a file known by its path, or standard error.

A log that cannot be written never hurts the service: a line that the descriptor does not take at once (disk full,
reader gone, reader asleep) is dropped and counted, and the count is written when writing works again.

Several processes write one file: it is opened for appending, and a line is one write. A forked child of the
supervisor has lost the descriptor, whose number may stand for something else by now. So in a process that did not
open the file, the number is looked at before it is used.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from pathlib import Path
from typing import Final

from shardnet.log.formats import Format

STDERR: Final = 2
FILE_MODE: Final = 0o640  # Logs name peers: not for everybody.
# Without O_NONBLOCK, opening a FIFO that nobody reads would wait for a reader.
FILE_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# What POSIX promises to write whole to a pipe that polls writable: written in such pieces, a line never blocks.
PIECE_BYTES: Final = select.PIPE_BUF
REGULAR_PIECE_BYTES: Final = 1 << 30  # A regular file takes any line whole, and with nobody else's in between.


class Sink:
    """Writes lines, without ever blocking or raising.

    Raises `OSError` when it is made and its file cannot be opened.
    """

    def __init__(self, path: Path | None, shape: Format) -> None:
        self.path = path
        self.dropped = 0  # Lines lost since the beginning, whole or in part.
        self._shape = shape
        self._unreported = 0
        self._torn = False  # What was written last is the beginning of a line.
        self._fd = -1
        self._pid = 0
        self._identity: tuple[int, int, int] | None = None
        self._piece_bytes = PIECE_BYTES
        self._use(STDERR if path is None else os.open(path, FILE_FLAGS, FILE_MODE))

    def write(self, line: str, unix_s: float) -> None:
        """Write a line, newline included, or drop it; `unix_s` is the time of its event."""
        if self._pid != os.getpid():
            self._settle_in_child()
        if self._unreported:
            fields = {"count": self._unreported}
            if not self._put(self._shape(unix_s, "warning", "log", "lines dropped", fields, "")):
                self._drop()
                return
            self._unreported = 0
        if not self._put(line):
            self._drop()

    def reopen(self) -> None:
        """Go on in the file that has the path now, or will have: after a rotation, or a fork.

        Raises:
            OSError: It cannot be opened. The old file stays in use; or standard error, if that is gone as well.
        """
        if self.path is None:
            return
        is_ours = self._is_ours()  # Asked first: what is opened now may get the very number that a fork has closed.
        try:
            fd = os.open(self.path, FILE_FLAGS, FILE_MODE)
        except OSError:
            if not is_ours:
                self._use(STDERR)
            raise
        if self._fd != STDERR and is_ours:
            # In one step, and without a change of the number: another thread may be writing.
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
            fd = self._fd
        self._use(fd)

    def close(self) -> None:
        """Close the file; what is written afterwards is dropped."""
        if self._fd != STDERR and self._is_ours():
            os.close(self._fd)
            self._fd = -1

    def _use(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._identity = _identity(fd)
        self._piece_bytes = PIECE_BYTES
        if self._identity is not None and stat.S_ISREG(self._identity[2]):
            self._piece_bytes = REGULAR_PIECE_BYTES

    def _is_ours(self) -> bool:
        return self._fd >= 0 and _identity(self._fd) == self._identity

    def _settle_in_child(self) -> None:
        if self._fd == STDERR or self._is_ours():
            self._pid = os.getpid()
            return
        with contextlib.suppress(OSError):  # Then it writes to standard error; whoever calls `reopen` is told why.
            self.reopen()

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _put(self, line: str) -> bool:
        data = line.encode("utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        poll = select.poll()
        written = 0
        try:
            poll.register(self._fd, select.POLLOUT)
            while written < len(data):
                if not any(mask & select.POLLOUT for _, mask in poll.poll(0)):
                    break
                written += os.write(self._fd, data[written : written + self._piece_bytes])
        except (OSError, ValueError):
            pass  # ENOSPC, EPIPE, EAGAIN, EBADF, closed…: counted by the caller; there is nowhere left to say why.
        if written:
            self._torn = written < len(data)
        return written == len(data)


def _identity(fd: int) -> tuple[int, int, int] | None:
    """What tells the file behind a descriptor from every other; None if there is none."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mode
