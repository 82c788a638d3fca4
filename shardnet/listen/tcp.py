"""TCP listeners.

An address is bound once without SO_REUSEPORT before it is bound with it: so that anybody who listens there is in the
way, our kin included.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from shardnet.errors import SystemFault
from shardnet.listen.address import AddressHeld, TcpAddress
from shardnet.listen.lock import take_lock
from shardnet.listen.options import SocketOptions

METRICS_BACKLOG: Final = 128
# struct tcp_info of a listening socket: at these offsets tcpi_unacked is the length of its accept queue, and
# tcpi_sacked what that may become.
TCP_INFO_BYTES: Final = 104
TCP_INFO_QUEUE: Final = struct.Struct("24xII")


def open_tcp(
    address: TcpAddress, count: int, options: SocketOptions
) -> tuple[TcpAddress, tuple[socket.socket, ...], socket.socket]:
    """Open `count` listeners on one address, all or none.

    Returns:
        The address with its real port, the listeners, and the address's lock.

    Raises:
        AddressHeld: Another process has the address.
        SystemFault: The kernel refused for another reason.
    """
    with _teaching(address), contextlib.ExitStack() as opened:
        if address.port != 0:
            lock = opened.enter_context(take_lock(f"tcp/{address}", address))
            _bind(address, reuse_port=False).close()
        group = [opened.enter_context(_bind(address, reuse_port=True))]
        if address.port == 0:
            address = replace(address, port=group[0].getsockname()[1])
            lock = opened.enter_context(take_lock(f"tcp/{address}", address))
        for _ in range(1, count):
            group.append(opened.enter_context(_bind(address, reuse_port=True)))
        for sock in group:
            set_tcp_options(sock, options)
            sock.listen(options.backlog)
        opened.pop_all()
    return address, tuple(group), lock


def open_metrics_listener(address: TcpAddress) -> socket.socket:
    """A listener for the exporter: one socket, non-blocking, that shares its port with nobody.

    Raises:
        AddressHeld: Somebody listens there.
        SystemFault: The kernel refused for another reason.
    """
    with _teaching(address):
        sock = _bind(address, reuse_port=False)
        try:
            sock.listen(METRICS_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock


def set_tcp_options(sock: socket.socket, options: SocketOptions) -> None:
    """Set what accepted connections inherit."""
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, options.keepalive_idle_s)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, options.keepalive_interval_s)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, options.keepalive_probes)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, options.user_timeout_s * 1000)


def backlog_granted(sock: socket.socket) -> int:
    """How many connections may wait in a listener's queue."""
    return queue_of(sock)[1]


def queue_length(sock: socket.socket) -> int:
    """How many connections wait in a TCP listener's queue."""
    return queue_of(sock)[0]


def queue_of(sock: socket.socket) -> tuple[int, int]:
    """How many connections wait in a TCP listener's queue, and how many may. (tcp(7), TCP_INFO: on a listener, the
    fields tcpi_unacked and tcpi_sacked.)"""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    length, granted = TCP_INFO_QUEUE.unpack_from(info)
    return length, granted


def _bind(address: TcpAddress, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Needed on the old and on the new socket to rebind over connections in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.dual)
        # Through the resolver, numbers only, for the scope of a link-local address (fe80::1%eth0).
        resolved = socket.getaddrinfo(
            address.host, address.port, address.family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock.bind(resolved[0][4])
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _teaching(address: TcpAddress) -> Iterator[None]:
    """Turn the kernel's refusal into a sentence with the address and the cure."""
    try:
        yield
    except OSError as exc:
        match exc.errno:
            case errno.EADDRINUSE:
                text = f"address {address} is in use: stop whoever listens there, or bind to another address"
                raise AddressHeld(address, None, text) from exc
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT if address.dual:
                raise SystemFault(
                    f"cannot listen on {address}: this machine has no IPv6; write :{address.port} for IPv4 alone"
                ) from exc
            case errno.EADDRNOTAVAIL:
                raise SystemFault(
                    f"cannot listen on {address}: this machine has no such address, see `ip address`"
                ) from exc
            case errno.EACCES:
                raise SystemFault(
                    f"cannot listen on {address}: no permission; choose a port from 1024 up, or run with "
                    "CAP_NET_BIND_SERVICE"
                ) from exc
            case errno.EMFILE | errno.ENFILE:
                raise SystemFault(
                    f"cannot listen on {address}: too many open files; raise the limit (`ulimit -n`) or use "
                    "fewer shards"
                ) from exc
            case _:
                raise SystemFault(f"cannot listen on {address}: {exc.strerror or exc}") from exc
