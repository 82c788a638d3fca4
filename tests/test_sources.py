"""The watch of `--watch`, with a stand-in for the supervisor: a program that waits for HUP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shardnet.sources import source_folders
from shardnet.testing.output import Output

# Holds what no child of it may hold; says that HUP came, and which descriptors the watch has; ends it when told to.
SUPERVISOR: Final = '''
import os, signal, socket, sys
from pathlib import Path
from shardnet.log import LogOptions, set_up
from shardnet.sources import WatchOptions, start_watching

EXECUTED = """
import signal, sys
from shardnet.sources import SourceWatch
watch = SourceWatch(*map(int, sys.argv[1:]))
print("executed", flush=True)
signal.sigwait({signal.SIGHUP})
watch.stop()
print("stopped", flush=True)
"""
set_up(LogOptions())
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM})
listener = socket.create_server(("127.0.0.1", 0))
os.set_inheritable(listener.fileno(), True)
config = Path("shardnet.toml")
watch = start_watching(WatchOptions("app:handler", Path("."), config))
(pid,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print("watch", pid, flush=True)
while (signum := signal.sigwait({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM})) != signal.SIGTERM:
    if signum == signal.SIGUSR2:
        for fd in watch.fds:
            os.set_inheritable(fd, True)
        os.execv(sys.executable, [sys.executable, "-c", EXECUTED, *map(str, watch.fds)])
    elif signum == signal.SIGHUP:
        print("HUP", flush=True)
    else:
        print("held", *(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()), flush=True)
watch.stop()
print("stopped", Path(f"/proc/{pid}").exists(), flush=True)
'''
SAID_S: Final = 10.0


class Watched:
    """The stand-in, and the folder that it watches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output = Output(stdout=self.process.stdout, stderr=self.process.stderr)
        self.pid = int(self.wait(r"^watch (\d+)")[1])
        self.wait('event="watching"')

    def wait(self, pattern: str) -> re.Match[str]:
        return self.output.wait(pattern, SAID_S)

    def lines(self, word: str) -> list[str]:
        return [line for line in self.output.lines() if word in line]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.output.wait_closed(SAID_S), "the watch outlives its parent"


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    for folder in (".venv", "package"):
        (tmp_path / folder).mkdir()
    watched = Watched(tmp_path)
    yield watched
    watched.end()


def test_watch_says_where_and_tells_of_a_changed_source(watched: Watched) -> None:
    assert str(watched.folder) in watched.lines('event="watching"')[0]
    (watched.folder / "package" / "module.py").write_text("changed = True\n")
    watched.wait("^HUP")
    watched.wait("source changed.*files=package/module.py")


def test_watch_tells_of_a_source_that_is_replaced_or_removed(watched: Watched) -> None:
    """Editors write a file anew and rename it into place."""
    (watched.folder / "new.tmp").write_text("new = True\n")
    (watched.folder / "new.tmp").rename(watched.folder / "app.py")
    watched.wait(r"files=app\.py$")
    (watched.folder / "app.py").rename(watched.folder / "package" / "other.py")
    watched.wait(r"files=.*package/other\.py")


def test_watch_cares_for_sources_alone(watched: Watched) -> None:
    for name in ("notes.txt", ".venv/module.py", "data.json", "app.pyc", "shardnet.toml"):
        (watched.folder / name).write_text("changed\n")
    watched.wait("settings have changed, restart to use them")
    (watched.folder / "app.py").write_text("changed = True\n")
    watched.wait("^HUP")
    watched.wait("source changed")  # It comes through another pipe.
    (line,) = watched.lines("source changed")
    assert line.endswith("files=app.py")


def test_watch_holds_nothing_of_its_parents(watched: Watched) -> None:
    watched.process.send_signal(signal.SIGUSR1)
    assert "socket:" not in watched.wait("^held (.*)")[1]


def test_watch_is_left_alone_by_the_terminal(watched: Watched) -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        os.kill(watched.pid, signum)
    (watched.folder / "app.py").write_text("changed = True\n")
    watched.wait("^HUP")


def test_watch_ends_when_it_is_stopped(watched: Watched) -> None:
    watched.process.send_signal(signal.SIGTERM)
    watched.wait("^stopped False")


def test_stop_is_content_when_the_watch_has_ended_already(watched: Watched) -> None:
    os.kill(watched.pid, signal.SIGKILL)
    watched.process.send_signal(signal.SIGTERM)
    watched.wait("^stopped False")


def test_watch_ends_when_its_parent_is_killed(watched: Watched) -> None:
    watched.process.kill()
    assert watched.output.wait_closed(SAID_S)


def test_watch_outlives_an_exec_of_its_parent(watched: Watched) -> None:
    """A watch that ended, for the new program to begin another, missed what was saved in between."""
    watched.process.send_signal(signal.SIGUSR2)
    watched.wait("^executed")
    (watched.folder / "app.py").write_text("changed = True\n")
    watched.wait("^stopped")


# What is watched.


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """sys.path, to be changed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return sys.path


def _module(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return file


def test_folders_are_the_apps_alone_when_its_package_is_inside(tmp_path: Path, path: list[str]) -> None:
    _module(tmp_path, "watched_package/__init__.py")
    assert list(source_folders("watched_package.chat:handler", tmp_path)) == [tmp_path]


@pytest.mark.parametrize("name", ["watched_elsewhere/__init__.py", "watched_elsewhere.py"])
def test_folders_include_that_of_a_package_elsewhere(tmp_path: Path, path: list[str], name: str) -> None:
    file = _module(tmp_path / "lib", name)
    (tmp_path / "app").mkdir()
    path.append(str(tmp_path / "lib"))
    assert list(source_folders("watched_elsewhere:handler", tmp_path / "app")) == [tmp_path / "app", file.parent]


@pytest.mark.parametrize("app", ["json:loads", "pytest:main", "no_such_module_anywhere:handler", "sys:exit"])
def test_folders_leave_out_what_is_installed_or_nowhere(tmp_path: Path, path: list[str], app: str) -> None:
    assert list(source_folders(app, tmp_path)) == [tmp_path]
