"""The peers of the stress: a fleet of clients and servers in a process of its own, on the standard library alone.

`python -m tests.watcher.stress_peers SEED INDEX CONNECTIONS PORT...` prints the port that it listens on, then obeys
the lines on its standard input: `open` keeps CONNECTIONS connections open to the PORTs, `settle` opens no more and
ends every stream after which all that comes is read, and `report` waits until no connection is left and prints one
line of JSON: what became of each, by its number. It ends with its input.

Lives here: what peers do to a server, kind and unkind. Must not live here: anything of shardnet, which is under test.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Final

from tests.watcher.stress_streams import PART_MAX_BYTES, POOL_BYTES, PREAMBLE, Plan, Role, Streams

TICK_S: Final = 0.02
ACTS_PER_TICK_MAX: Final = 200
OPENED_PER_TICK_MAX: Final = 50  # Few enough for the backlog of a listener.
REPORT_PATIENCE_S: Final = 90.0
FAULTS_MAX: Final = 20
LAZY_ROLES: Final = frozenset({Role.LAZY, Role.ECHO})  # Whose peers at times do not read: what is sent has to wait.
SENT_MAX_BYTES: Final = {Role.BULK: PART_MAX_BYTES, Role.ECHO: 65536}
LAZY_BYTES: Final = 16384  # What fits into the kernel of a peer that does not read.
KEEPALIVE_S: Final = 3
ENDING: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
LOCAL: Final = "127.0.0.1"


class Peer:
    """One connection, as its peer sees it."""

    __slots__ = (
        "accepted", "connecting", "end", "fin", "number", "paused", "place", "plan", "preamble", "received", "reset",
        "sent", "sock", "urgent",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, place: int, *, accepted: bool) -> None:
        self.sock = sock
        self.place = place  # In the list of all.
        self.accepted = accepted
        self.connecting = not accepted
        self.number = -1
        self.preamble = b""
        self.plan = Plan(Role.IDLE, 0, 0)
        self.sent = self.received = 0
        self.paused = False  # Not reading.
        self.fin = False  # Ended its stream.
        self.end = False  # Saw the end of the watcher's.
        self.reset = False  # Was torn off, by either.
        self.urgent = False  # Has sent an urgent byte. Only one: a second would push the first into the stream.


class Peers:
    def __init__(self, seed: int, index: int, quota: int, ports: list[int]) -> None:
        self._streams = Streams(seed)
        self._random = random.Random(seed * 1000 + index)
        self._quota = quota
        self._ports = ports
        self._serial = index + 1 << 32
        self._epoll = select.epoll()
        self._table: dict[int, Peer] = {}
        self._all: list[Peer] = []
        self._clients = 0
        self._ended: dict[int, tuple[int, int, bool, bool]] = {}
        self._faults: list[str] = []
        self._buffer = memoryview(bytearray(min(1 << 18, POOL_BYTES)))
        self._commands = b""
        self._opening = self._settling = False
        self._report_by_s: float | None = None
        self._acted_s = time.monotonic()
        self._listener = socket.create_server((LOCAL, 0), backlog=4096)
        self._listener.setblocking(False)

    def run(self) -> None:
        listener = self._listener.fileno()
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(0, select.EPOLLIN)
        print(self._listener.getsockname()[1], flush=True)
        while True:
            for fd, events in self._epoll.poll(TICK_S, 512):
                if fd == 0:
                    if not self._obey():
                        return
                elif fd == listener:
                    self._accept()
                elif fd in self._table:
                    self._serve(self._table[fd], events)
            self._act()
            if self._opening:
                self._open()
            if self._report_by_s is not None and (not self._all or time.monotonic() > self._report_by_s):
                self._report()

    # Commands.

    def _obey(self) -> bool:
        data = os.read(0, 4096)
        if not data:
            return False
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            match line:
                case b"open":
                    self._opening, self._settling = True, False
                case b"settle":
                    self._opening, self._settling = False, True
                    for peer in list(self._all):
                        self._settle(peer)
                case b"report":
                    self._report_by_s = time.monotonic() + REPORT_PATIENCE_S
        return True

    def _report(self) -> None:
        self._report_by_s = None
        left = len(self._all)
        for peer in list(self._all):
            peer.reset = True
            self._end(peer)
        print(json.dumps({"ended": self._ended, "faults": self._faults, "left": left}), flush=True)
        self._ended, self._faults = {}, []

    # Connections.

    def _open(self) -> None:
        for _ in range(min(OPENED_PER_TICK_MAX, self._quota - self._clients)):
            sock = socket.socket()
            sock.setblocking(False)
            peer = self._enter(sock, accepted=False)
            self._clients += 1
            self._serial += 1
            peer.number = self._serial
            self._begin(peer)
            try:
                failed = sock.connect_ex((LOCAL, self._random.choice(self._ports)))
            except OSError as error:
                failed = error.errno or -1
            if failed not in (0, errno.EINPROGRESS):
                peer.reset = True
                self._end(peer)
                return
            self._epoll.register(sock, select.EPOLLOUT)

    def _accept(self) -> None:
        for _ in range(OPENED_PER_TICK_MAX):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._epoll.register(self._enter(sock, accepted=True).sock, select.EPOLLIN | ENDING)

    def _enter(self, sock: socket.socket, *, accepted: bool) -> Peer:
        peer = Peer(sock, len(self._all), accepted=accepted)
        self._all.append(peer)
        self._table[sock.fileno()] = peer
        return peer

    def _begin(self, peer: Peer) -> None:
        """The number is known."""
        peer.plan = self._streams.plan(peer.number)
        # Not once connected: what was on its way already would be thrown away, and sent again ever more seldom.
        if peer.connecting and peer.plan.role in LAZY_ROLES:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LAZY_BYTES)

    def _end(self, peer: Peer) -> None:
        self._table.pop(peer.sock.fileno(), None)
        peer.sock.close()
        last = self._all.pop()
        if last is not peer:
            self._all[peer.place] = last
            last.place = peer.place
        if not peer.accepted:
            self._clients -= 1
        if peer.number >= 0:
            self._ended[peer.number] = (peer.sent, peer.received, peer.end, peer.reset)

    def _fault(self, peer: Peer, text: str) -> None:
        if len(self._faults) < FAULTS_MAX:
            self._faults.append(f"connection {peer.number} ({peer.plan.role.name}): {text}")

    def _watch(self, peer: Peer) -> None:
        events = 0 if peer.end else ENDING if peer.paused else select.EPOLLIN | ENDING
        self._epoll.modify(peer.sock, events)

    # What comes.

    def _serve(self, peer: Peer, events: int) -> None:
        try:
            if peer.connecting:
                self._connected(peer)
            elif peer.end:  # There is nothing to read any more: it can only be a reset.
                peer.reset = True
                self._end(peer)
            else:
                if events & ENDING:
                    peer.paused = False
                self._receive(peer)
        except BlockingIOError:
            pass
        except OSError:
            peer.reset = True
            self._end(peer)

    def _connected(self, peer: Peer) -> None:
        failed = peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        peer.sock.send(PREAMBLE.pack(peer.number))
        peer.connecting = False
        self._ready(peer)

    def _ready(self, peer: Peer) -> None:
        paused = peer.plan.role is Role.LAZY or (peer.plan.role is Role.ECHO and self._random.random() < 0.5)
        peer.paused = paused and not self._settling
        self._watch(peer)
        if self._settling:
            self._settle(peer)

    def _receive(self, peer: Peer) -> None:
        if peer.number < 0:
            data = peer.sock.recv(PREAMBLE.size - len(peer.preamble))
            peer.preamble += data
            if not data:
                self._end(peer)
            elif len(peer.preamble) == PREAMBLE.size:
                (peer.number,) = PREAMBLE.unpack(peer.preamble)
                self._begin(peer)
                self._ready(peer)
            return
        size = peer.sock.recv_into(self._buffer)
        if size:
            if not self._streams.matches(self._buffer[:size], peer.plan.to_peer, peer.received):
                self._fault(peer, f"wrong bytes among the {size} after the first {peer.received} to the peer")
            peer.received += size
            return
        peer.end = True
        if peer.fin:
            self._end(peer)
        else:
            self._watch(peer)

    # What is done.

    def _act(self) -> None:
        now_s = time.monotonic()
        rate = max(500, len(self._all) // 2)
        count = min(ACTS_PER_TICK_MAX, int((now_s - self._acted_s) * rate))
        if not count or self._settling:
            return
        self._acted_s = now_s
        for _ in range(count):
            if not self._all:
                return
            peer = self._random.choice(self._all)
            if peer.number < 0 or peer.connecting:
                continue
            try:
                self._act_on(peer)
            except BlockingIOError:
                pass
            except OSError:
                peer.reset = True
                self._end(peer)

    def _act_on(self, peer: Peer) -> None:
        chance = self._random.random()
        role = peer.plan.role
        if role is Role.IDLE and chance < 0.97:
            return
        if peer.end and self._random.random() < 0.3 and not peer.fin:
            self._shut(peer)
        elif chance < 0.55:
            self._send(peer, self._random.randint(1, 200))
        elif chance < 0.78:
            self._send(peer, self._random.randint(1, SENT_MAX_BYTES.get(role, 16384)))
        elif chance < 0.92:
            if not peer.end:
                peer.paused = not peer.paused and role in LAZY_ROLES
                self._watch(peer)
        elif chance < 0.95:
            if not peer.urgent and not peer.fin:
                peer.urgent = peer.sock.send(b"!", socket.MSG_OOB) > 0
        elif chance < 0.965:
            self._shut(peer)
        elif chance < 0.975:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.reset = True
            self._end(peer)
        elif chance < 0.98:
            peer.reset = not peer.end  # The kernel makes it one if something is unread.
            self._end(peer)

    def _send(self, peer: Peer, size: int) -> None:
        """What the kernel takes of so many bytes."""
        if not peer.fin:
            peer.sent += peer.sock.send(self._streams.part(peer.plan.to_watcher, peer.sent, size))

    def _shut(self, peer: Peer) -> None:
        if peer.fin:
            return
        peer.sock.shutdown(socket.SHUT_WR)
        peer.fin = True
        if peer.end:
            self._end(peer)

    def _settle(self, peer: Peer) -> None:
        if peer.connecting or peer.number < 0:
            return
        try:
            peer.paused = False
            # A socket that was closed with bytes unsent, to a peer that does not read, is given up by the kernel after
            # a minute, without a word to that peer.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
            self._watch(peer)
            self._shut(peer)
        except OSError:
            peer.reset = True
            self._end(peer)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever started the stress stops it, and it us.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seed, index, quota, *ports = map(int, sys.argv[1:])
    Peers(seed, index, quota, ports).run()


if __name__ == "__main__":
    main()
