"""The socket at which an operator's commands reach a server: where it is, who may have it, who may talk to it.

One socket per server, `NAME.sock`, in a folder of the user's own: `$RUNTIME_DIRECTORY` (systemd sets it), else
`$XDG_RUNTIME_DIR/shardnet`, else `shardnet-UID` in the folder for temporary files. Packets are those of `control`.

Lives here: names, folders, opening and connecting. Must not live here: what is said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shardnet.errors import AddressInUse, NotRunning, SystemFault
from shardnet.listen import AddressHeld, UnixAddress
from shardnet.listen.lock import take_lock

__all__ = ["OperatorSocket", "connect", "default_name", "running", "speaks_for_us"]

BACKLOG: Final = 16
SUFFIX: Final = ".sock"
LET_IN_S: Final = 1
TIMEVAL: Final = struct.Struct("ll")  # struct timeval: seconds, microseconds.
PEER_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(slots=True)
class OperatorSocket:
    """A server's end: a listener, its place in the file system, and the lock that makes it ours."""

    name: str
    path: Path
    listener: socket.socket
    lock: socket.socket

    @classmethod
    def open(cls, name: str, *, exact: bool) -> OperatorSocket:
        """Take the name, and listen. If it is taken, our pid is put behind it, unless it has to be `exact`.

        Raises:
            AddressInUse: Another server has the name.
            SystemFault: There is no folder for it.
        """
        folder = _own_folder()
        try:
            return cls._open(folder, name)
        except AddressHeld as exc:
            if exact:
                raise AddressInUse(f"a server named {name} is running already: give this one another --name") from exc
            return cls._open(folder, f"{name}-{os.getpid()}")

    @classmethod
    def _open(cls, folder: Path, name: str) -> OperatorSocket:
        path = folder / f"{name}{SUFFIX}"
        with contextlib.ExitStack() as undo:
            # A path may be longer than a lock's name can be.
            lock_name = f"operator/{zlib.crc32(os.fsencode(path)):08x}/{name}"
            lock = undo.enter_context(take_lock(lock_name, UnixAddress(path)))
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            try:
                path.unlink(missing_ok=True)  # We have the lock: whoever made it is dead.
                listener.bind(str(path))
                path.chmod(0o600)
                listener.listen(BACKLOG)
            except OSError as exc:
                raise SystemFault(f"cannot listen for commands at {path}: {exc.strerror or exc}") from exc
            listener.setblocking(False)
            undo.pop_all()
        return cls(name, path, listener, lock)

    @classmethod
    def take_over(cls, fields: dict[str, Any]) -> OperatorSocket:
        """That of the program before this one in this process, as `hand_over` has described it."""
        listener, lock = (socket.socket(fileno=fields[what]) for what in ("listener", "lock"))
        for sock in (listener, lock):
            sock.set_inheritable(False)
        listener.setblocking(False)
        return cls(fields["name"], Path(fields["path"]), listener, lock)

    def hand_over(self) -> dict[str, Any]:
        """What JSON can say of it. Whoever executes has to let `fds` survive it."""
        listener, lock = self.fds
        return {"name": self.name, "path": str(self.path), "listener": listener, "lock": lock}

    @property
    def fds(self) -> tuple[int, int]:
        return self.listener.fileno(), self.lock.fileno()

    def close(self) -> None:
        """Give the name up. For the server alone: in a child, `close_in_child`."""
        self.path.unlink(missing_ok=True)
        self.close_in_child()

    def close_in_child(self) -> None:
        self.listener.close()
        self.lock.close()


def default_name(app: str) -> str:
    """What a server of this app is called that was given no name."""
    module = app.partition(":")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in module)[:60] or "app"


def connect(name: str | None) -> socket.socket:
    """A connection to the server of this name, or, without one, to the only one there is.

    Raises:
        NotRunning: There is none; or, without a name, several.
        SystemFault: There is one, and it lets nobody in.
    """
    there = running()
    if name is None:
        if len(there) != 1:
            if there:
                raise NotRunning(f"several servers run: say which with --name, one of {', '.join(sorted(there))}")
            raise NotRunning("no server of this user runs; start one with shardnet run")
        [name] = there
    if name not in there:
        known = f"; running: {', '.join(sorted(there))}" if there else ""
        raise NotRunning(f"no server named {name} runs{known}")
    return there[name]()


def running() -> dict[str, _Reach]:
    """The servers that this user can talk to, by name."""
    found: dict[str, _Reach] = {}
    for folder in [*_folders(), *sorted(Path("/run").glob("shardnet*"))]:  # The last are where services have theirs.
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                reach = _Reach(path)
                if reach.leads_somewhere():
                    found.setdefault(path.name.removesuffix(SUFFIX), reach)
    return found


@dataclass(frozen=True, slots=True)
class _Reach:
    """The way to a server."""

    path: Path

    def leads_somewhere(self) -> bool:
        try:
            self().close()
        except NotRunning:
            return False
        except SystemFault:
            pass  # There is one.
        return True

    def __call__(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Who finds the queue of a stopped server full would wait there for ever. (`settimeout` is no help: it makes the
        # socket one that does not block, which is refused at once where the queue is full for a moment.)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(LET_IN_S, 0))
        try:
            sock.connect(str(self.path))
        except BlockingIOError as exc:
            sock.close()
            raise SystemFault(f"nobody is let in at {self.path}: the server's supervisor may be stopped") from exc
        except OSError as exc:
            sock.close()
            raise NotRunning(f"nobody answers at {self.path}: {exc.strerror or exc}") from exc
        return sock


def speaks_for_us(sock: socket.socket) -> bool:
    """Whether the peer of an accepted connection is this user, or root."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    uid: int = PEER_CREDENTIALS.unpack(credentials)[1]
    return uid in (0, os.geteuid())


def _folders() -> list[Path]:
    """Where a server of this user may have its socket, or, for root, of anybody's service."""
    folders = [Path(part) for part in os.environ.get("RUNTIME_DIRECTORY", "").split(":") if part]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime) / "shardnet")
    folders.append(Path(tempfile.gettempdir()) / f"shardnet-{os.geteuid()}")
    return folders


def _own_folder() -> Path:
    folder = _folders()[0]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as exc:
        raise SystemFault(f"no folder for the control socket: {folder}: {exc.strerror or exc}") from exc
    if "RUNTIME_DIRECTORY" not in os.environ and (
        not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022
    ):
        raise SystemFault(f"{folder} is not a folder of this user's alone: remove it, or set XDG_RUNTIME_DIR")
    return folder
