"""The limit of open files, which is the limit of connections."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from shardnet.errors import SystemFault

RESERVED: Final = 64  # What a worker needs besides connections: its own descriptors, and some for the app.
SUPERVISOR_OWN: Final = 16  # Standard streams, epoll, wake-ups, board, exporter.
PER_WORKER: Final = 2  # A pidfd and a control end.
NR_OPEN: Final = Path("/proc/sys/fs/nr_open")
NR_OPEN_DEFAULT: Final = 1048576


def raise_file_limit() -> int:
    """Raise this process's soft limit, which its children inherit, to the hard one; the limit now in force.

    Where the kernel refuses, it stays as it was: a server with few connections is better than none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = _most_possible()
    if soft == resource.RLIM_INFINITY or soft >= hard:
        return hard if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    except (OSError, ValueError):  # EPERM is the latter: in a sandbox, or where fs.nr_open is below the hard limit.
        return soft
    return hard


def connections_within(file_limit: int, wanted: int | None) -> int:
    """How many connections a worker may have: what is wanted, or as many as the limit allows; at least 1."""
    possible = max(1, file_limit - RESERVED)
    return possible if wanted is None else min(wanted, possible)


def check_supervisor_fits(file_limit: int, shards: int, addresses: int) -> None:
    """Raises `SystemFault` when the supervisor could not hold so many listeners and workers."""
    needed = SUPERVISOR_OWN + shards * (addresses + PER_WORKER)
    if needed > file_limit:
        raise SystemFault(
            f"file limit {file_limit} is too low for {shards} shards: the supervisor needs {needed}; "
            "raise the hard limit (ulimit -Hn, LimitNOFILE=) or give fewer --workers"
        )


def _most_possible() -> int:
    """The kernel allows no process more, whatever its limit says."""
    try:
        return int(NR_OPEN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return NR_OPEN_DEFAULT
