"""Addresses to listen on: what they are, how they are written, and which get in each other's way.

Lives here: values and their texts. Must not live here: sockets.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardnet.errors import AddressInUse, UsageError

PORT_MAX: Final = 65535
UNIX_PATH_BYTES_MAX: Final = 107  # struct sockaddr_un has 108, one of them for the zero at the end.
STANDARD_STREAMS: Final = 3  # 0, 1 and 2 are no place for a listener.
DESCRIPTOR_MAX: Final = 2**31 - 1
EXAMPLE: Final = (
    "write HOST:PORT, for example 127.0.0.1:9000, [::1]:9000, :9000 for every IPv4 interface, "
    "or *:9000 for IPv6 as well; or unix:/run/app.sock; or fd://3"
)
ADDRESSES_MAX: Final = (
    250  # A shard's listeners must fit one packet of a control channel, which brings 253 descriptors.
)
TCP_EXAMPLE: Final = "write HOST:PORT, for example 127.0.0.1:9000, [::1]:9000, or :9000 for every IPv4 interface"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address. `host` is numeric; port 0 lets the kernel choose. A dual one is for IPv4 and IPv6 at once."""

    family: socket.AddressFamily  # AF_INET or AF_INET6
    host: str
    port: int
    dual: bool = False  # Only with AF_INET6 and "::".

    def __str__(self) -> str:
        if self.dual:
            return f"*:{self.port}"
        return f"[{self.host}]:{self.port}" if self.family is socket.AF_INET6 else f"{self.host}:{self.port}"

    def covers(self, other: Address) -> bool:
        """Whether nobody else can listen on `other` while we listen here."""
        if not isinstance(other, TcpAddress) or self.port != other.port or self.port == 0:
            return False
        if self.dual:
            return True
        if other.dual or self.family is not other.family:
            return False
        return self.host == other.host or ipaddress.ip_address(self.host).is_unspecified


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix stream socket. The path is absolute."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def covers(self, other: Address) -> bool:
        """Whether both are names of one place."""
        return isinstance(other, UnixAddress) and self._place() == other._place()

    def _place(self) -> tuple[str, str]:
        return os.path.realpath(self.path.parent), self.path.name


@dataclass(frozen=True, slots=True)
class InheritedAddress:
    """A listening socket that whoever started us has opened, as descriptor `fd`."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"

    def covers(self, other: Address) -> bool:
        """Whether both are the same descriptor."""
        return self == other


Address = TcpAddress | UnixAddress | InheritedAddress


class AddressHeld(AddressInUse):
    """An address is taken; `holder_pid` says by whom, if that can be known for nothing."""

    def __init__(self, address: Address, holder_pid: int | None, text: str) -> None:
        super().__init__(text)
        self.address = address
        self.holder_pid = holder_pid


def parse_address(text: str) -> Address:
    """The address that a text means:

    `HOST:PORT` or `[IPV6]:PORT`, the latter for IPv6 alone; `:PORT`, every IPv4 interface; `*:PORT`, every interface,
    IPv4 and IPv6 on one socket; `unix:PATH`; `fd://N`. A host's name is looked up, and its first IPv4 address
    preferred. A relative path becomes absolute.

    Raises:
        UsageError: It is none of these; the text says what to write instead.
    """
    if text.startswith("unix:"):
        return _parse_unix(text, text.removeprefix("unix:"))
    if text.startswith("fd:"):
        return _parse_inherited(text)
    return _parse_tcp(text, EXAMPLE)


def parse_tcp_address(text: str) -> TcpAddress:
    """Like `parse_address`, where it has to be TCP."""
    return _parse_tcp(text, TCP_EXAMPLE)


def refuse_overlap(addresses: Sequence[Address]) -> None:
    """Raises `UsageError` when there is no address, too many, or two that get in each other's way."""
    if not addresses:
        raise UsageError(f"no address to listen on: {EXAMPLE}")
    if len(addresses) > ADDRESSES_MAX:
        raise UsageError(f"{len(addresses)} addresses to listen on: at most {ADDRESSES_MAX} are possible")
    for index, address in enumerate(addresses):
        for other in addresses[:index]:
            if address == other and not (isinstance(address, TcpAddress) and address.port == 0):
                raise UsageError(f"address {address} is given twice: give it once")
            if address.covers(other) or other.covers(address):
                wide, narrow = (address, other) if address.covers(other) else (other, address)
                raise UsageError(f"address {wide} covers {narrow} already: give only one of them")


def _parse_tcp(text: str, example: str) -> TcpAddress:
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise UsageError(f"address {text!r} has no port: {example}")
    port = _number(port_text, PORT_MAX)
    if port is None:
        raise UsageError(f"address {text!r}: port {port_text!r} is no number from 0 to {PORT_MAX}: {example}")
    if host == "*":
        return TcpAddress(socket.AF_INET6, "::", port, dual=True)
    if host.startswith("[") and host.endswith("]"):
        return _parse_v6(text, host[1:-1], port, example)
    if ":" in host or "[" in host or "]" in host:
        raise UsageError(f"address {text!r}: an IPv6 host stands in brackets: {example}")
    if not host:
        return TcpAddress(socket.AF_INET, "0.0.0.0", port)
    return _look_up(text, host, port, example)


def _parse_v6(text: str, host: str, port: int, example: str) -> TcpAddress:
    try:
        parsed = ipaddress.IPv6Address(host)
    except ValueError as exc:
        raise UsageError(f"address {text!r}: {host!r} is no IPv6 address: {example}") from exc
    if parsed.ipv4_mapped:
        # Our IPv6 listeners are for IPv6 only, so that [::]:9000 and 0.0.0.0:9000 can stand side by side.
        raise UsageError(f"address {text!r} is an IPv4 address in disguise: write {parsed.ipv4_mapped}:{port}")
    return TcpAddress(socket.AF_INET6, str(parsed), port)


def _look_up(text: str, host: str, port: int, example: str) -> TcpAddress:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise UsageError(f"address {text!r}: host {host!r} is not known here: {example}") from exc
    found.sort(key=lambda entry: entry[0] is not socket.AF_INET)  # Stable: the resolver's order otherwise.
    family, _, _, _, sockaddr = found[0]
    return TcpAddress(family, str(sockaddr[0]), port)


def _parse_unix(text: str, name: str) -> UnixAddress:
    if not name:
        raise UsageError(f"address {text!r} has no path: write unix:PATH, for example unix:/run/app.sock")
    if name.startswith("@") or "\0" in name:
        raise UsageError(f"address {text!r}: a unix socket needs a path in the file system, as unix:/run/app.sock")
    if name.startswith("//"):
        name = f"/{name.lstrip('/')}"  # unix:///run/app.sock is how URLs say it.
    try:
        path = Path(name).absolute()
    except OSError as exc:
        raise UsageError(f"address {text!r}: the current directory is gone, write the whole path") from exc
    size = len(os.fsencode(path))
    if size > UNIX_PATH_BYTES_MAX:
        raise UsageError(
            f"address unix:{path} is too long: the path has {size} bytes, a unix socket's at most "
            f"{UNIX_PATH_BYTES_MAX}; choose a shorter one"
        )
    return UnixAddress(path)


def _parse_inherited(text: str) -> InheritedAddress:
    fd = _number(text.removeprefix("fd://"), DESCRIPTOR_MAX)
    if fd is None:
        raise UsageError(f"address {text!r} has no descriptor's number: write fd://N, for example fd://3")
    if fd < STANDARD_STREAMS:
        raise UsageError(f"address {text!r}: 0 to 2 are the standard streams: pass the socket as 3 or more")
    return InheritedAddress(fd)


def _number(text: str, most: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):  # int() refuses thousands of digits.
        return None
    return int(text) if int(text) <= most else None
