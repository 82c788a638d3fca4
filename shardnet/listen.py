"""The listener bank: every listening socket of a server, opened once, before the first fork.

Each address gets one SO_REUSEPORT listener per shard, each with an accept queue of its own in the kernel. The
supervisor holds them all for life, so that a worker's death closes no queue: what waits there waits for the
successor. The order in which the listeners of a group start to listen is their index in it, stable as long as none
is closed.

SO_REUSEPORT lets any process of the same user join a port silently, a second instance of this server included. So
before anything listens, an abstract unix listener named after the address is taken as a lock (it vanishes with its
holder, and belongs to the network namespace as the port does), then the address is bound once without SO_REUSEPORT
to see that nobody else has it.

Lives here: addresses, options of listening sockets, opening and closing. Must not live here: accepting.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shardnet.errors import AddressInUse, SystemFault, UsageError

__all__ = [
    "Address",
    "AddressHeld",
    "ListenerBank",
    "SocketOptions",
    "open_metrics_listener",
    "parse_address",
]

PORT_MAX: Final = 65535
EXAMPLE: Final = "write HOST:PORT, for example 127.0.0.1:9000, [::1]:9000, or :9000 for every IPv4 interface"

LOCK_NAME: Final = "\0shardnet/tcp/{address}"
# Nobody ever accepts from a lock. Each refused second instance leaves one dead entry in its queue, until the queue
# is full: from then on it is still refused, but not told the holder's pid.
LOCK_BACKLOG: Final = 128
METRICS_BACKLOG: Final = 128

PEER_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
# struct tcp_info of a listening socket: tcpi_sacked, at this offset, is the length its accept queue may have.
TCP_INFO_BYTES: Final = 104
TCP_INFO_SACKED: Final = struct.Struct("28xI")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on. `host` is numeric; port 0 lets the kernel choose."""

    family: socket.AddressFamily  # AF_INET or AF_INET6
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family is socket.AF_INET6 else f"{self.host}:{self.port}"

    def covers(self, other: Address) -> bool:
        """Whether nobody else can listen on `other` while we listen here."""
        if self.family is not other.family or self.port != other.port or self.port == 0:
            return False
        return self.host == other.host or ipaddress.ip_address(self.host).is_unspecified


class AddressHeld(AddressInUse):
    """An address is taken; `holder_pid` says by whom, if the holder is a shardnet of this network namespace."""

    def __init__(self, address: Address, holder_pid: int | None, text: str) -> None:
        super().__init__(text)
        self.address = address
        self.holder_pid = holder_pid


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What is set on every listener. Linux hands all but the backlog down to the accepted sockets, for nothing."""

    backlog: int = 4096  # Connections waiting to be accepted, per listener; the kernel cuts it to somaxconn.
    keepalive_idle_s: int = 60  # Silence before the first probe.
    keepalive_interval_s: int = 10
    keepalive_probes: int = 6
    user_timeout_s: int = 30  # Sent bytes that stay unacknowledged so long end the connection. Overrides probes.


def parse_address(text: str) -> Address:
    """The address that `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (every IPv4 interface) means.

    A name is looked up, and its first IPv4 address preferred.

    Raises:
        UsageError: It is none of these; the text says what to write instead.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise UsageError(f"address {text!r} has no port: {EXAMPLE}")
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= PORT_MAX):
        raise UsageError(f"address {text!r}: port {port_text!r} is no number from 0 to {PORT_MAX}: {EXAMPLE}")
    port = int(port_text)
    if host.startswith("[") and host.endswith("]"):
        return _parse_v6(text, host[1:-1], port)
    if ":" in host or "[" in host or "]" in host:
        raise UsageError(f"address {text!r}: an IPv6 host stands in brackets: {EXAMPLE}")
    if not host:
        return Address(socket.AF_INET, "0.0.0.0", port)
    return _look_up(text, host, port)


def open_metrics_listener(address: Address) -> socket.socket:
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


class ListenerBank:
    """All listeners of a server, by shard and address, and the locks that keep a second instance out.

    `open` makes one; the supervisor keeps it for as long as its addresses are served; a forked child calls
    `close_in_child` first of all.
    """

    def __init__(
        self,
        addresses: tuple[Address, ...],
        by_shard: tuple[tuple[socket.socket, ...], ...],
        locks: tuple[socket.socket, ...],
    ) -> None:
        self.addresses = addresses  # With their real ports.
        self._by_shard = by_shard
        self._locks = locks

    @classmethod
    def open(cls, addresses: Sequence[Address], shards: int, options: SocketOptions | None = None) -> ListenerBank:
        """Open `shards` listeners for each address, all or none.

        Raises:
            UsageError: No address, or two that get in each other's way.
            AddressHeld: Another process has one of the addresses.
            SystemFault: The kernel refused for another reason.
        """
        _refuse_overlap(addresses)
        options = options or SocketOptions()
        with contextlib.ExitStack() as opened:
            groups: list[list[socket.socket]] = []
            locks: list[socket.socket] = []
            real: list[Address] = []
            for address in addresses:
                with _teaching(address):
                    if address.port != 0:
                        locks.append(opened.enter_context(_lock(address)))
                        # Without SO_REUSEPORT, so that anybody who listens there is in the way, our kin included.
                        _bind(address, reuse_port=False).close()
                    group = [opened.enter_context(_bind(address, reuse_port=True))]
                    if address.port == 0:
                        address = replace(address, port=group[0].getsockname()[1])
                        locks.append(opened.enter_context(_lock(address)))
                    for _ in range(1, shards):
                        group.append(opened.enter_context(_bind(address, reuse_port=True)))
                    for sock in group:
                        _listen(sock, options)
                groups.append(group)
                real.append(address)
            opened.pop_all()
        return cls(tuple(real), tuple(zip(*groups, strict=True)), tuple(locks))

    @property
    def shards(self) -> int:
        return len(self._by_shard)

    @property
    def backlog_effective(self) -> int:
        """How many connections may wait in each accept queue: the backlog asked for, or somaxconn if that is less.

        Valid while the bank is open.
        """
        info = self._by_shard[0][0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        backlog: int = TCP_INFO_SACKED.unpack_from(info)[0]
        return backlog

    def listeners(self, shard: int) -> tuple[socket.socket, ...]:
        """The shard's own listeners, one per address, in the order of `addresses`."""
        return self._by_shard[shard]

    def close(self) -> None:
        """Close every listener and lock. May be called again."""
        self.close_in_child(keep_shard=None)

    def close_in_child(self, keep_shard: int | None) -> None:
        """Close all but one shard's listeners, or really all. A foreign listener that is kept open but never read
        takes its share of all clients and answers none."""
        for shard, sockets in enumerate(self._by_shard):
            if shard != keep_shard:
                for sock in sockets:
                    sock.close()
        for lock in self._locks:
            lock.close()


def _parse_v6(text: str, host: str, port: int) -> Address:
    try:
        parsed = ipaddress.IPv6Address(host)
    except ValueError as exc:
        raise UsageError(f"address {text!r}: {host!r} is no IPv6 address: {EXAMPLE}") from exc
    if parsed.ipv4_mapped:
        # Our IPv6 listeners are for IPv6 only, so that [::]:9000 and 0.0.0.0:9000 can stand side by side.
        raise UsageError(f"address {text!r} is an IPv4 address in disguise: write {parsed.ipv4_mapped}:{port}")
    return Address(socket.AF_INET6, str(parsed), port)


def _look_up(text: str, host: str, port: int) -> Address:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise UsageError(f"address {text!r}: host {host!r} is not known here: {EXAMPLE}") from exc
    found.sort(key=lambda entry: entry[0] is not socket.AF_INET)  # Stable: the resolver's order otherwise.
    family, _, _, _, sockaddr = found[0]
    return Address(family, str(sockaddr[0]), port)


def _refuse_overlap(addresses: Sequence[Address]) -> None:
    if not addresses:
        raise UsageError(f"no address to listen on: {EXAMPLE}")
    for index, address in enumerate(addresses):
        for other in addresses[:index]:
            if address == other and address.port != 0:
                raise UsageError(f"address {address} is given twice: give it once")
            if address.covers(other) or other.covers(address):
                wide, narrow = (address, other) if address.covers(other) else (other, address)
                raise UsageError(f"address {wide} covers {narrow} already: give only one of them")


def _lock(address: Address) -> socket.socket:
    """Take the lock of an address, or say who has it."""
    name = LOCK_NAME.format(address=address)
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(name)
        lock.listen(LOCK_BACKLOG)
    except OSError as exc:
        lock.close()
        if exc.errno != errno.EADDRINUSE:
            raise
        holder_pid = _holder_of_lock(name)
        who = f"already running, pid {holder_pid}" if holder_pid else "already running"
        raise AddressHeld(
            address, holder_pid, f"a shardnet on {address} is {who}: stop it, or bind to another address"
        ) from exc
    return lock


def _holder_of_lock(name: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except OSError:
            return None  # Its queue is full, or the holder has just gone: the pid only adds to the message.
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    pid: int = PEER_CREDENTIALS.unpack(credentials)[0]
    return pid or None  # 0: a process of another pid namespace, which has no number in ours.


def _bind(address: Address, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Needed on the old and on the new socket to rebind over connections in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Through the resolver, numbers only, for the scope of a link-local address (fe80::1%eth0).
        resolved = socket.getaddrinfo(
            address.host, address.port, address.family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock.bind(resolved[0][4])
    except OSError:
        sock.close()
        raise
    return sock


def _listen(sock: socket.socket, options: SocketOptions) -> None:
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, options.keepalive_idle_s)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, options.keepalive_interval_s)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, options.keepalive_probes)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, options.user_timeout_s * 1000)
    sock.listen(options.backlog)


@contextlib.contextmanager
def _teaching(address: Address) -> Iterator[None]:
    """Turn the kernel's refusal into a sentence with the address and the cure."""
    try:
        yield
    except OSError as exc:
        match exc.errno:
            case errno.EADDRINUSE:
                text = f"address {address} is in use: stop whoever listens there, or bind to another address"
                raise AddressHeld(address, None, text) from exc
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
