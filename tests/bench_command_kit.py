"""`shardnet bench` as a subprocess, and servers with a will of their own for it to find out about.

A peer is a server in threads of the test's process: one function per connection, which gets the socket and the number
of the connection, counted from 0.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shardnet.testing.output import Output, environment, run_command
from shardnet.testing.processes import end_session

PROJECT: Final = Path(__file__).resolve().parents[1]
PATIENCE_S: Final = 20.0
CHUNK_BYTES: Final = 65536
SHORT: Final = ("--duration", "0.3", "--warmup", "0", "--connections", "4")

Serve = Callable[[socket.socket, int], object]


def receive(conn: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; `EOFError` when the stream ends before."""
    data = conn.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data


def echo(conn: socket.socket, _number: int) -> None:
    while data := conn.recv(CHUNK_BYTES):
        conn.sendall(data)


def wait_unread(conn: socket.socket, size: int) -> None:
    """Until so many bytes wait in the kernel."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)  # The socket is readable only then.
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    if not poll.poll(PATIENCE_S * 1000):
        raise AssertionError(f"{size} bytes never came")
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


class Peer:
    """A listening socket and whoever connects to it, served by threads until the `with` ends."""

    def __init__(self, serve: Serve, *, unix_path: Path | None = None, backlog: int = 512) -> None:
        if unix_path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(unix_path))
            self._listener.listen(backlog)
            self.address = f"unix:{unix_path}"
        self.connections = 0
        self.failures: list[BaseException] = []
        self._serve = serve
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # Ends an accept that waits, as a close does not.
        self._acceptor.join(PATIENCE_S)
        self._listener.close()
        for conn in self._sockets:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if exc is None:
            assert self.failures == []

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(conn)
            thread = threading.Thread(target=self._serve_one, args=(conn, self.connections))
            self._threads.append(thread)
            self.connections += 1
            thread.start()

    def _serve_one(self, conn: socket.socket, number: int) -> None:
        with conn:
            try:
                self._serve(conn, number)
            except (OSError, EOFError):
                pass  # The load has ended.
            except BaseException as failure:
                self.failures.append(failure)


class Silent:
    """A listener that never accepts: its queue fills up."""

    def __init__(self, *, unix_path: Path | None = None) -> None:
        self._listener = socket.socket(socket.AF_INET if unix_path is None else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if unix_path is None else str(unix_path))
        self._listener.listen(0)
        self.address = f"unix:{unix_path}" if unix_path else f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def bench(address: str, *options: str, expect_status: int = 0) -> dict[str, Any]:
    """The report of a short run, as JSON."""
    finished = run_command("bench", address, *SHORT, *options, "--json", timeout_s=PATIENCE_S, cwd=PROJECT)
    assert finished.status == expect_status, finished
    assert "Traceback" not in finished.stderr, finished.stderr
    report = json.loads(finished.stdout)
    assert isinstance(report, dict)
    return report


class Running:
    """`shardnet bench` while it runs."""

    def __init__(self, address: str, *options: str) -> None:
        self._command = [sys.executable, "-m", "shardnet", "bench", address, *options]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            env=environment(),
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output = Output(stdout=self.process.stdout, stderr=self.process.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        end_session(self.process.pid)
        self.process.wait(PATIENCE_S)
        self.output.wait_closed(PATIENCE_S)

    @property
    def load_pids(self) -> list[int]:
        """Its load processes."""
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, str]:
        """Its exit status and what it printed, once it has ended by itself and left nobody behind."""
        status = self.process.wait(PATIENCE_S)
        assert self.output.wait_closed(PATIENCE_S), "somebody holds its output still"
        return status, "\n".join(self.output.lines("stdout"))
