"""`--watch`: a process that watches the sources, and asks its parent to reload (HUP) when one has changed.

A process of its own, because watching takes threads and the supervisor, which forks, must have none. It is forked
before anything is opened, keeps no descriptor but the standard streams and one end of a pipe, of which its parent holds
the other: when that is closed, the parent is gone, and the watch ends. It outlives an exec of its parent's, so that no
change in between is missed.

Lives here: which files count, watching them, telling. Must not live here: reloading.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never

from shardnet.childhood import close_others
from shardnet.errors import UsageError
from shardnet.log import Log, get_logger, reopen

__all__ = ["SourceWatch", "WatchOptions", "Watching", "start_watching"]

LOOK_MS: Final = 250  # How often a watch without news looks whether it is still wanted.
NAMED_MAX: Final = 3  # Of the files that changed together, a line names so many.
STANDARD_STREAMS: Final = (0, 1, 2)
INSTALLED: Final = ("stdlib", "platstdlib", "purelib", "platlib")


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What to watch for the sake of an app."""

    app: str  # module:name
    app_dir: Path
    config: Path | None  # The file that settings were read from.


class SourceWatch:
    """A running watch. Its parent has to `stop` it; or, before it executes itself anew, to let `fds` be inherited, and
    to make another one of them afterwards."""

    def __init__(self, pidfd: int, lifeline: int) -> None:
        # Once it is waited for, a pid is anybody's; a pidfd never. And that may be done by whoever reaps orphans.
        self.fds = (pidfd, lifeline)
        for fd in self.fds:
            os.set_inheritable(fd, False)

    def stop(self) -> None:
        """End it, and reap it if nobody has."""
        pidfd, _ = self.fds
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        for fd in self.fds:
            os.close(fd)


def start_watching(options: WatchOptions) -> SourceWatch:
    """Fork the process that watches. The caller has blocked HUP until it can take one.

    Raises:
        UsageError: watchfiles is not installed.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise UsageError("--watch needs the package watchfiles: pip install 'shardnet[watch]'")
    log = get_logger("sources")
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        log.warning("cannot reload: HUP is ignored, as nohup does")
    parent = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(options, parent, reader, log)
    os.close(reader)
    return SourceWatch(os.pidfd_open(pid), writer)  # Not waited for yet, so the pid is its own.


def _be_child(options: WatchOptions, parent: int, lifeline: int, log: Log) -> Never:
    """Never returns into the parent's stack."""
    status = 1
    try:
        # Sent to a whole terminal, or to all processes of a name: what they mean, the parent says.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, signal.SIG_IGN)
        for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        close_others({*STANDARD_STREAMS, lifeline})
        reopen()
        _watch(options, parent, lifeline, log)
        status = 0
    except Exception as error:  # No inotify instance left, for example: the server goes on without.
        log.error("watching ended, no more reloads", why=error)
    finally:
        os._exit(status)


def _watch(options: WatchOptions, parent: int, lifeline: int, log: Log) -> None:
    """Returns when the parent has let go of us."""
    import watchfiles  # Here alone, and late: nobody else needs it.

    roots = list(source_folders(options.app, options.app_dir))
    config = None if options.config is None else options.config.resolve()
    is_ignored = watchfiles.DefaultFilter()

    def counts(change: Any, path: str) -> bool:
        file = Path(path)
        if file != config and file.suffix != ".py":
            return False
        # Folders such as .venv are ignored below what is watched, not above.
        return any(is_ignored(change, f"/{file.relative_to(root)}") for root in roots if file.is_relative_to(root))

    changes = watchfiles.watch(
        *roots, watch_filter=counts, rust_timeout=LOOK_MS, yield_on_timeout=True, raise_interrupt=False
    )
    said = False
    for batch in changes:
        if select.select([lifeline], [], [], 0)[0]:  # Nothing is ever written to it: its end.
            return
        if not said:  # Only now is it certain that nothing is missed any more.
            log.info("watching", folders=", ".join(map(str, roots)))
            said = True
        paths = {Path(path) for _, path in batch}
        if paths:
            reopen()  # Nobody tells us that the log files have been renamed.
        if config in paths:  # They are read once, at the start.
            log.warning("settings have changed, restart to use them", file=options.config)
            paths.discard(config)
        if paths:
            log.info("source changed, reloading", files=_named(paths))
            os.kill(parent, signal.SIGHUP)


def _named(paths: Iterable[Path]) -> str:
    here = Path.cwd()
    names = sorted(str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths)
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def source_folders(app: str, app_dir: Path) -> Iterator[Path]:
    """The app's folder, and that of the app's package where it lies elsewhere and is not just installed."""
    root = app_dir.resolve()
    yield root
    sys.path.insert(0, str(root))
    package = app.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)  # Of a name without dots: imports nothing.
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec and spec.has_location and spec.origin and not places:
        places = [str(Path(spec.origin).parent)]
    installed = [Path(sysconfig.get_path(name)).resolve() for name in INSTALLED]
    for place in map(Path, places):
        folder = place.resolve()
        if folder.is_dir() and not any(folder.is_relative_to(known) for known in (root, *installed)):
            yield folder


class Watching:
    """The watching of sources, where it was asked for; `fds` are those of one that was begun by the program before."""

    def __init__(self, options: WatchOptions | None, fds: Sequence[int] = ()) -> None:
        self._options = options
        self._running = SourceWatch(*fds) if fds else None
        # By its .pyc a source that is saved twice within a second at the same size would pass for unchanged.
        sys.dont_write_bytecode = sys.dont_write_bytecode or options is not None

    @property
    def fds(self) -> tuple[int, ...]:
        return self._running.fds if self._running else ()

    def begin(self) -> None:
        if self._options is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # It may come before anybody can take it.
            self._running = start_watching(self._options)

    def end(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
