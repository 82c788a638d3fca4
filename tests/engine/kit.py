"""A bench for the engine's tests: connected sockets, endpoints that write down their completions, turns until.

Nothing here waits for time to pass: `Bench.until` runs turns until something has happened, `wait_for` polls one socket
until the kernel has what a test needs.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

from shardnet.watcher.counters import TRAFFIC_ALONE, TRAFFIC_RECEIVED, TRAFFIC_SENT, Op, Outcome, completions_cell
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint

PATIENCE_S: Final = 20.0

Entry = tuple[str, str, Any]  # Whose completion, which, and its bytes or errno.


class RecordingEndpoint(HookEndpoint):
    """Writes its completions into a journal, then runs what `then` says for them."""

    def __init__(self, engine: Engine, fd: int, name: str, journal: list[Entry], *, unix: bool, traffic: int) -> None:
        super().__init__(engine.agenda, fd, traffic=traffic, unix=unix)
        self.engine = engine
        self.name = name
        self.journal = journal
        self.received = bytearray()
        self.then: dict[str, Callable[[], object]] = {}

    def on_received(self, start: int, size: int) -> None:
        data = self.engine.swap.take(start, size)
        self.received += data
        self._note("received", data)

    def on_end(self) -> None:
        self._note("end", None)

    def on_failed(self, error: OSError) -> None:
        self._note("failed", error.errno)

    def on_sent(self) -> None:
        self._note("sent", None)

    def on_progress(self) -> None:
        self._note("progress", self.unsent_bytes)

    def _note(self, what: str, detail: Any) -> None:
        self.journal.append((self.name, what, detail))
        action = self.then.get(what)
        if action is not None:
            action()

    def read_on(self) -> None:
        """Post a read now, and another after each that brings bytes."""
        self.then["received"] = self.post_read
        self.post_read()


class Bench:
    """One engine, its endpoints and their peers. At the end all is closed, and no descriptor may be left."""

    def __init__(self, swap_size: int = 65536) -> None:
        self._fds_before = open_fds()
        self.engine = Engine(swap_size)
        self.journal: list[Entry] = []
        self._peers: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.close()
        for peer in self._peers:
            peer.close()
        if error is None:
            assert open_fds() <= self._fds_before

    def adopt(
        self, sock: socket.socket, name: str = "a", *, unix: bool = False, traffic: int = TRAFFIC_ALONE
    ) -> RecordingEndpoint:
        """Make an endpoint of `sock`, which is no longer to be used."""
        sock.setblocking(False)
        endpoint = RecordingEndpoint(self.engine, sock.detach(), name, self.journal, unix=unix, traffic=traffic)
        self.engine.add(endpoint)
        return endpoint

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close `sock` at the end."""
        self._peers.append(sock)
        return sock

    def tcp(self, name: str = "a", *, buffer_bytes: int | None = None) -> tuple[RecordingEndpoint, socket.socket]:
        """An endpoint and the blocking socket of its peer, over TCP; `buffer_bytes` narrows the way to the peer."""
        ours, theirs = tcp_pair(buffer_bytes)
        return self.adopt(ours, name), self.keep(theirs)

    def unix(self, name: str = "a") -> tuple[RecordingEndpoint, socket.socket]:
        ours, theirs = socket.socketpair()
        return self.adopt(ours, name, unix=True), self.keep(theirs)

    def ready(self, payloads: dict[str, bytes]) -> dict[str, RecordingEndpoint]:
        """Unix endpoints whose bytes wait in the kernel, known to be readable; nothing is posted."""
        endpoints = {}
        for name, payload in payloads.items():
            endpoints[name], peer = self.unix(name)
            peer.sendall(payload)
        self.until(lambda: all(endpoint.readable for endpoint in endpoints.values()))
        return endpoints

    def until(self, condition: Callable[[], object]) -> None:
        """Run turns until `condition()` holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"it never came; so far {self.journal[-20:]}"
            self.engine.turn(left_s)

    def until_received(self, endpoint: RecordingEndpoint, data: bytes) -> None:
        """Run turns until `data` is what the endpoint has received in all."""
        self.until(lambda: len(endpoint.received) >= len(data))
        assert endpoint.received == data

    def settle(self, turns: int = 3) -> None:
        """Run some turns that wait for nothing, so that what must not happen has its chance to."""
        for _ in range(turns):
            self.engine.turn(0)

    def of(self, name: str) -> list[str]:
        """What completed on the endpoint `name`, in order."""
        return [what for who, what, _ in self.journal if who == name and what != "progress"]

    def order(self) -> str:
        """Whose completions came, in order."""
        return "".join(who for who, _, _ in self.journal)

    def count(self, op: Op, outcome: Outcome) -> int:
        return self.engine.cells[completions_cell(op, outcome)]

    def counts(self, op: Op) -> dict[Outcome, int]:
        """The outcomes of `op` that were counted, without the zeros."""
        return {outcome: count for outcome in Outcome if (count := self.count(op, outcome))}

    @property
    def received_bytes(self) -> int:
        return self.engine.cells[TRAFFIC_ALONE + TRAFFIC_RECEIVED]

    @property
    def sent_bytes(self) -> int:
        return self.engine.cells[TRAFFIC_ALONE + TRAFFIC_SENT]


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names are wanted


def tcp_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """The accepted and the connecting end. `buffer_bytes` for the accepted end's sending, the other's receiving."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as undo:
        theirs = undo.enter_context(socket.socket())
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
        undo.pop_all()
    return ours, theirs


def wait_for(fd: int | socket.socket, events: int) -> None:
    """Until the kernel shows all of `events` (of `select.poll`) for `fd`."""
    poll = select.poll()
    deadline_s = time.monotonic() + PATIENCE_S
    shown = 0
    # One bit after the other: poll returns at once for the first that is there.
    for bit in (1 << shift for shift in range(16) if events >> shift & 1):
        poll.register(fd, bit)
        while not shown & bit:
            answer = poll.poll((deadline_s - time.monotonic()) * 1000)
            assert answer, f"event {bit:#x} never came"
            shown |= answer[0][1]
            assert shown & bit or not shown & (select.POLLHUP | select.POLLERR), f"{shown:#x}, not {bit:#x}"


def wait_unread(fd: int, size: int) -> None:
    """Until `size` bytes wait to be read from `fd`, whatever else there is."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setblocking(True)
        try:
            assert len(sock.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)) == size
        finally:
            sock.setblocking(False)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    sock.settimeout(PATIENCE_S)
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"the stream ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def receive_all(sock: socket.socket) -> bytes:
    """To the end of the stream."""
    sock.settimeout(PATIENCE_S)
    data = bytearray()
    while chunk := sock.recv(65536):
        data += chunk
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close so that the other end gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(endpoint: HookEndpoint, block: bytes = b"x" * 4096) -> int:
    """Write until something is queued: how many bytes were submitted."""
    size = len(block)
    while endpoint.submit_write(block):
        size += len(block)
    return size


def raiser(error: BaseException) -> Callable[[], object]:
    def raise_it() -> object:
        raise error

    return raise_it


def drain(bench: Bench, peer: socket.socket, size: int) -> bytes:
    """Run turns until `peer`, on a thread of its own, has received `size` bytes."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(receive_exactly, peer, size)
        future.add_done_callback(lambda _: bench.engine.wake())
        bench.until(future.done)
        return future.result()
