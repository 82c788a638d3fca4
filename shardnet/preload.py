"""`--preload`: the app is imported once, by the supervisor, and the workers are forked from what that made.

They share its memory for as long as nobody writes to it. The garbage collector would: so it is off during the import,
and what there is afterwards is frozen, that is, never looked at again.

Lives here: importing for others to fork from. Must not live here: forking, and what a worker does with an app.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shardnet.app import Handler, load
from shardnet.errors import AppError

__all__ = ["Preloaded", "ThreadsLeft", "preload"]

OWN_DESCRIPTORS: Final = Path("/proc/self/fd")
OWN_THREADS: Final = Path("/proc/self/task")


class ThreadsLeft(AppError):
    """The import has started threads. A fork copies none of them, but whatever lock they hold stays locked."""


@dataclass(frozen=True, slots=True)
class Preloaded:
    """An app as its import has left it."""

    handler: Handler
    descriptors: frozenset[int]  # That the import has opened: files, most likely, and every worker is to have them.
    exit_functions: tuple[Callable[[], object], ...]

    def enter_worker(self) -> Handler:
        """In a worker: let the app's exit functions be called at this process's exit. Returns the handler."""
        for function in self.exit_functions:
            atexit.register(function)
        return self.handler


def preload(app: str, app_dir: Path) -> Preloaded:
    """Import the app, to fork from. Must be called where no other thread runs.

    Raises:
        ThreadsLeft: It cannot be forked from.
        AppError: It cannot be loaded.
    """
    before = _descriptors()
    gc.disable()
    try:
        with _exit_functions_kept() as exit_functions:
            handler = load(app, app_dir)
        # Also those that are none of Python's.
        threads = max(threading.active_count(), sum(1 for _ in OWN_THREADS.iterdir())) - 1
        if threads:
            noun = "a thread" if threads == 1 else f"{threads} threads"
            raise ThreadsLeft(
                f"{app}: importing it started {noun}, so that no worker can be forked from it: "
                "start them in a lifespan, or go without --preload"
            )
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()
    return Preloaded(handler, frozenset(_descriptors() - before), tuple(exit_functions))


@contextlib.contextmanager
def _exit_functions_kept() -> Iterator[list[Callable[[], object]]]:
    """Keep what is registered for the exit: it is meant for that of the processes that serve."""
    kept: list[Callable[[], object]] = []
    register = atexit.register

    def keep(function: Callable[..., object], /, *arguments: Any, **named: Any) -> Callable[..., object]:
        kept.append(lambda: function(*arguments, **named))
        return function

    atexit.register = keep  # type: ignore[assignment]
    try:
        yield kept
    finally:
        atexit.register = register


def _descriptors() -> set[int]:
    found = {int(entry.name) for entry in OWN_DESCRIPTORS.iterdir()}
    return {fd for fd in found if _is_open(fd)}  # Not the one that listed them.


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
