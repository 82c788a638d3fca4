"""Unix stream listeners: a path is taken over from the dead, never from the living.

Who may connect to a unix socket is said by the permissions of its file, and binding makes that file with those of the
umask. But until it listens a socket refuses everybody: so owner and mode are set in between, and it is at no time
connectable with wider rights than asked for.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardnet.errors import SystemFault, UsageError
from shardnet.listen.address import AddressHeld, UnixAddress
from shardnet.listen.lock import peer_pid, take_lock
from shardnet.listen.options import SocketOptions

MODE_MAX: Final = 0o777
UNCHANGED: Final = -1  # To chown(2).
ID_MAX: Final = 2**32 - 2  # The one above is UNCHANGED.


@dataclass(frozen=True, slots=True)
class BoundPath:
    """A path and the file that we have made there. While our socket is open no other file can have its inode."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the path if it is still ours. Call it before the socket is closed. Never raises."""
        with contextlib.suppress(OSError):  # Gone already, or a folder that has become read-only: it is stale then.
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


def open_unix(address: UnixAddress, options: SocketOptions) -> tuple[socket.socket, BoundPath, socket.socket]:
    """Open the one listener of a unix address: the listener, its path, and the address's lock.

    A socket that nobody listens on any more is replaced.

    Raises:
        AddressHeld: Another process has the address.
        UsageError: The path is no socket, or the owner or mode cannot be.
        SystemFault: The kernel refused for another reason.
    """
    owner = parse_owner(options.unix_owner)
    if options.unix_mode is not None and not 0 <= options.unix_mode <= MODE_MAX:
        raise UsageError(f"unix mode {options.unix_mode:o} is none from 0 to {MODE_MAX:o}: 660 is a usual one")
    with _teaching(address), contextlib.ExitStack() as opened:
        lock = opened.enter_context(take_lock(_lock_name(address.path), address))
        _clear(address)
        sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.bind(os.fspath(address.path))
        bound = _set_rights(address, owner, options.unix_mode, opened)
        sock.listen(options.backlog)
        opened.pop_all()
    return sock, bound, lock


def _lock_name(path: Path) -> str:
    """Of the place, whatever it is called: a folder has many names, and looks the same in other containers."""
    folder = path.parent.stat()
    place = f"{folder.st_dev}:{folder.st_ino}/".encode() + os.fsencode(path.name)
    return f"unix/{hashlib.sha256(place).hexdigest()[:32]}"


def _clear(address: UnixAddress) -> None:
    """Remove a dead socket from the path; raises if there is anything else."""
    try:
        found = address.path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"cannot listen on {address}: what is there is no socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(address.path))
        except ConnectionRefusedError:
            # Nobody listens. It is removed only if it is still the one that was asked.
            again = address.path.lstat()
            if (again.st_dev, again.st_ino) == (found.st_dev, found.st_ino):
                address.path.unlink()
            return
        except PermissionError as exc:
            raise SystemFault(
                f"cannot listen on {address}: there is a socket of another user's; remove it, or choose another path"
            ) from exc
        except FileNotFoundError:
            return
        except OSError as exc:  # EAGAIN: its queue is full. EPROTOTYPE: it is no stream socket. Somebody lives there.
            raise _held(address, None) from exc
        raise _held(address, peer_pid(probe))


def _held(address: UnixAddress, holder_pid: int | None) -> AddressHeld:
    who = f" by pid {holder_pid}" if holder_pid else ""
    text = f"address {address} is in use{who}: stop whoever listens there, or choose another path"
    return AddressHeld(address, holder_pid, text)


def _set_rights(
    address: UnixAddress, owner: tuple[int, int], mode: int | None, opened: contextlib.ExitStack
) -> BoundPath:
    """Set owner and mode of the file that was just bound.

    By a descriptor that follows no link: whoever else may write to the folder could have put one there meanwhile.
    """
    fd = os.open(address.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode):
            raise SystemFault(f"cannot listen on {address}: somebody else has replaced the socket meanwhile")
        bound = BoundPath(address.path, found.st_dev, found.st_ino)
        opened.callback(bound.remove)
        if owner != (UNCHANGED, UNCHANGED):
            try:
                os.chown(f"/proc/self/fd/{fd}", *owner)
            except PermissionError as exc:
                raise SystemFault(
                    f"cannot give {address} its owner: only root gives files away; run as root, or leave it out"
                ) from exc
        if mode is not None:
            Path(f"/proc/self/fd/{fd}").chmod(mode)
    finally:
        os.close(fd)
    return bound


def parse_owner(text: str | None) -> tuple[int, int]:
    """The numbers of `user`, `user:group` or `:group`, UNCHANGED where nothing is said."""
    if text is None:
        return UNCHANGED, UNCHANGED
    user, colon, group = text.partition(":")
    if not (user or group) or (colon and not group):
        raise UsageError(f"unix owner {text!r} names nobody: write user, user:group or :group")
    return _user_id(user), _group_id(group)


def _user_id(name: str) -> int:
    if not name or name.isdigit():
        return _id(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as exc:
        raise UsageError(f"unix owner: this machine has no user {name!r}; see `getent passwd`") from exc


def _group_id(name: str) -> int:
    if not name or name.isdigit():
        return _id(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise UsageError(f"unix owner: this machine has no group {name!r}; see `getent group`") from exc


def _id(digits: str) -> int:
    if not digits:
        return UNCHANGED
    if not digits.isascii() or len(digits) > len(str(ID_MAX)) or int(digits) > ID_MAX:
        raise UsageError(f"unix owner: {digits} is no number of a user or group, from 0 to {ID_MAX}")
    return int(digits)


@contextlib.contextmanager
def _teaching(address: UnixAddress) -> Iterator[None]:
    """Turn the kernel's refusal into a sentence with the address and the cure."""
    folder = address.path.parent
    try:
        yield
    except OSError as exc:
        match exc.errno:
            case errno.ENOENT:
                raise SystemFault(f"cannot listen on {address}: there is no folder {folder}; make it first") from exc
            case errno.ENOTDIR:
                raise SystemFault(f"cannot listen on {address}: {folder} is no folder; choose another path") from exc
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise SystemFault(
                    f"cannot listen on {address}: {folder} may not be written to ({exc.strerror}); "
                    "choose another path, or run as a user who may"
                ) from exc
            case errno.EADDRINUSE:  # Somebody else has bound it since we looked.
                raise _held(address, None) from exc
            case _:
                raise SystemFault(f"cannot listen on {address}: {exc.strerror or exc}") from exc
