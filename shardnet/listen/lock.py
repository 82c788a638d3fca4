"""Locks that keep a second instance off an address.

SO_REUSEPORT lets any process of the same user join a port silently, a second instance of this server included; and two
that start at once would both find a dead unix socket and replace it. So before anything is bound, an abstract unix
listener named after the address is taken as a lock. It vanishes with its holder, it belongs to the network namespace as
a port does, and SO_PEERCRED names its holder.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path
from typing import Final

from shardnet.listen.address import Address, AddressHeld

# Nobody ever accepts from a lock. Each refused second instance leaves one dead entry in its queue, until the queue
# is full: from then on it is still refused, but not told the holder's pid.
LOCK_BACKLOG: Final = 128
PEER_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


def take_lock(name: str, address: Address) -> socket.socket:
    """Take the lock of this name (ASCII, at most 80 characters), which stands for `address`; whoever closes the
    socket gives it back.

    Raises:
        AddressHeld: Somebody has it; the text says who.
        OSError: The kernel refused for another reason.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0shardnet/{name}")
        lock.listen(LOCK_BACKLOG)
    except OSError as exc:
        lock.close()
        if exc.errno != errno.EADDRINUSE:
            raise
        holder_pid = _holder(name)
        who = f"already running, pid {holder_pid}" if holder_pid else "already running"
        raise AddressHeld(
            address, holder_pid, f"a shardnet on {address} is {who}: stop it, or bind to another address"
        ) from exc
    return lock


def peer_pid(sock: socket.socket) -> int | None:
    """The process that a connected unix socket's listener belongs to: that which called listen(2). None where it has
    no number for us, or is gone and others have its socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    pid: int = PEER_CREDENTIALS.unpack(credentials)[0]
    return pid if pid and Path(f"/proc/{pid}").exists() else None  # 0: it is of another pid namespace.


def _holder(name: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0shardnet/{name}")
        except OSError:
            return None  # Its queue is full, or the holder has just gone: the pid only adds to the message.
        return peer_pid(probe)
