"""The load generator: many TCP clients that check every byte of an echo, in one process and one thread.

`python -m tests.harness.load --address 127.0.0.1:9000 --connections 1000 --messages 100 --max-size 65536`
prints `running` once every client has had its first byte, and at the end one JSON line, a `Report`.

A *session* is: connect, expect the greeting if there is one, exchange the messages, end the stream, see the
server end its own. Each of `--connections` clients runs one session, or, with `--repeat`, session after session
until stdin closes. With `--reconnect` a client whose session is cut does what was left of it in a new one.

The theory: what a message is costs nothing to know. All messages are slices of one random pool, so that an echo
is right when the bytes that come back continue the slice, wherever the kernel happened to split them.

Lives here: the client side, on the standard library alone (what it reports: `report.py`). Must not live here:
anything of shardnet, which is the thing under test.
"""

from __future__ import annotations

import argparse
import enum
import errno
import random
import resource
import select
import socket
import time
from dataclasses import dataclass
from typing import Final

from tests.harness.report import Fault, Outcome, Report

__all__ = ["Options", "main", "run"]

POOL_BYTES: Final = 1 << 20  # Slices start in here; the pool is longer than this by the largest message.
SWEEP_S: Final = 0.25  # How often silent connections are looked for.
FAULTS_MAX: Final = 200  # Faults described one by one in the report; all are counted.
EVENTS_MAX: Final = 1024

READABLE: Final = select.EPOLLIN
ENDING: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

# What the kernel says when this machine, not the server, ran out of something.
OWN_FAULTS: Final = frozenset(
    {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE}
)


@dataclass(frozen=True, slots=True)
class Options:
    """What load to make. The bounds are always on: in time by `deadline_s`, in number by `connections`."""

    addresses: tuple[tuple[str, int], ...]
    connections: int = 100
    messages: int = 10
    min_size_bytes: int = 1
    max_size_bytes: int = 65536
    greeting: bytes = b""  # What the server says first on each connection.
    seed: int = 1
    repeat: bool = False
    reconnect: bool = False
    hang_s: float = 10.0  # A connection on which nothing moves for so long has hung.
    deadline_s: float = 60.0


class State(enum.Enum):
    CONNECTING = enum.auto()
    GREETING = enum.auto()
    TALKING = enum.auto()
    ENDING = enum.auto()  # Our end of the stream is sent; the server's is awaited.


class Client:
    """One of the concurrent clients: its session's socket and how far it has come."""

    __slots__ = (
        "ever_served", "expected", "fd", "left", "moved_s", "opened_s", "out", "port", "position",
        "served", "sock", "started_s", "state", "target", "want",
    )  # fmt: skip

    def __init__(self, target: tuple[str, int], messages: int) -> None:
        self.target = target
        self.left = messages  # Messages of this session still to be echoed.
        self.ever_served = False  # In any session.
        self.open()

    def open(self) -> None:
        """Start a session on a new socket."""
        family = socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self.state = State.CONNECTING
        self.served = False
        self.expected = b""  # What the bytes awaited are a part of, and where they begin in it.
        self.position = self.want = 0
        self.out = memoryview(b"")
        self.opened_s = self.moved_s = self.started_s = time.monotonic()
        self.port = 0


class Load:
    """All clients on one epoll. `run()` returns the report when they are done or the deadline has passed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report()
        self._random = random.Random(options.seed).random
        self._pool = random.Random(options.seed).randbytes(POOL_BYTES + options.max_size_bytes)
        self._pool_view = memoryview(self._pool)
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._again: list[Client] = []  # Their next session begins after this batch of events.
        self._refused: list[Client] = []  # Theirs after the next sweep: a closed port is not hammered.
        self._never_served = options.connections
        self._stopping = False

    def run(self) -> Report:
        begin_s = time.monotonic()
        deadline_s = begin_s + self.options.deadline_s
        if self.options.repeat:
            self._epoll.register(0, select.EPOLLIN | select.EPOLLHUP)
        for index in range(self.options.connections):
            target = self.options.addresses[index % len(self.options.addresses)]
            self._start(Client(target, self.options.messages))
        swept_s = begin_s
        while self._clients or self._again or self._refused:
            for fd, events in self._epoll.poll(SWEEP_S, EVENTS_MAX):
                if (client := self._clients.get(fd)) is not None:
                    self._serve(client, events)
                elif fd == 0:
                    self._stop()
            self._restart(self._again)
            now_s = time.monotonic()
            if now_s >= deadline_s:
                break
            if now_s - swept_s >= SWEEP_S:
                swept_s = now_s
                self._sweep(now_s)
                self._restart(self._refused)
        for client in list(self._clients.values()):
            self._finish(client, Outcome.UNFINISHED)
        self._epoll.close()
        self.report.duration_s = time.monotonic() - begin_s
        return self.report

    def _stop(self) -> None:
        """Let the sessions under way end, and begin no more."""
        self._stopping = True
        self._epoll.unregister(0)
        self._again.clear()
        self._refused.clear()

    def _restart(self, clients: list[Client]) -> None:
        again = clients.copy()
        clients.clear()
        for client in again:
            client.open()
            self._start(client)

    def _sweep(self, now_s: float) -> None:
        for client in list(self._clients.values()):
            if now_s - client.moved_s > self.options.hang_s:
                silent = f"nothing for {now_s - client.moved_s:.1f} s while {client.state.name.lower()}"
                self._finish(client, self._cut(client, Outcome.UNSERVED_HUNG, Outcome.SERVED_HUNG), silent)

    def _start(self, client: Client) -> None:
        self.report.sessions += 1
        self._clients[client.fd] = client
        try:
            error = client.sock.connect_ex(client.target)
            client.port = client.sock.getsockname()[1]
        except OSError as exc:
            self._fail(client, exc)
            return
        if error and error != errno.EINPROGRESS:
            self._fail(client, OSError(error, "connect"))
            return
        self._epoll.register(client.fd, INTEREST)

    def _serve(self, client: Client, events: int) -> None:
        try:
            if client.state is State.CONNECTING:
                if error := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    # A handshake that fails is refused; one that was reset had been completed.
                    self.report.established += error == errno.ECONNRESET
                    raise OSError(error, "connect")
                self._connected(client)
            if client.out and client.state is State.TALKING:
                self._push(client)
            # Edge-triggered: with the end of the stream in sight, read until it is reached.
            if events & ENDING:
                while self._receive(client):
                    pass
            elif events & READABLE:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError as exc:
            self._fail(client, exc)

    def _connected(self, client: Client) -> None:
        self.report.established += 1
        client.moved_s = time.monotonic()
        if self.options.greeting:
            client.state = State.GREETING
            client.expected = self.options.greeting
            client.want = len(client.expected)
        else:
            client.state = State.TALKING
            self._next_message(client)

    def _next_message(self, client: Client) -> None:
        """Send the session's next message, or end our half of the stream after the last."""
        if not client.left:
            client.state = State.ENDING
            client.want = 0
            client.sock.shutdown(socket.SHUT_WR)
            return
        least = self.options.min_size_bytes
        size = least + int(self._random() * (self.options.max_size_bytes - least + 1))
        start = int(self._random() * POOL_BYTES)
        client.expected, client.position, client.want = self._pool, start, size
        client.out = self._pool_view[start : start + size]
        client.started_s = time.monotonic()
        self._push(client)

    def _push(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.out)
        except BlockingIOError:
            return
        self.report.sent_bytes += sent
        client.out = client.out[sent:]
        client.moved_s = time.monotonic()

    def _receive(self, client: Client) -> bool:
        """Take what has come, one byte more than is due at most; False once the session is over."""
        data = client.sock.recv(client.want + 1)
        now_s = client.moved_s = time.monotonic()
        if not data:
            ended_well = client.state is State.ENDING
            outcome = self._cut(client, Outcome.UNSERVED_EOF, Outcome.SERVED_EOF)
            self._finish(client, Outcome.COMPLETED if ended_well else outcome, "the server ended the stream")
            return False
        size = len(data)
        if size > client.want or not client.expected.startswith(data, client.position):
            self._finish(client, Outcome.MISMATCHED, f"{size} bytes, {client.want} due: {data[:40]!r}")
            return False
        self.report.received_bytes += size
        if not client.served:
            self._first_byte(client, now_s - client.opened_s)
        client.position += size
        client.want -= size
        if not client.want:
            if client.state is State.TALKING:
                self.report.messages += 1
                self.report.reply_worst_s = max(self.report.reply_worst_s, now_s - client.started_s)
                client.left -= 1
            client.state = State.TALKING
            self._next_message(client)
        return True

    def _first_byte(self, client: Client, waited_s: float) -> None:
        client.served = True
        self.report.first_byte_worst_s = max(self.report.first_byte_worst_s, waited_s)
        if not client.ever_served:
            client.ever_served = True
            self._never_served -= 1
            if self._never_served == 0:
                print("running", flush=True)

    @staticmethod
    def _cut(client: Client, unserved: Outcome, served: Outcome) -> Outcome:
        return served if client.served else unserved

    def _fail(self, client: Client, exc: OSError) -> None:
        if exc.errno in OWN_FAULTS:
            outcome = Outcome.OWN_FAULT
        elif exc.errno == errno.ECONNREFUSED:
            outcome = Outcome.REFUSED
        else:
            outcome = self._cut(client, Outcome.UNSERVED_RESET, Outcome.SERVED_RESET)
        self._finish(client, outcome, str(exc))

    def _finish(self, client: Client, outcome: Outcome, detail: str = "") -> None:
        """End the session, and begin the client's next if it has one to do."""
        now_s = time.monotonic()
        report = self.report
        report.outcomes[outcome] += 1
        if outcome is not Outcome.COMPLETED and len(report.faults) < FAULTS_MAX:
            server = f"{client.target[0]}:{client.target[1]}"
            after_s = now_s - client.opened_s
            report.faults.append(Fault(outcome, now_s, after_s, server, client.port, detail))
        del self._clients[client.fd]
        client.sock.close()
        if outcome in (Outcome.MISMATCHED, Outcome.OWN_FAULT):
            return
        if self.options.repeat:
            client.left = self.options.messages
            more = not self._stopping
        else:
            more = self.options.reconnect and outcome is not Outcome.COMPLETED
        if more:
            (self._refused if outcome is Outcome.REFUSED else self._again).append(client)


def run(options: Options) -> Report:
    """Make the load in this process and thread."""
    return Load(options).run()


def parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.load", description=__doc__)
    parser.add_argument("--address", action="append", required=True, dest="addresses")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--min-size", type=int, default=1, dest="min_size_bytes")
    parser.add_argument("--max-size", type=int, default=65536, dest="max_size_bytes")
    parser.add_argument("--greeting", type=str.encode, default=b"")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", action="store_true")
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--hang", type=float, default=10.0, dest="hang_s")
    parser.add_argument("--deadline", type=float, default=60.0, dest="deadline_s")
    fields = vars(parser.parse_args())
    fields["addresses"] = tuple(parse_address(text) for text in fields["addresses"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(run(Options(**fields)).to_json())


if __name__ == "__main__":
    main()
