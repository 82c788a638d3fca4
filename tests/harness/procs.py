"""What /proc tells about processes and sockets: what they hold, what waits in a queue.

Lives here: looking; who is there and when they are gone is the test kit's to say, and said again here. Must not live
here: what a test expects to see.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardnet.testing.processes import end_session, session_pids, stop_and_wait, wait_gone

__all__ = [
    "Descriptor",
    "accept_queue_length",
    "can_bind",
    "descriptors",
    "end_session",
    "listening_ports",
    "private_bytes",
    "session_pids",
    "stop_and_wait",
    "wait_gone",
]

SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
LISTEN: Final = "0A"  # TCP_LISTEN in /proc/net/tcp.
UNIX_TYPES: Final = {"0001": "stream", "0002": "dgram", "0005": "seqpacket"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One open file of a process: what kind, and which object (an inode or a path; empty when it has none)."""

    fd: int
    kind: str  # tcp-listen | tcp | unix-seqpacket | unix-stream | pipe | memfd | eventpoll | eventfd | pidfd | file
    identity: str
    port: int = 0  # Of a TCP socket: the local one.


def descriptors(pid: int) -> list[Descriptor]:
    """Every open file of the process, in order of fd."""
    sockets = _sockets(pid)
    found = []
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
        target = str(entry.readlink())
        fd = int(entry.name)
        if match := SOCKET.fullmatch(target):
            kind, port = sockets.get(match[1], ("socket", 0))
            found.append(Descriptor(fd, kind, match[1], port))
        elif target.startswith("anon_inode:"):
            found.append(Descriptor(fd, target.removeprefix("anon_inode:").strip("[]"), _eventfd_id(pid, fd)))
        elif target.startswith("pipe:"):
            found.append(Descriptor(fd, "pipe", target))
        else:
            found.append(Descriptor(fd, "memfd" if target.startswith("/memfd:") else "file", target))
    return found


def _sockets(pid: int) -> dict[str, tuple[str, int]]:
    """Kind and local port of the sockets of the process's network namespace, by inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            kind = "tcp-listen" if fields[3] == LISTEN else "tcp"
            found[fields[9]] = (kind, int(fields[1].rpartition(":")[2], 16))
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        found[fields[6]] = (f"unix-{UNIX_TYPES[fields[4]]}", 0)
    return found


def _eventfd_id(pid: int, fd: int) -> str:
    match = re.search(r"eventfd-id:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
    return match[1] if match else ""


def listening_ports() -> set[int]:
    """Every TCP port that anybody listens on in this network namespace."""
    return {port for kind, port in _sockets(os.getpid()).values() if kind == "tcp-listen"}


def accept_queue_length(inode: str) -> int:
    """How many connections wait in the accept queue of the listener with this inode."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] == inode:
                return int(fields[4].rpartition(":")[2], 16)
    raise LookupError(f"no listener has the inode {inode}")


def private_bytes(pid: int) -> int:
    """Memory that only this process holds: what its end would give back. Pages shared by fork, and the board,
    which all of them map, are not in it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.MULTILINE))


def can_bind(host: str, port: int) -> bool:
    """Whether the address is wholly free: a bind without SO_REUSEPORT next to a listener fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
        return True
