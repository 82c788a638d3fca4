"""Who holds an address that we wanted: asked only when a start has failed."""

from __future__ import annotations

import contextlib
import os

from shardnet.errors import ShardnetError
from shardnet.listen import Address, AddressHeld, InheritedAddress, TcpAddress, UnixAddress


def with_holder(error: ShardnetError) -> str:
    """An error's text, and who has the address if that is what it is about."""
    if isinstance(error, AddressHeld) and error.holder_pid is None:
        return f"{error}{name_holder(error.address)}"
    return str(error)


def name_holder(address: Address) -> str:
    """`; held by NAME (pid N)` for a process that listens there, or "" where that cannot be seen."""
    if isinstance(address, InheritedAddress):
        return ""  # Many may have it, and rightly.
    import psutil  # Late: a server that starts does not need it.

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp" if isinstance(address, TcpAddress) else "unix"):
            if connection.pid is None or not connection.laddr:
                continue
            if isinstance(address, UnixAddress):
                found = str(connection.laddr) == os.fspath(address.path)
            else:
                listens = connection.status == psutil.CONN_LISTEN
                found = listens and _is_in_the_way(connection.laddr.ip, connection.laddr.port, address)
            if found:
                return f"; held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _is_in_the_way(ip: str, port: int, address: TcpAddress) -> bool:
    """Whether a listener on `ip` and `port` keeps others from `address`; either may stand for every address."""
    if port != address.port:
        return False
    if address.dual or ip in (address.host, "0.0.0.0", "::"):
        return True
    return address.host in ("0.0.0.0", "::") and (":" in ip) == (":" in address.host)
