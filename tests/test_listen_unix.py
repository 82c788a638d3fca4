"""Unix listeners: taken over from the dead, never from the living; with the rights that were asked for."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import select
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from shardnet.errors import SystemFault, UsageError
from shardnet.holder import with_holder
from shardnet.listen import AddressHeld, ListenerBank, SocketOptions, UnixAddress, parse_address
from shardnet.listen.address import UNIX_PATH_BYTES_MAX

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away, and can become nobody")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def banks() -> Iterator[list[ListenerBank]]:
    banks: list[ListenerBank] = []
    yield banks
    for bank in banks:
        bank.close()


def open_bank(banks: list[ListenerBank], path: Path, options: SocketOptions | None = None) -> ListenerBank:
    banks.append(ListenerBank.open([UnixAddress(path)], 2, options))
    return banks[-1]


def refused(path: Path, options: SocketOptions | None = None) -> str:
    """Why a bank on this path cannot be opened: one line."""
    with pytest.raises((UsageError, SystemFault)) as caught:
        ListenerBank.open([UnixAddress(path)], 2, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_answered(path: Path, bank: ListenerBank) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        bank.listeners(0)[0].accept()[0].close()
        return client.recv(1) == b""


def leave_dead_socket(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if kind is socket.SOCK_STREAM:
            sock.listen()
    return path.lstat().st_ino


def open_fds() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def fork(body: Callable[[], int]) -> int:
    """Run `body` in a child, which exits with what it returns; the child's pid."""
    pid = os.fork()
    if pid == 0:
        _exit_with(body)
    return pid


def _exit_with(body: Callable[[], int]) -> NoReturn:
    status = 99
    try:
        status = body()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def living_process(path: Path) -> Iterator[int]:
    """Some other program that listens on a path; its pid."""
    ready, say_ready = os.pipe()

    def listen() -> int:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        os.write(say_ready, b"!")
        signal.pause()
        return 0

    pid = fork(listen)
    assert os.read(ready, 1)
    os.close(ready)
    os.close(say_ready)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# Texts.


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/app.sock", "/run/app.sock"),
        ("unix:///run/app.sock", "/run/app.sock"),
        ("unix:/run/a:b=c.sock", "/run/a:b=c.sock"),
        ("unix:/run/größe", "/run/größe"),
        ("unix:./@name", f"{Path.cwd()}/@name"),
        ("unix:9000", f"{Path.cwd()}/9000"),
    ],
)
def test_path_is_parsed_and_made_absolute(text: str, path: str) -> None:
    address = parse_address(text)
    assert address == UnixAddress(Path(path))
    assert str(address) == f"unix:{path}"
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("unix:", "has no path: write unix:PATH"),
        ("unix:@abstract", "needs a path in the file system"),
        ("unix:\0abstract", "needs a path in the file system"),
        ("unix:/" + "x" * UNIX_PATH_BYTES_MAX, "the path has 108 bytes, a unix socket's at most 107"),
        ("unix:/" + "ß" * 54, "the path has 109 bytes"),
    ],
)
def test_wrong_path_is_refused_with_a_lesson(text: str, lesson: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert lesson in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relative_path_is_refused_where_the_current_directory_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="write the whole path"):
        parse_address("unix:app.sock")


def test_longest_path_is_listened_on(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / ("x" * (UNIX_PATH_BYTES_MAX - len(str(folder)) - 1))
    assert isinstance(parse_address(f"unix:{path}"), UnixAddress)
    assert is_answered(path, open_bank(banks, path))


# Opening and closing.


def test_one_listener_is_shared_by_all_shards(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "app.sock"
    bank = open_bank(banks, path)
    assert bank.shared == (True,)
    assert bank.listeners(0) == bank.listeners(1)
    [listener] = bank.listeners(0)
    assert not listener.getblocking()
    assert not listener.get_inheritable()
    assert listener.getsockname() == str(path)
    assert is_answered(path, bank)
    assert bank.backlog_effective is None


def test_child_keeps_the_shared_listener_whichever_shard_it_serves(folder: Path) -> None:
    path = folder / "app.sock"
    for shard in (0, 1):
        bank = ListenerBank.open([UnixAddress(path), parse_address("127.0.0.1:0")], 2)
        tcp = [bank.listeners(each)[1] for each in (0, 1)]
        bank.close_in_child(shard)
        assert is_answered(path, bank)
        assert [sock.fileno() >= 0 for sock in tcp] == [shard == 0, shard == 1]
        bank.close_in_child(None)
        assert bank.listeners(shard)[0].fileno() == -1
        assert path.exists(), "a child removes no path"


def test_close_removes_the_path_and_frees_the_address(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "app.sock"
    before = open_fds()
    bank = open_bank(banks, path)
    bank.close()
    assert not path.exists()
    assert open_fds() == before
    bank.close()
    open_bank(banks, path)


def test_close_leaves_what_somebody_else_has_put_there(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "app.sock"
    bank = open_bank(banks, path)
    path.unlink()
    leave_dead_socket(path)
    bank.close()
    assert path.is_socket()


def test_close_is_silent_when_the_path_is_gone(folder: Path) -> None:
    path = folder / "deeper" / "app.sock"
    path.parent.mkdir()
    bank = ListenerBank.open([UnixAddress(path)], 1)
    path.unlink()
    path.parent.rmdir()
    bank.close()


def test_failure_leaves_nothing(folder: Path) -> None:
    before = open_fds()
    addresses = [UnixAddress(folder / "app.sock"), UnixAddress(folder / "gone" / "app.sock")]
    with pytest.raises(SystemFault):
        ListenerBank.open(addresses, 2)
    assert open_fds() == before
    assert list(folder.iterdir()) == []


# Who was there before.


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_dead_socket_is_replaced(banks: list[ListenerBank], folder: Path, kind: socket.SocketKind) -> None:
    path = folder / "app.sock"
    leave_dead_socket(path, kind)
    assert is_answered(path, open_bank(banks, path))


def test_second_instance_is_refused_and_told_the_holder(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "app.sock"
    bank = open_bank(banks, path)
    with pytest.raises(AddressHeld) as caught:
        ListenerBank.open([UnixAddress(path)], 2)
    assert caught.value.holder_pid == os.getpid()
    assert str(caught.value).startswith(f"a shardnet on unix:{path} is already running, pid {os.getpid()}: ")
    assert is_answered(path, bank)


def test_second_instance_is_refused_under_another_name_of_the_folder(banks: list[ListenerBank], folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    bank = open_bank(banks, folder / "real" / "app.sock")
    (folder / "real" / "app.sock").unlink()  # Not even that lets the second in.
    with pytest.raises(AddressHeld, match="already running"):
        ListenerBank.open([UnixAddress(folder / "link" / "app.sock")], 2)
    assert bank.listeners(0)[0].fileno() >= 0


def test_living_owner_keeps_the_path_and_is_named(folder: Path) -> None:
    path = folder / "app.sock"
    with living_process(path) as pid:
        inode = path.lstat().st_ino
        with pytest.raises(AddressHeld) as caught:
            ListenerBank.open([UnixAddress(path)], 2)
        assert caught.value.holder_pid == pid
        assert str(caught.value).startswith(f"address unix:{path} is in use by pid {pid}: stop whoever listens")
        assert path.lstat().st_ino == inode


def test_living_owner_with_a_full_queue_keeps_the_path_and_is_named_by_a_search(folder: Path) -> None:
    path = folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as owner, contextlib.ExitStack() as clients:
        owner.bind(str(path))
        owner.listen(0)
        for _ in range(3):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(AddressHeld) as caught:
            ListenerBank.open([UnixAddress(path)], 2)
        assert caught.value.holder_pid is None
        assert with_holder(caught.value).endswith(f"(pid {os.getpid()})")


def test_living_datagram_socket_keeps_the_path(folder: Path) -> None:
    path = folder / "app.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as owner:
        owner.bind(str(path))
        with pytest.raises(AddressHeld, match="in use: "):
            ListenerBank.open([UnixAddress(path)], 2)
        assert path.is_socket()


def test_workers_without_their_supervisor_keep_the_path_until_they_are_gone(
    banks: list[ListenerBank], folder: Path
) -> None:
    """The lock vanishes with the supervisor, but its workers still serve for a moment."""
    path = folder / "app.sock"
    ready, say_ready = os.pipe()

    def supervise() -> int:
        bank = ListenerBank.open([UnixAddress(path)], 1)

        def work() -> int:
            bank.close_in_child(0)
            os.write(say_ready, str(os.getpid()).encode())
            signal.pause()
            return 0

        fork(work)
        signal.pause()
        return 0

    supervisor = fork(supervise)
    worker = int(os.read(ready, 100))
    pidfd = os.pidfd_open(worker)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    os.close(ready)
    os.close(say_ready)
    with pytest.raises(AddressHeld, match="is in use: ") as caught:
        ListenerBank.open([UnixAddress(path)], 1)
    assert with_holder(caught.value).endswith(f"(pid {worker})")
    os.kill(worker, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(10_000)
    os.close(pidfd)
    assert is_answered(path, open_bank(banks, path))


def test_of_many_starters_on_a_dead_socket_one_wins(folder: Path) -> None:
    """Without the lock, a starter removed the socket that another had just bound, and both thought that they serve."""
    path = folder / "app.sock"
    leave_dead_socket(path)
    go, say_go = os.pipe()
    wait, release = os.pipe()
    won, say_won = os.pipe()
    starters = 8

    def start() -> int:
        os.close(say_go)
        os.close(release)
        os.read(go, 1)
        answer = b"?"
        try:
            bank = ListenerBank.open([UnixAddress(path)], 1)
            answer = b"+"
        except AddressHeld:
            answer = b"-"
            return 5
        finally:
            os.write(say_won, answer)
        os.read(wait, 1)  # The end of the stream.
        bank.close()
        return 0

    pids = [fork(start) for _ in range(starters)]
    os.close(say_go)
    answers = b"".join(os.read(won, 1) for _ in range(starters))
    assert sorted(answers) == sorted(b"+" + b"-" * (starters - 1))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    os.close(release)
    assert sorted(status_of(pid) for pid in pids) == [0] + [5] * (starters - 1)
    assert not path.exists()
    for fd in (go, wait, won, say_won):
        os.close(fd)


# Paths that cannot be.


@pytest.mark.parametrize("what", ["file", "folder", "link", "dangling link", "link to a dead socket", "fifo"])
def test_what_is_no_socket_is_refused_and_left_alone(folder: Path, what: str) -> None:
    path = folder / "app.sock"
    match what:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "link":
            (folder / "target").write_text("precious")
            path.symlink_to("target")
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to a dead socket":
            leave_dead_socket(folder / "target")
            path.symlink_to("target")
        case "fifo":
            os.mkfifo(path)
    before = path.lstat()
    assert "what is there is no socket; remove it, or choose another path" in refused(path)
    assert path.lstat().st_ino == before.st_ino
    if what == "file":
        assert path.read_text() == "precious"


def test_missing_folder_is_said_so(folder: Path) -> None:
    path = folder / "gone" / "app.sock"
    assert refused(path) == f"cannot listen on unix:{path}: there is no folder {path.parent}; make it first"


def test_folder_that_is_none_is_said_so(folder: Path) -> None:
    (folder / "file").touch()
    assert "file is no folder" in refused(folder / "file" / "app.sock")


@needs_root
def test_folder_that_may_not_be_written_to_is_said_so(folder: Path) -> None:
    os.seteuid(NOBODY)
    try:
        line = refused(folder / "app.sock")
    finally:
        os.seteuid(0)
    assert f"{folder} may not be written to (Permission denied)" in line


@needs_root
def test_dead_socket_that_may_not_be_touched_is_said_so(folder: Path) -> None:
    path = folder / "app.sock"
    leave_dead_socket(path)
    path.chmod(0o600)
    os.seteuid(NOBODY)
    try:
        line = refused(path)
    finally:
        os.seteuid(0)
    assert "there is a socket of another user's" in line
    assert path.is_socket()


# Owner and mode.


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_is_what_was_asked_for_whatever_the_umask(
    banks: list[ListenerBank], folder: Path, mode: int, umask: int
) -> None:
    old = os.umask(umask)
    try:
        open_bank(banks, folder / "app.sock", SocketOptions(unix_mode=mode))
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "app.sock").stat().st_mode) == mode


def test_mode_is_left_to_the_umask_by_default(banks: list[ListenerBank], folder: Path) -> None:
    old = os.umask(0o027)
    try:
        open_bank(banks, folder / "app.sock")
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "app.sock").stat().st_mode) == 0o750


@needs_root
def test_socket_listens_only_when_it_has_its_rights(
    banks: list[ListenerBank], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it listens, nobody can connect: that is when owner and mode are set."""
    path = folder / "app.sock"
    seen: list[tuple[int, int, int]] = []
    listen = socket.socket.listen

    def look_and_listen(sock: socket.socket, backlog: int) -> None:
        if sock.getsockname() == str(path):
            found = path.stat()
            seen.append((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", look_and_listen)
    old = os.umask(0)
    try:
        open_bank(banks, path, SocketOptions(unix_mode=0o600, unix_owner=f"{NOBODY}:{NOBODY}"))
    finally:
        os.umask(old)
    assert seen == [(NOBODY, NOBODY, 0o600)]


@needs_root
@pytest.mark.parametrize(
    ("owner", "uid", "gid"),
    [
        (str(NOBODY), NOBODY, 0),
        (f"{NOBODY}:12345", NOBODY, 12345),
        (":12345", 0, 12345),
        (pwd.getpwuid(NOBODY).pw_name, NOBODY, 0),
        (f"{pwd.getpwuid(NOBODY).pw_name}:{grp.getgrgid(0).gr_name}", NOBODY, 0),
    ],
)
def test_owner_is_given_by_name_or_number(
    banks: list[ListenerBank], folder: Path, owner: str, uid: int, gid: int
) -> None:
    open_bank(banks, folder / "app.sock", SocketOptions(unix_owner=owner))
    found = (folder / "app.sock").stat()
    assert (found.st_uid, found.st_gid) == (uid, gid)


@pytest.mark.parametrize(
    ("options", "lesson"),
    [
        (SocketOptions(unix_owner="no-such-user"), "this machine has no user 'no-such-user'"),
        (SocketOptions(unix_owner="0:no-such-group"), "this machine has no group 'no-such-group'"),
        (SocketOptions(unix_owner=""), "names nobody"),
        (SocketOptions(unix_owner=":"), "names nobody"),
        (SocketOptions(unix_owner="0:"), "names nobody"),
        (SocketOptions(unix_owner="-1"), "no user '-1'"),
        (SocketOptions(unix_owner="4294967295"), "is no number of a user or group"),
        (SocketOptions(unix_owner="٣"), "is no number of a user or group"),
        (SocketOptions(unix_mode=0o1777), "unix mode 1777 is none from 0 to 777"),
        (SocketOptions(unix_mode=-1), "is none from 0 to 777"),
    ],
)
def test_wrong_owner_or_mode_is_refused_and_leaves_nothing(folder: Path, options: SocketOptions, lesson: str) -> None:
    assert lesson in refused(folder / "app.sock", options)
    assert list(folder.iterdir()) == []


@needs_root
def test_owner_that_only_root_may_give_is_said_so_and_leaves_nothing(folder: Path) -> None:
    folder.chmod(0o777)
    os.seteuid(NOBODY)
    try:
        line = refused(folder / "app.sock", SocketOptions(unix_owner="0"))
    finally:
        os.seteuid(0)
    assert "only root gives files away" in line
    assert list(folder.iterdir()) == []


@needs_root
def test_mode_keeps_others_out(banks: list[ListenerBank], folder: Path) -> None:
    path = folder / "app.sock"
    open_bank(banks, path, SocketOptions(unix_mode=0o660))

    def connect() -> int:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except PermissionError:
                return 13
        return 0

    assert status_of(fork(connect)) == 13
    path.chmod(0o666)
    assert status_of(fork(connect)) == 0
