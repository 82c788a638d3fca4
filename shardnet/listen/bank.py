"""The bank itself: all listeners of a server, by shard and address."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

from shardnet.errors import InternalError
from shardnet.listen.address import Address, InheritedAddress, TcpAddress, UnixAddress, parse_address, refuse_overlap
from shardnet.listen.inherited import adopt
from shardnet.listen.options import SocketOptions
from shardnet.listen.tcp import backlog_granted, open_tcp, queue_length, queue_of
from shardnet.listen.unix import BoundPath, open_unix

HAND_OVER_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class _Group:
    """What belongs to one address."""

    address: Address
    sockets: tuple[socket.socket, ...]  # One per shard; or one for all.
    lock: socket.socket | None  # None for what was inherited: its opener says who may have it.
    path: BoundPath | None = None

    @property
    def shared(self) -> bool:
        return not isinstance(self.address, TcpAddress)

    def listener(self, shard: int) -> socket.socket:
        return self.sockets[0 if self.shared else shard]

    def all_sockets(self) -> list[socket.socket]:
        return [*self.sockets, *([self.lock] if self.lock else [])]

    def close(self) -> None:
        if self.path is not None:
            self.path.remove()
        for sock in self.all_sockets():
            sock.close()

    def undo(self) -> None:
        """Close it, because others could not be opened; what was inherited stays the opener's."""
        if isinstance(self.address, InheritedAddress):
            self.sockets[0].detach()
        self.close()


class ListenerBank:
    """All listeners of a server, by shard and address, and the locks that keep a second instance out.

    `open` makes one; the supervisor keeps it for as long as its addresses are served; a forked child calls
    `close_in_child` first of all.
    """

    def __init__(self, groups: Sequence[_Group], shards: int) -> None:
        self.addresses = tuple(group.address for group in groups)  # With their real ports.
        self.shared = tuple(group.shared for group in groups)  # Per address: one listener for all shards.
        self.shards = shards
        self._groups = tuple(groups)

    @classmethod
    def open(cls, addresses: Sequence[Address], shards: int, options: SocketOptions | None = None) -> ListenerBank:
        """Open the listeners of every address, all or none: `shards` of them for TCP, otherwise one for all shards.

        Raises:
            UsageError: No address, one that cannot be, or two that get in each other's way.
            AddressHeld: Another process has one of the addresses.
            SystemFault: The kernel refused for another reason.
        """
        refuse_overlap(addresses)
        options = options or SocketOptions()
        groups: dict[int, _Group] = {}
        with contextlib.ExitStack() as opened:
            # What is inherited comes first: later, a wrong number might be that of a listener of our own.
            for index in sorted(range(len(addresses)), key=lambda i: not isinstance(addresses[i], InheritedAddress)):
                groups[index] = _open(addresses[index], shards, options)
                opened.callback(groups[index].undo)
            opened.pop_all()
        return cls([groups[index] for index in range(len(addresses))], shards)

    @classmethod
    def take_over(cls, state: dict[str, Any]) -> ListenerBank:
        """The bank that this process's program before the last exec has described with `hand_over`.

        Raises:
            InternalError: The description is none, or its descriptors are not there.
        """
        if state.get("version") != HAND_OVER_VERSION:
            raise InternalError(f"listeners were handed over in a form ({state.get('version')}) that is not ours")
        groups = []
        try:
            for entry in state["groups"]:
                path = BoundPath(Path(entry["path"][0]), *entry["path"][1:]) if entry["path"] else None
                sockets = tuple(map(_take_over, entry["sockets"]))
                lock = None if entry["lock"] is None else _take_over(entry["lock"])
                groups.append(_Group(parse_address(entry["address"]), sockets, lock, path))
        except OSError as exc:
            raise InternalError(f"a listener that was handed over is not there: {exc.strerror}") from exc
        return cls(groups, state["shards"])

    def hand_over(self) -> dict[str, Any]:
        """Let every listener and lock outlive an exec in place of this process, and describe them, as JSON can.

        The bank is still open, and the paths stay: do not close it. If the exec fails, `keep` undoes this.
        """
        for sock in self._all_sockets():
            sock.set_inheritable(True)
        return {
            "version": HAND_OVER_VERSION,
            "shards": self.shards,
            "groups": [
                {
                    "address": str(group.address),
                    "sockets": [sock.fileno() for sock in group.sockets],
                    "lock": group.lock.fileno() if group.lock else None,
                    "path": [str(group.path.path), group.path.device, group.path.inode] if group.path else None,
                }
                for group in self._groups
            ],
        }

    def keep(self) -> None:
        """Let nothing outlive an exec: after a `hand_over` that nobody took."""
        for sock in self._all_sockets():
            sock.set_inheritable(False)

    @property
    def backlog_effective(self) -> int | None:
        """How many connections may wait in each accept queue: the backlog asked for, or somaxconn if that is less.

        None where the kernel does not tell: it does for TCP listeners of our own, and not for those of unix. What
        was inherited has the backlog that its opener gave it. Valid while the bank is open.
        """
        for group in self._groups:
            if isinstance(group.address, TcpAddress):
                return backlog_granted(group.sockets[0])
        return None

    def listeners(self, shard: int) -> tuple[socket.socket, ...]:
        """The shard's listeners, one per address, in the order of `addresses`. A shared one is in every shard's."""
        return tuple(group.listener(shard) for group in self._groups)

    def own_listeners(self, shard: int) -> dict[int, socket.socket]:
        """Those of the shard's listeners that no other shard has, by the index of their address."""
        groups = enumerate(self._groups)
        return {index: group.sockets[shard] for index, group in groups if not group.shared}

    def waiting(self, shard: int) -> int:
        """How many connections wait to be accepted at the shard's own listeners."""
        return sum(map(queue_length, self.own_listeners(shard).values()))

    def queues(self, shard: int) -> list[tuple[int, int]]:
        """How many connections wait at each of the shard's listeners, and how many may; (0, 0) where the kernel does
        not say, as for unix sockets. A listener that all shards share counts for the first."""
        return [
            queue_of(sock) if sock.family != socket.AF_UNIX and (shard == 0 or not group.shared) else (0, 0)
            for group, sock in zip(self._groups, self.listeners(shard), strict=True)
        ]

    def close(self) -> None:
        """Close every listener and lock, and remove the unix paths that are still ours. May be called again.

        For the holder of the bank alone: in a child, `close_in_child`.
        """
        for group in self._groups:
            group.close()

    def close_in_child(self, keep_shard: int | None) -> None:
        """Close all but one shard's listeners, or really all; paths stay. A foreign listener that is kept open but
        never read takes its share of all clients and answers none."""
        kept = set() if keep_shard is None else {sock.fileno() for sock in self.listeners(keep_shard)}
        for sock in self._all_sockets():
            if sock.fileno() not in kept:
                sock.close()

    def _all_sockets(self) -> list[socket.socket]:
        return [sock for group in self._groups for sock in group.all_sockets()]


def _open(address: Address, shards: int, options: SocketOptions) -> _Group:
    match address:
        case TcpAddress():
            return _Group(*open_tcp(address, shards, options))
        case UnixAddress():
            listener, path, lock = open_unix(address, options)
            return _Group(address, (listener,), lock, path)
        case InheritedAddress():
            return _Group(address, (adopt(address, options),), lock=None)
        case _:
            assert_never(address)


def _take_over(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock
