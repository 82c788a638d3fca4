"""The other ends of many connections, in processes of their own.

`python -m tests.watcher.loadgen crowd 9000 6144 1024 0` opens 6144 connections to port 9000 of this machine, sends 1 KB
on each (or nothing), and compares what comes back; the last number is the seed. `pour` does that with one connection
and much, `mirror` opens one and sends back what it gets. Connections stay open until stdin ends, which says that the
other side has seen enough. The exit status is 0 when every byte was right; otherwise stderr says what was not.

The theory: a listener's backlog is short, and what does not fit waits a second for its next try. So the server greets
each connection of a crowd with one byte, and at most `WINDOW` of a process wait for that, or for their echo.

Lives here: both sides of it, the program and `Clients`, which runs it; on the standard library alone. Must not live
here: anything of shardnet, which is the thing under test.
"""

from __future__ import annotations

import random
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PROJECT: Final = Path(__file__).resolve().parents[2]
GREETING: Final = b"+"
WINDOW: Final = 400
PROCESSES_MAX: Final = 2
SPARE: Final = 64  # Descriptors of a process that are no connections.
LIFE_MAX_S: Final = 120  # An orphan must not live on.
CHUNK: Final = 65536


class Clients:
    """`connections` connections to a port of this machine, shared out to processes.

    On leaving they are gone, whatever happened.
    """

    def __init__(self, mode: str, port: int, connections: int, size_bytes: int = 0) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        processes = min(PROCESSES_MAX, connections)
        for number in range(processes):
            share = len(range(number, connections, processes))
            self._run(mode, str(port), str(share), str(size_bytes), str(number))

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.watcher.loadgen", *arguments]
        self._running.append(subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.PIPE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            _, said = process.communicate()
            if error is not None and said:
                error.add_note(f"a client said: {said.decode()}")

    def dismiss(self) -> None:
        """The connections may be closed now."""
        for process in self._running:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None

    def finish(self) -> None:
        """Wait for the end. Every byte was right, or this raises."""
        for process in self._running:
            _, said = process.communicate(timeout=LIFE_MAX_S)
            assert (process.returncode, said) == (0, b"")


class Crowd:
    """Connections that ask all at once, and what each of them is to get back."""

    def __init__(self, port: int, size_bytes: int, payload: bytes) -> None:
        self._address = ("127.0.0.1", port)
        self._size = size_bytes
        self._payload = memoryview(payload)
        self._epoll = select.epoll()
        self._socks: dict[int, socket.socket] = {}  # By descriptor.
        self._missing: dict[int, memoryview] = {}  # What has not come yet.

    def run(self, connections: int) -> None:
        for number in range(connections):
            while len(self._missing) >= WINDOW:
                self._hear()
            self._ask(self._payload[number * self._size : (number + 1) * self._size])
        while self._missing:
            self._hear()

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
        self._epoll.close()

    def _ask(self, data: memoryview) -> None:
        sock = socket.create_connection(self._address)
        fd = sock.fileno()
        self._socks[fd] = sock
        if data:
            sock.sendall(data)
        self._missing[fd] = memoryview(GREETING + bytes(data))
        self._epoll.register(sock, select.EPOLLIN)

    def _hear(self) -> None:
        for fd, _ in self._epoll.poll():
            missing = self._missing[fd]
            data = self._socks[fd].recv(len(missing))
            if not data or missing[: len(data)] != data:
                sys.exit(f"expected {len(missing)} bytes more, and got {len(data)} others: {data[:20]!r}")
            if len(data) < len(missing):
                self._missing[fd] = missing[len(data) :]
            else:
                del self._missing[fd]
                self._epoll.unregister(fd)


def mirror(port: int) -> None:
    """Send back what comes, until the stream ends."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while data := sock.recv(CHUNK):
            sock.sendall(data)


def pour(port: int, data: bytes) -> None:
    """Send much on one connection, and compare what comes back meanwhile."""
    unsent = memoryview(data)
    missing = memoryview(data)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        while missing:
            _, writable, _ = select.select([sock], [sock] if unsent else [], [])
            if writable:
                unsent = unsent[sock.send(unsent[:CHUNK]) :]
                continue
            came = sock.recv(CHUNK)
            if not came or missing[: len(came)] != came:
                sys.exit(f"{len(missing)} bytes before the end, {len(came)} others came")
            missing = missing[len(came) :]
        sys.stdin.read()


def main() -> None:
    mode = sys.argv[1]
    port, connections, size_bytes, seed = map(int, sys.argv[2:])
    signal.alarm(LIFE_MAX_S)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and connections + SPARE > hard:
        sys.exit(f"{connections} connections do not fit into {hard} descriptors")
    if mode == "mirror":
        mirror(port)
        return
    payload = random.Random(seed).randbytes(connections * size_bytes)
    if mode == "pour":
        pour(port, payload)
        return
    crowd = Crowd(port, size_bytes, payload)
    crowd.run(connections)
    sys.stdin.read()
    crowd.close()


if __name__ == "__main__":
    main()
