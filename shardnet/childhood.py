"""What a forked child does about what it has of its parent's: descriptors, buffers, functions to call at the end.

Lives here: each of these by itself. Must not live here: their order (see `supervisor.system`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

__all__ = ["close_others", "flush_streams", "open_descriptors", "run_exit_functions"]

EXIT_FUNCTIONS_S: Final = 0.5  # For all of a child's exit functions: well within the patience that kills it otherwise.
OWN_DESCRIPTORS: Final = Path("/proc/self/fd")


def open_descriptors() -> set[int]:
    """Every descriptor of this process."""
    return {fd for fd in _listed() if _is_open(fd)}


def close_others(keep: Collection[int]) -> None:
    """Close every descriptor of this process but these."""
    for fd in _listed().difference(keep):
        with contextlib.suppress(OSError):  # The one that listed them is closed already.
            os.close(fd)


def _listed() -> set[int]:
    """Every descriptor, and the one that listed them, which is closed by now."""
    return {int(entry.name) for entry in OWN_DESCRIPTORS.iterdir()}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def run_exit_functions(code: int) -> None:
    """What the interpreter does at its end and `os._exit` does not: executors end the processes that they have
    started, which would stay for ever, with our listeners if they were forked; and atexit. Not for ever: there may be a
    thread that does not end."""
    flush_streams()
    give_up = threading.Timer(EXIT_FUNCTIONS_S, os._exit, (code,))
    give_up.daemon = True
    with contextlib.suppress(RuntimeError):  # No thread can be started, and so nothing that might take for ever.
        give_up.start()
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does in its forked children
        atexit._run_exitfuncs()


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Closed, a pipe without a reader, or none at all: what was printed is lost, and nobody is there to tell.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
