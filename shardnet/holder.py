"""Who holds an address that we wanted: asked only when a start has failed."""

from __future__ import annotations

import contextlib


def name_holder(host: str, port: int) -> str:
    """`; held by NAME (pid N)` for the process that listens there, or "" where that cannot be seen."""
    import psutil  # Late: a server that starts does not need it.

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None or not connection.laddr:
                continue
            if connection.laddr.port == port and connection.laddr.ip in (host, "0.0.0.0", "::"):
                return f"; held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
