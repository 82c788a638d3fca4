"""The exporter as a process of its own, over a board of known content; and certificates for it.

Lives here: starting and ending it, its log, clients that say bytes, an authority. Must not live here: what is expected.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from shardnet.board import Board, Role
from shardnet.catalogue.cells import declare_shard_metrics, declare_supervisor_metrics, declare_worker_metrics
from shardnet.control import ControlEndpoint, pair
from shardnet.exporter.exporter import run_exporter
from shardnet.exporter.options import ExporterOptions
from shardnet.log import LogOptions, set_up
from shardnet.seats import ExporterSeat

__all__ = ["Answer", "Authority", "RunningExporter", "authority", "exchange", "exporting", "tell"]

LISTENER: Final = "127.0.0.1:9000"
PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page answered."""

    status: int
    head: str
    body: bytes

    def header(self, name: str) -> str | None:
        """One header's value."""
        for line in self.head.splitlines()[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        head, _, body = data.partition(b"\r\n\r\n")
        return cls(int(head.split(b" ", 2)[1]), head.decode(), body)


@dataclass(frozen=True, slots=True)
class RunningExporter:
    """The process."""

    pid: int
    port: int
    control: ControlEndpoint
    log_file: Path

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait_log(self, text: str) -> None:
        """Until the log says so."""
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert time.monotonic() < deadline_s, f"{text!r} is not in the log: {self.log}"

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        """A client, whose every wait is bounded."""
        sock = socket.create_connection(self.address, timeout=PATIENCE_S)
        return sock if context is None else context.wrap_socket(sock, server_hostname="localhost")

    def get(self, path: str, *headers: str, method: str = "GET", context: ssl.SSLContext | None = None) -> Answer:
        """What a page answers, over a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
        with self.connect(context) as client:
            return Answer.parse(exchange(client, "\r\n".join(lines).encode()))

    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Say this, and return all that is answered until the other end closes."""
    client.sendall(data)
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def tell(path: Path, text: str) -> None:
    """Replace a file's content as deployments do: by another file in its place."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


@contextlib.contextmanager
def exporting(
    folder: Path, options: ExporterOptions, *, shards: int = 2, level: str = "info"
) -> Iterator[RunningExporter]:
    """An exporter that shows a server all of whose shards serve. It is ended with the block, and must have lived on."""
    board = _board_of(shards)
    log_file = folder / "exporter.log"
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            ours.close()
            set_up(LogOptions(file=log_file, level=level))
            code = run_exporter(ExporterSeat(listener, theirs, board, 2), version="1.2.3", engine="x", options=options)
        finally:
            os._exit(code)
    theirs.close()
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield RunningExporter(pid, port, ours, log_file)
        ours.close()  # As when the supervisor is gone.
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        board.close()


def _board_of(shards: int) -> Board:
    board = Board.create(shards)
    now_ns = time.time_ns()
    supervisor = board.row(board.claim(Role.SUPERVISOR, 0, 0, 0, started_ns=now_ns))
    cells = declare_supervisor_metrics(supervisor)
    supervisor.counts[cells.shards_configured] = shards
    supervisor.counts[cells.generation] = 1
    supervisor.beat(time.monotonic_ns() + 3_600_000_000_000)  # It lives for as long as a test takes.
    for shard in range(shards):
        row = board.shard_row(shard)
        of_shard = declare_shard_metrics(row, [LISTENER])
        row.counts[of_shard.state("serving")] = 1
        worker = board.row(board.claim(Role.WORKER, shard, 1, shard + 1, started_ns=now_ns))
        declare_worker_metrics(worker, [LISTENER])
        worker.beat(time.monotonic_ns())
    return board


@dataclass(frozen=True, slots=True)
class Authority:
    """Something that makes certificates, and is trusted."""

    folder: Path
    openssl: str

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def issue(self, name: str, *, serial: int = 1) -> tuple[Path, Path]:
        """A certificate for `name`, localhost and 127.0.0.1, and its key."""
        key, request, certificate = (self.folder / f"{name}-{serial}.{kind}" for kind in ("key", "csr", "crt"))
        names = self.folder / f"{name}-{serial}.ext"
        names.write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\n")
        self.run("req", *EC_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self.run(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-days", "2"),
            *("-set_serial", str(serial), "-extfile", names, "-out", certificate),
        )
        return certificate, key

    def context(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """For a client that trusts us, and has this certificate and key."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    def found(self) -> None:
        self.run(
            *("req", "-x509", *EC_KEY, "-days", "2", "-subj", f"/CN={self.folder.name}"),
            *("-keyout", self.folder / "ca.key", "-out", self.certificate),
        )

    def run(self, *arguments: str | Path) -> None:
        """An openssl command."""
        subprocess.run([self.openssl, *map(str, arguments)], check=True, capture_output=True, timeout=30)


EC_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make certificates with")
    made = Authority(tmp_path_factory.mktemp("authority"), openssl)
    made.found()
    return made
