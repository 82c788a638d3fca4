"""How much memory a process has."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["proportional_bytes"]


def proportional_bytes(pid: int) -> int | None:
    """The process's proportional set size: its own pages, and of shared ones its part. None where the kernel does not
    tell: it is gone, or another user's. (proc_pid_smaps_rollup in proc(5); the unit there, kB, is 1024 bytes.)"""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return None
