"""The program that this process runs, and running it again in place.

`os.execve` replaces the program and keeps the process: its pid, its children, the signals that are blocked or pending,
and every descriptor that is inheritable. The new program learns from one environment variable which descriptor holds,
as JSON, what the old one knew.

Lives here: executing, and what survives it. Must not live here: what is handed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never

from shardnet.errors import InternalError, SystemFault

__all__ = ["HANDOVER_FLAG", "Program", "handed_over"]

# Not one of SHARDNET_*, which are settings. It names a descriptor, and counts only in the process that was meant.
VARIABLE: Final = "_SHARDNET_STATE"
HANDOVER_FLAG: Final = "--handover-form"
CHECK_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Program:
    """How this process was started, before anybody's code could change anything about it."""

    arguments: tuple[str, ...]  # For the interpreter.
    own_arguments: int  # How many of them, at the end, are for the program.
    environment: dict[str, str]
    folder: Path | None  # None: it was gone already.

    @classmethod
    def own(cls) -> Program:
        """This process's. To be called at its start."""
        folder = None
        with contextlib.suppress(OSError):
            folder = Path.cwd()
        return cls(tuple(sys.orig_argv[1:]), len(sys.argv) - 1, dict(os.environ), folder)

    def check(self, form: str) -> None:
        """See whether the program that would be started takes over from this one, by asking it for `HANDOVER_FLAG`.

        An installation may be in the middle of an upgrade, or have become a version that cannot read what is handed
        over; and once the program is replaced, there is no way back.

        Raises:
            SystemFault: It does not start, or says another form than this one's.
        """
        import subprocess  # Here alone.

        arguments = self.arguments[: len(self.arguments) - self.own_arguments]
        try:
            answer = subprocess.run(
                [sys.executable, *arguments, HANDOVER_FLAG],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CHECK_S,
                check=True,
                text=True,
                errors="replace",
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError) as exc:
            raise SystemFault(f"this installation of shardnet does not start any more: {exc}") from exc
        if answer != form:
            raise SystemFault(
                f"the shardnet that is installed now cannot take over from this one (it says {answer[:100]!r}, not "
                f"{form!r}): restart the server"
            )

    def replace(self, state: dict[str, Any], fds: Collection[int]) -> Never:
        """Start over: the new program finds the state by `handed_over`, and these descriptors open.

        Raises:
            SystemFault: The kernel refused; nothing has changed.
        """
        try:
            with contextlib.ExitStack() as undo:
                memory = os.memfd_create("shardnet-state")
                undo.callback(os.close, memory)
                with os.fdopen(memory, "w", closefd=False, encoding="ascii") as file:
                    json.dump({"pid": os.getpid(), "state": state}, file)
                os.lseek(memory, 0, os.SEEK_SET)
                undo.callback(_set_inheritable, fds, False)
                _set_inheritable((*fds, memory), True)
                if self.folder is not None:
                    with contextlib.suppress(OSError):  # Gone, or closed to us by now: the old one will have to do.
                        os.chdir(self.folder)
                environment = {**self.environment, VARIABLE: str(memory)}
                os.execve(sys.executable, [sys.executable, *self.arguments], environment)
        except OSError as exc:
            raise SystemFault(f"cannot start over: {exc.strerror}") from exc


def handed_over() -> dict[str, Any] | None:
    """What the program before this one in this process had to say; None when there was none. Can be asked once.

    Raises:
        InternalError: It cannot be read.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        with os.fdopen(int(text), encoding="ascii") as file:
            fields = json.load(file)
        if fields["pid"] != os.getpid():
            return None  # A variable that got around: the descriptor was ours to close all the same.
        state: dict[str, Any] = fields["state"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InternalError(f"what {VARIABLE}={text} names cannot be read: {exc}") from exc
    return state


def _set_inheritable(fds: Collection[int], inheritable: bool) -> None:
    for fd in fds:
        os.set_inheritable(fd, inheritable)
