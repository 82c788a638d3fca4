"""What the machine allows: CPUs to put things on, and open files."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

__all__ = ["Cpus", "choose_cpus", "raise_file_limit"]


@dataclass(frozen=True, slots=True)
class Cpus:
    """Where servers and load are; nowhere in particular when there is one CPU only."""

    server: int | None
    load: int | None


def choose_cpus(usable: set[int]) -> Cpus:
    """The first two of them."""
    first, *others = sorted(usable)
    return Cpus(first, others[0]) if others else Cpus(None, None)


def raise_file_limit(needed: int) -> int:
    """Let us and our children have so many open files, as far as may be; how many it is now, at most `needed`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        with contextlib.suppress(ValueError, OSError):  # Only root may.
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return needed if soft == resource.RLIM_INFINITY else min(soft, needed)
