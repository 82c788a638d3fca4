"""To whom a watcher belongs: one thread of one process.

After a fork the child has a copy of everything, but what was registered with the kernel is shared: a child that tidied
up would take the parent's registrations with it. That a fork has happened is known from the fork itself; asking for
the pid would be a system call in each operation.
"""

from __future__ import annotations

import os
import threading

_forks = 0  # Of this process and its ancestors.


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class _Here(threading.local):
    """A mark for each thread. (The kernel's and Python's numbers of threads are used again.)"""

    def __init__(self) -> None:
        self.mark = object()


_here = _Here()


class Owner:
    """The thread and the process that made it, and whether a call of theirs is under way.

    A signal handler, or whatever the garbage collector runs, may come in the middle of a call. What it finds there is
    half done, so what it asks for has to wait for the end, or is refused.
    """

    __slots__ = ("_forks", "_mark", "_thread", "busy")

    def __init__(self) -> None:
        self._thread = threading.current_thread()
        self._mark = _here.mark
        self._forks = _forks
        self.busy = False

    def check(self) -> None:
        """Raise `RuntimeError` when the caller is somebody else."""
        if self._mark is not _here.mark:
            raise RuntimeError("a watcher belongs to the thread that made it")
        self.check_process()
        if self.busy:
            raise RuntimeError("a signal handler or a finalizer may call wake() and close() of a watcher, nothing else")

    def check_process(self) -> None:
        if self._forks != _forks:
            raise RuntimeError("a watcher belongs to the process that made it: after a fork, make another")

    @property
    def forked(self) -> bool:
        """Whether this is a child of the owner."""
        return self._forks != _forks

    @property
    def here(self) -> bool:
        """Whether the caller is the owner, or may stand in for him because his thread has ended."""
        return self._mark is _here.mark or not self._thread.is_alive()
