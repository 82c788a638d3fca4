"""Who holds an address that we wanted: asked only when a start has failed."""

from __future__ import annotations

import contextlib

from shardnet.errors import ShardnetError
from shardnet.listen import AddressHeld


def with_holder(error: ShardnetError) -> str:
    """An error's text, and who has the address if that is what it is about."""
    if isinstance(error, AddressHeld) and error.holder_pid is None:
        return f"{error}{name_holder(error.address.host, error.address.port)}"
    return str(error)


def name_holder(host: str, port: int) -> str:
    """`; held by NAME (pid N)` for the process that listens there, or "" where that cannot be seen."""
    import psutil  # Late: a server that starts does not need it.

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None or not connection.laddr:
                continue
            if connection.laddr.port == port and _is_in_the_way(connection.laddr.ip, host):
                return f"; held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _is_in_the_way(ip: str, host: str) -> bool:
    """Whether a listener on `ip` keeps others from `host`; either may stand for every address."""
    return ip in (host, "0.0.0.0", "::") or (host in ("0.0.0.0", "::") and (":" in ip) == (":" in host))
