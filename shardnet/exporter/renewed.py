"""What is made of files that may change while it is in use: certificates that are renewed, tokens that are rotated.

Whoever uses it asks for the value each time; the files are looked at then (a `stat` each), and read only when they have
changed. So nobody has to be told of a change, and none is noticed late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from shardnet.errors import ShardnetError
from shardnet.log import Log

__all__ = ["Renewed"]

T = TypeVar("T")

Mark = tuple[int, ...] | None


class Renewed(Generic[T]):
    """A value that `load` makes of the files at `paths`.

    While the files are no good, because they are replaced one after the other or by mistake, the last good value
    counts; the log says so once for each change.
    """

    def __init__(self, paths: tuple[Path, ...], load: Callable[[], T], log: Log) -> None:
        self._paths = paths
        self._load = load
        self._log = log
        self._value: T | None = None
        self._marks: tuple[Mark, ...] | None = None

    def value(self) -> T | None:
        """The value now; None when the files have been no good from the beginning."""
        marks = tuple(map(_mark, self._paths))  # Before they are read: a change meanwhile is seen the next time.
        if marks != self._marks:
            first, self._marks = self._marks is None, marks
            try:
                self._value = self._load()
            except ShardnetError as error:
                self._log.error("not usable", why=error, instead="nothing" if self._value is None else "what was there")
            else:
                if not first:
                    self._log.info("read anew", files=" ".join(map(str, self._paths)))
        return self._value


def _mark(path: Path) -> Mark:
    """Another one when the file has changed, or the link to it leads elsewhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
