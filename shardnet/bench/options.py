"""What load to make: the options, and the messages that are sent.

Lives here: values, and what of them cannot be. Must not live here: sockets, processes.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shardnet.errors import SystemFault, UsageError
from shardnet.listen.address import InheritedAddress, TcpAddress, UnixAddress, parse_address, parse_tcp_address

CONNECTIONS_MAX: Final = 1_000_000
PROCESSES_MAX: Final = 256
SIZE_MAX_BYTES: Final = 64 << 20
RATE_MIN: Final = 0.001
RATE_MAX: Final = 10_000_000.0  # Messages a second: far beyond what any number of our processes can do.
TIME_MAX_S: Final = 7 * 86400.0
TIME_MIN_S: Final = 0.001
MESSAGES_MAX_BYTES: Final = 4 << 20  # All generated messages together, unless a single one is larger.
MESSAGES_MAX: Final = 1024
FILES_OWN: Final = 32  # What a load process has open besides its connections.
SEED: Final = 1  # The same bytes in every run.


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect. `text` is how people write it."""

    text: str
    family: socket.AddressFamily
    address: Any  # As `socket.connect` wants it.

    @property
    def is_unix(self) -> bool:
        return self.family is socket.AF_UNIX


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the load generator. `messages`: connection i sends number i of them, counted round and round.

    Raises `UsageError` for what cannot be.
    """

    target: Target
    messages: Sequence[bytes]  # Of one size.
    connections: int = 50
    processes: int = 1
    duration_s: float = 10.0
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    rate: float | None = None  # Messages a second, of all connections together; None: a closed loop.
    checked: bool = True

    def __post_init__(self) -> None:
        _check_within("--connections", self.connections, 1, CONNECTIONS_MAX)
        _check_within("--processes", self.processes, 1, PROCESSES_MAX)
        _check_within("--duration", self.duration_s, TIME_MIN_S, TIME_MAX_S)
        _check_within("--warmup", self.warmup_s, 0, TIME_MAX_S)
        _check_within("--timeout", self.timeout_s, TIME_MIN_S, TIME_MAX_S)
        if self.rate is not None:
            _check_within("--rate", self.rate, RATE_MIN, RATE_MAX)
        if self.processes > self.connections:
            raise UsageError(
                f"{self.processes} processes for {self.connections} connections: give each at least one connection"
            )

    @property
    def size_bytes(self) -> int:
        return len(self.messages[0])

    def share(self, number: int) -> range:
        """The numbers of the connections of process `number`."""
        count, total = self.processes, self.connections
        return range(total * number // count, total * (number + 1) // count)

    def check_files(self, limit: int) -> None:
        """Raises `SystemFault` when a process could not have its connections within `limit` open files."""
        most = max(1, limit - FILES_OWN)
        if -(-self.connections // self.processes) > most:
            needed = -(-self.connections // most)
            cure = f"give --processes {needed}, or fewer --connections" if needed <= PROCESSES_MAX else "give fewer"
            raise SystemFault(
                f"file limit {limit} is too low for {self.connections} connections in {self.processes} "
                f"process{'' if self.processes == 1 else 'es'}: raise the hard limit (ulimit -Hn), {cure}"
            )


def parse_target(text: str) -> Target:
    """What `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH` means.

    `:PORT`, `*:PORT` and the addresses of every interface, as a server is told them, mean this machine. Raises
    `UsageError`.
    """
    address = parse_address(text) if text.startswith(("unix:", "fd:")) else parse_tcp_address(text)
    match address:
        case UnixAddress():
            return Target(str(address), socket.AF_UNIX, str(address.path))
        case InheritedAddress():
            raise UsageError(f"address {text!r} is for servers: write HOST:PORT or unix:PATH")
        case TcpAddress():
            if address.port == 0:
                raise UsageError(f"address {text!r}: nobody serves port 0: give the server's port")
            if address.dual or address.host == "0.0.0.0":
                address = TcpAddress(socket.AF_INET, "127.0.0.1", address.port)
            elif address.host == "::":
                address = TcpAddress(socket.AF_INET6, "::1", address.port)
            # Resolved once: a scope such as that of fe80::1%eth0 becomes a number.
            (family, _, _, _, resolved), *_ = socket.getaddrinfo(
                address.host, address.port, family=address.family, type=socket.SOCK_STREAM
            )
            return Target(str(address), family, resolved)


def random_messages(size: int, connections: int) -> list[bytes]:
    """Messages of random bytes, one for each connection, or fewer where all would take too much memory.

    They differ, so that a server that mixes up its connections is found out. Raises `UsageError`.
    """
    _check_within("--size", size, 1, SIZE_MAX_BYTES)
    _check_within("--connections", connections, 1, CONNECTIONS_MAX)
    count = max(1, min(connections, MESSAGES_MAX, MESSAGES_MAX_BYTES // size))
    source = random.Random(SEED)
    return [source.randbytes(size) for _ in range(count)]


def checked_message(message: bytes, source: str) -> bytes:
    """A message of the user's own, if it can be one. `source`: where it is from. Raises `UsageError`."""
    if not message:
        raise UsageError(f"{source} is empty: a message has at least 1 byte")
    if len(message) > SIZE_MAX_BYTES:
        raise UsageError(f"{source} is too long: a message has at most {SIZE_MAX_BYTES:,} bytes")
    return message


def _check_within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # Not a number is not within.
        raise UsageError(f"{name} is {value:g}: give {least:g} to {most:,.10g}")
