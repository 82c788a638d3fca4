"""What is set on listening sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What is set on every listener. Linux hands what concerns TCP down to the accepted sockets, for nothing."""

    backlog: int = 4096  # Connections waiting to be accepted, per listener; the kernel cuts it to somaxconn.
    keepalive_idle_s: int = 60  # Silence before the first probe.
    keepalive_interval_s: int = 10
    keepalive_probes: int = 6
    user_timeout_s: int = 30  # Sent bytes that stay unacknowledged so long end the connection. Overrides probes.
    unix_mode: int | None = None  # Who may connect to unix sockets, as permission bits; None: as the umask says.
    unix_owner: str | None = None  # "user", "user:group" or ":group", names or numbers; None: whoever we are.
