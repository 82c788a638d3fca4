"""Listeners that whoever started us has opened: systemd's socket units, a process manager, a test.

They are the opener's: neither their backlog, nor their path, nor their permissions are touched, and whoever passes one
to two servers means it, as a process manager does that starts the new one before it stops the old.
"""

from __future__ import annotations

import os
import socket
import stat

from shardnet.errors import UsageError
from shardnet.listen.address import InheritedAddress
from shardnet.listen.options import SocketOptions
from shardnet.listen.tcp import set_tcp_options


def adopt(address: InheritedAddress, options: SocketOptions) -> socket.socket:
    """Take over the descriptor that an address names; it is no longer inherited by what we execute.

    Raises:
        UsageError: The descriptor is no listening stream socket.
    """
    fd = address.fd
    try:
        found = os.fstat(fd)
    except OSError as exc:
        raise UsageError(
            f"address {address}: descriptor {fd} is not open; whoever starts shardnet has to pass a listening socket "
            "there, as a systemd socket unit does"
        ) from exc
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"address {address}: descriptor {fd} is no socket; pass a listening one")
    sock = socket.socket(fileno=fd)
    try:
        _check(sock, address)
        if sock.family != socket.AF_UNIX:
            set_tcp_options(sock, options)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except BaseException:
        sock.detach()  # It stays the opener's.
        raise
    return sock


def _check(sock: socket.socket, address: InheritedAddress) -> None:
    where = f"address {address}: descriptor {address.fd}"
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise UsageError(f"{where} is a socket of family {sock.family}; pass one of TCP or unix")
    if sock.type != socket.SOCK_STREAM:
        raise UsageError(f"{where} is no stream socket; pass one of TCP or unix (in a systemd unit, ListenStream=)")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UsageError(f"{where} is a socket that does not listen; pass one that does (in systemd, Accept=no)")
