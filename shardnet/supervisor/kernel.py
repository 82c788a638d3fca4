"""What a supervisor cannot do without, asked of the kernel before anything is opened."""

from __future__ import annotations

import os
import signal

from shardnet.errors import SystemFault

__all__ = ["check_kernel"]


def check_kernel() -> None:
    """Raises `SystemFault` where processes cannot be held by descriptors: an old kernel, or a seccomp filter."""
    call = "pidfd_open"
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            call = "pidfd_send_signal"
            signal.pidfd_send_signal(pidfd, 0)  # 0: only look whether it could be sent
            call = "waitid"
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        finally:
            os.close(pidfd)
    except ChildProcessError:
        return  # It has understood: we are no child of ours.
    except OSError as exc:
        raise SystemFault(
            f"the kernel refuses {call} ({exc.strerror}): Linux 5.10 has it; a seccomp filter must allow it"
        ) from exc
