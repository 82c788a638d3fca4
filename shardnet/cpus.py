"""How many CPUs this process may use: what `--workers auto` means.

Both limits count: the CPUs the scheduler lets us run on (taskset, cpusets) and the CPU time a control group
grants (containers: `docker run --cpus 1.5`). A quota that is no whole number is rounded up: a worker too many
idles, a worker too few leaves paid time unused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["cpus_to_pin_to", "usable_cpus"]

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")
V1_CONTROLLERS: Final = ("cpu,cpuacct", "cpu")  # Where version 1 is mounted; distributions differ.


def usable_cpus(*, cgroup_root: Path = CGROUP_ROOT, own_cgroup: Path = OWN_CGROUP) -> int:
    """The number of CPUs worth having a worker each, at least 1.

    Args:
        cgroup_root: Where the control groups are mounted.
        own_cgroup: The file that says which groups this process is in.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = min(_quotas(cgroup_root, own_cgroup), default=math.inf)
    return math.ceil(quota) if quota < cpus else cpus


def cpus_to_pin_to() -> tuple[int, ...]:
    """The CPUs that this process may run on, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def _quotas(cgroup_root: Path, own_cgroup: Path) -> Iterator[float]:
    """Every CPU quota that binds this process, in CPUs: its groups' and their parents', of either version."""
    for line in _read(own_cgroup).splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if not controllers:
            yield from (_quota_v2(group) for group in _upwards(cgroup_root, path))
        elif "cpu" in controllers.split(","):
            for name in V1_CONTROLLERS:
                yield from (_quota_v1(group) for group in _upwards(cgroup_root / name, path))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group at `path` and its parents up to `root`.

    Inside a container the path may be the host's while `root` is already the container's own group; then only
    the root exists, and that is the one that counts.
    """
    group = root / path.lstrip("/")
    while group != root and root in group.parents:
        yield group
        group = group.parent
    yield root


def _quota_v2(group: Path) -> float:
    """`cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
    words = _read(group / "cpu.max").split()
    return _ratio(words[0], words[1]) if len(words) == 2 else math.inf


def _quota_v1(group: Path) -> float:
    """`cpu.cfs_quota_us` is -1 where there is no limit."""
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf
    return cpus if cpus > 0 else math.inf


def _read(path: Path) -> str:
    """A file's text; nothing where the kernel offers no such file."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
