"""Log files: opening, rotation, many processes in one file; and the access log."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.errors import InternalError, SystemFault
from shardnet.log import LogHandler, LogOptions, access_log, get_logger, reopen, set_up


@pytest.fixture(autouse=True)
def clean_root() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LogHandler):
            root.removeHandler(handler)
            handler.close()
    logging.getLogger("shardnet").setLevel(logging.NOTSET)


def say(text: str) -> None:
    get_logger("worker").info(text)


def events(path: Path) -> list[str]:
    return re.findall(r'event="([^"]*)"', path.read_text())


def fds_in(folder: Path) -> list[int]:
    """The descriptors of this process that belong to files in a folder."""
    return sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir() if folder in entry.resolve().parents)


def run_in_child(body: Callable[[], None]) -> None:
    """Run `body` in a forked child that has lost every descriptor but the standard ones, as shardnet's children."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.closerange(3, 4096)
            root = logging.getLogger()
            root.handlers = [handler for handler in root.handlers if isinstance(handler, LogHandler)]  # Not pytest's.
            body()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Opening.


def test_file_is_appended_to_and_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "log"
    umask = os.umask(0)
    try:
        for text in ("one", "two"):
            set_up(LogOptions(file=path))
            say(text)
    finally:
        os.umask(umask)
    assert events(path) == ["one", "two"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_file_is_closed_by_the_next_set_up_and_not_inherited(tmp_path: Path) -> None:
    options = LogOptions(file=tmp_path / "log", access=True, access_file=tmp_path / "access")
    set_up(options)
    set_up(options)
    assert len(fds_in(tmp_path)) == 2
    assert not any(map(os.get_inheritable, fds_in(tmp_path)))
    set_up(LogOptions())
    assert fds_in(tmp_path) == []


def test_file_that_cannot_be_opened_is_one_error_and_nothing_stays_open(tmp_path: Path) -> None:
    with pytest.raises(SystemFault, match=r"^cannot open log file .*/gone/log: No such file or directory; its folder"):
        set_up(LogOptions(file=tmp_path / "gone" / "log"))
    with pytest.raises(SystemFault, match="Is a directory"):
        set_up(LogOptions(file=tmp_path / "log", access=True, access_file=tmp_path))
    assert fds_in(tmp_path) == []


def test_fifo_that_nobody_reads_is_an_error_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SystemFault, match="fifo: No such device or address"):
        set_up(LogOptions(file=tmp_path / "fifo"))


def test_relative_path_means_the_folder_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_up(LogOptions(file=Path("log")))
    monkeypatch.chdir("/")
    (tmp_path / "log").rename(tmp_path / "log.1")
    reopen()
    say("here")
    assert events(tmp_path / "log") == ["here"]


# Rotation.


def test_reopen_goes_on_in_a_new_file_of_the_same_name(tmp_path: Path) -> None:
    path, rotated, access = tmp_path / "log", tmp_path / "log.1", tmp_path / "access"
    options = LogOptions(file=path, access=True, access_file=access)
    set_up(options)
    log = access_log(options)
    assert log is not None
    fds = fds_in(tmp_path)
    assert len(fds) == 2
    say("before")
    log.closed("p", "l", 1, 0, 0, 0.0, "eof")
    path.rename(rotated)
    access.rename(tmp_path / "access.1")
    say("between")
    reopen()
    say("after")
    log.closed("p", "l", 2, 0, 0, 0.0, "eof")
    assert events(rotated) == ["before", "between"]
    assert events(path) == ["after"]
    assert re.findall(r"connection=(\d)", access.read_text()) == ["2"]
    assert fds_in(tmp_path) == fds
    assert not any(map(os.get_inheritable, fds))


def test_reopen_keeps_the_old_file_when_the_folder_is_gone(tmp_path: Path) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    set_up(LogOptions(file=folder / "log"))
    folder.rename(moved)
    reopen()
    say("kept")
    assert events(moved / "log") == ["cannot reopen log file", "kept"]
    assert f'file={folder / "log"} why="No such file or directory"' in (moved / "log").read_text()
    folder.mkdir()
    reopen()
    say("new")
    assert events(folder / "log") == ["new"]


def test_reopen_loses_no_line_of_another_thread(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = set_up(LogOptions(file=path))
    lines = 2000

    def write() -> None:
        for number in range(lines):
            say(f"line {number}")

    writer = threading.Thread(target=write)
    writer.start()
    rotations = 0
    while writer.is_alive():
        path.rename(tmp_path / f"log.{rotations}")
        reopen()
        rotations += 1
    writer.join()
    written = [event for file in tmp_path.iterdir() for event in events(file)]
    assert sorted(written) == sorted(f"line {number}" for number in range(lines))
    assert handler.dropped == 0


def test_reopen_before_any_set_up_does_nothing() -> None:
    reopen()


# Children.


def test_forked_child_reopens_what_it_has_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    set_up(LogOptions(file=path))

    def child() -> None:
        reopen()
        say("child")

    run_in_child(child)
    say("parent")
    assert events(path) == ["child", "parent"]


@pytest.mark.parametrize("first", ["say", "reopen"])
def test_forked_child_spares_the_file_that_has_inherited_the_number(tmp_path: Path, first: str) -> None:
    """What had the log's number was written into, or closed: the board, or somebody's connection."""
    path, victim = tmp_path / "log", tmp_path / "victim"
    victim.touch()
    set_up(LogOptions(file=path))

    def child() -> None:
        taken = [os.open(victim, os.O_WRONLY) for _ in range(200)]
        if first == "reopen":
            reopen()
        say("child")
        for fd in taken:
            os.fstat(fd)
            os.close(fd)

    run_in_child(child)
    assert events(path) == ["child"]
    assert victim.read_bytes() == b""


def test_forked_child_may_get_the_same_number_again(tmp_path: Path) -> None:
    """It was taken for a file that had stayed open, copied onto itself, and the kernel's refusal logged: an error line
    for each worker of every server that had a log file and no metrics."""
    path = tmp_path / "log"
    set_up(LogOptions(file=path))
    (number,) = fds_in(tmp_path)

    def child() -> None:
        while (fd := os.open(os.devnull, os.O_RDONLY)) < number:
            pass
        os.close(fd)
        reopen()
        assert fds_in(tmp_path) == [number]
        say("child")

    run_in_child(child)
    assert events(path) == ["child"]


def test_forked_child_that_cannot_open_the_file_writes_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    set_up(LogOptions(file=folder / "log"))
    folder.rename(tmp_path / "moved")

    def child() -> None:
        reopen()
        say("here")
        folder.mkdir()
        reopen()
        say("there")

    run_in_child(child)
    err = capfd.readouterr().err
    assert 'event="cannot reopen log file"' in err
    assert 'event="here"' in err
    assert events(folder / "log") == ["there"]


def test_child_that_kept_its_descriptors_goes_on_in_the_same_file(tmp_path: Path) -> None:
    """As a process of the app's own: it may have no right to open the file anew."""
    path = tmp_path / "log"
    set_up(LogOptions(file=path))
    path.rename(tmp_path / "moved")
    pid = os.fork()
    if pid == 0:
        try:
            say("child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert events(tmp_path / "moved") == ["child"]
    assert not path.exists()


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    set_up(LogOptions(file=path, format="json"))
    processes, lines = 4, 200
    pids = []
    for process in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                os.closerange(3, 4096)
                reopen()
                for number in range(lines):
                    get_logger("worker", process=process).info("long", number=number, text="x" * 10_000)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for process in range(processes):
        assert [entry["number"] for entry in entries if entry["process"] == process] == list(range(lines))


# The access log.


def test_access_line_says_what_a_connection_was(tmp_path: Path) -> None:
    options = LogOptions(level="error", file=tmp_path / "log", access=True)
    set_up(options)
    log = access_log(options, shard=0, generation=1)
    assert log is not None
    log.closed("127.0.0.1:5000", "unix:/run/app.sock", 17, 10, 2048, 1.25, "eof")
    log.closed("", "*:9000", 18, 0, 0, 0.0, "reset by peer")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(
        r"\S+Z info access peer=127\.0\.0\.1:5000 listener=unix:/run/app\.sock connection=17 received_bytes=10 "
        r"sent_bytes=2048 duration_s=1\.250 reason=eof shard=0 generation=1",
        first,
    )
    assert ' peer="" listener=*:9000 ' in second
    assert ' reason="reset by peer" ' in second


def test_access_line_as_json(tmp_path: Path) -> None:
    options = LogOptions(format="json", access=True, access_file=tmp_path / "access")
    set_up(options)
    log = access_log(options, shard=2, generation=1)
    assert log is not None
    log.closed("[::1]:5000", "[::]:9000", 1, 10, 20, 0.5, "eof")
    entry = json.loads((tmp_path / "access").read_text())
    assert entry.pop("time")
    assert entry == {
        "level": "info",
        "who": "access",
        "peer": "[::1]:5000",
        "listener": "[::]:9000",
        "connection": 1,
        "received_bytes": 10,
        "sent_bytes": 20,
        "duration_s": 0.5,
        "reason": "eof",
        "shard": 2,
        "generation": 1,
    }


def test_access_log_in_the_logs_own_file_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = LogOptions(file=path, access=True, access_file=path)
    handler = set_up(options)
    assert len(handler.sinks) == 1


def test_access_log_counts_what_it_drops_and_never_raises() -> None:
    options = LogOptions(access=True, access_file=Path("/dev/full"))
    handler = set_up(options)
    log = access_log(options)
    assert log is not None
    log.closed("p", "l", 1, 0, 0, 0.0, "eof")
    assert handler.dropped == 1


def test_access_log_is_none_when_off() -> None:
    options = LogOptions()
    set_up(options)
    assert access_log(options) is None


def test_access_log_needs_the_log_to_be_set_up() -> None:
    with pytest.raises(InternalError, match="before the log was set up"):
        access_log(LogOptions(access=True))
