"""`--preload`: the app is imported once, by the supervisor, and the workers are forked from what that made.

They share its memory for as long as nobody writes to it. The garbage collector would: so it is off during the import,
and what there is afterwards is frozen, that is, never looked at again.

While it imports, the supervisor supervises nobody, and an import may hang: on a database that is not there, say. So its
time is limited, and whoever asks the server to stop ends it.

Lives here: importing for others to fork from. Must not live here: forking, and what a worker does with an app.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from shardnet.app import Handler, load
from shardnet.childhood import open_descriptors
from shardnet.errors import AppError

__all__ = ["ImportStopped", "Preloaded", "preload"]

OWN_THREADS: Final = Path("/proc/self/task")
STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
NOTED: Final = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU})
# What the import executes inherits what is blocked. (That children end is looked for anyway, after this.)
UNBLOCKED: Final = STOPS | NOTED | {signal.SIGALRM, signal.SIGCHLD}
AGAIN_S: Final = 1.0  # An import that takes being cut for an error of its own, and goes on, is cut again.


class ImportStopped(AppError):
    """Somebody has asked the server to stop while it imported. The signal is pending again."""


class _Cut(BaseException):
    """Raised into an import that is to end."""


@dataclass(slots=True)
class _Cuts:
    """The signals that have come during an import, and cut it but for those that can wait."""

    signals: set[int]

    def on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.signals.add(signum)
        if signum in NOTED:
            return
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
        raise _Cut


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


def preload(app: str, app_dir: Path, timeout_s: float) -> Preloaded:
    """Import the app, to fork from. Must be called in the main thread, where no other runs, with STOPS and NOTED
    blocked: what comes of them is pending afterwards.

    Raises:
        ImportStopped: TERM, INT or QUIT came first.
        AppError: It cannot be loaded, takes longer than `timeout_s`, or cannot be forked from.
    """
    before = open_descriptors()
    cuts = _Cuts(set())
    gc.disable()
    try:
        with _exit_functions_kept() as exit_functions, _limited(cuts, timeout_s):
            handler = load(app, app_dir)
        _refuse_threads(app)
        gc.collect()
        gc.freeze()
    except (AppError, _Cut) as error:
        if cuts.signals & STOPS:
            raise ImportStopped(f"{app}: asked to stop while importing it") from error
        if signal.SIGALRM in cuts.signals:
            text = f"{app}: importing it took longer than {timeout_s:g} s, which is --boot-timeout"
            raise AppError(text) from (error.__cause__ or error)
        raise
    finally:
        gc.enable()
    return Preloaded(handler, frozenset(open_descriptors() - before), tuple(exit_functions))


@contextlib.contextmanager
def _limited(cuts: _Cuts, timeout_s: float) -> Iterator[None]:
    """Let a signal to stop, and the time, cut what is done in here."""
    on_signal = cuts.on_signal
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # nohup was asked for.
    heard = (STOPS | NOTED) - ignored
    old = {signum: signal.signal(signum, on_signal) for signum in heard | {signal.SIGALRM}}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s, AGAIN_S)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, UNBLOCKED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for signum, handler in old.items():
            if signal.getsignal(signum) == on_signal:  # Otherwise it is the app's by now.
                signal.signal(signum, handler)
        for again in cuts.signals & heard:
            os.kill(os.getpid(), again)


def _refuse_threads(app: str) -> None:
    """A fork copies none of them, but whatever lock they hold stays locked."""
    # Also those that are none of Python's.
    threads = max(threading.active_count(), sum(1 for _ in OWN_THREADS.iterdir())) - 1
    if threads:
        noun = "a thread" if threads == 1 else f"{threads} threads"
        raise AppError(
            f"{app}: importing it started {noun}, so that no worker can be forked from it: "
            "start them in a lifespan, or go without --preload"
        )


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
