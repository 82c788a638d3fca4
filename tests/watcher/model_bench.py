"""A real watcher with real sockets beside the model of its contract: what is done to the one is told to the other.

Nothing is left to chance. The watcher's clock is moved by hand, and after each deed of a peer the kernel has to show it
at our end before anything else is done. Only how much of a write the kernel takes remains its affair.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from typing import Any, Final

import pytest

from shardnet.errors import ConnectionBroken, ConnectionFreed, DeadlineExceeded, WatcherClosed
from shardnet.testing import FakeClock
from shardnet.watcher import Completion, Op
from tests.engine.kit import PATIENCE_S, receive_exactly, reset, tcp_pair, wait_for, wait_unread
from tests.watcher.kit import Bench
from tests.watcher.model import Asked, Conn, Fate, Kind, Model

UNREAD_MAX_BYTES: Final = 1000  # At our end: half of the smallest swap buffer, which so takes it in one receive.
WAY_BYTES: Final = 65536  # What the kernel is asked to buffer; it takes about three times as much.
SMALL_WRITE_MAX_BYTES: Final = 1000  # Always fits where the kernel says that it has room.
LARGE_WRITE_BYTES: Final = 400_000  # Never fits.
UNTOUCHED: Final = b"\xee"


class Pair:
    """Both ends of a connection, and what the model knows of it. `sock` is our end's key, `fd` its descriptor."""

    def __init__(self, name: str, unix: bool) -> None:
        self.name = name
        self.unix = unix
        self.conn: Conn
        self.sock: socket.socket
        self.peer: socket.socket
        self.fd = -1

    def __repr__(self) -> str:
        return self.name

    @property
    def usable(self) -> bool:
        """Whether both ends are there."""
        return self.conn.refuses is None and not self.conn.reset

    @property
    def talking(self) -> bool:
        return self.usable and not self.conn.ended

    def takes(self, size: int) -> bool:
        """Whether the peer may send so much."""
        return self.talking and self.conn.unread + size <= UNREAD_MAX_BYTES

    # What the peer does.

    def send(self, size: int) -> None:
        conn = self.conn
        self.peer.sendall(conn.send(size))
        if self.unix:
            return  # There it has arrived at once.
        if conn.available == conn.unread:
            wait_unread(self.fd, conn.unread)
        else:  # What stands behind an urgent mark cannot be looked at before it is read up to there.
            urgent = conn.mark is not None
            while _received_bytes(self.fd) < conn.arrived + urgent:
                select.select([], [], [], 0.001)

    def send_urgent(self) -> None:
        self.peer.send(b"!", socket.MSG_OOB)
        wait_for(self.fd, select.POLLPRI)
        self.conn.mark = self.conn.arrived

    def end(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        wait_for(self.fd, select.POLLRDHUP)
        self.conn.ended = True

    def reset(self) -> None:
        # Unix: an error for who left bytes unread, else an end. TCP: an error, but none for reads behind an end.
        error_waits = bool(_unread_bytes(self.peer)) if self.unix else not self.conn.ended
        reset(self.peer)
        wait_for(self.fd, select.POLLHUP)
        self.conn.reset, self.conn.error_waits = True, error_waits

    def receive(self, size: int) -> int:
        """At most `size` bytes of what is there, to be compared when it is known what should be."""
        before = len(self.conn.got)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while (left := before + size - len(self.conn.got)) > 0:
                chunk = self.peer.recv(min(left, 65536))
                if not chunk:
                    break
                self.conn.got += chunk
        return len(self.conn.got) - before

    # What the kernel says.

    def has_room(self) -> bool:
        """Whether the oldest write is one that cannot but succeed now."""
        conn = self.conn
        if not conn.writes or not self.usable:
            return False
        asked = conn.writes[0]
        small = asked.size is not None and asked.size <= SMALL_WRITE_MAX_BYTES
        can_go = not asked.once and asked.life == conn.life != conn.broken_life
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return small and can_go and bool(poll.poll(0))


class ModelBench:
    """One watcher and its model."""

    def __init__(self, engine: str, swap_size: int) -> None:
        self.model = Model()
        self.held: list[tuple[Completion, bytes]] = []  # Those with swap memory that is the caller's now.
        self.kept: list[tuple[memoryview, bytes]] = []  # Slices of it that the caller does not let go.
        self._keeps = 0
        self._outstanding: dict[Asked, tuple[socket.socket | None, Any]] = {}  # Its key, and its buffer.
        self._clock = FakeClock(0.0)
        self._bench = Bench(engine, swap_size)
        self.watcher = self._bench.watcher
        self.watcher._clock = self._clock

    def plug(self, pair: Pair) -> None:
        """Give it a connection."""
        pair.sock, pair.peer = self._bench.unix() if pair.unix else map(self._bench.keep, tcp_pair(WAY_BYTES))
        for end in (pair.sock, pair.peer):
            if pair.unix:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WAY_BYTES)
            else:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair.peer.setblocking(False)
        pair.fd = pair.sock.fileno()
        pair.conn = self.model.connect(f"{pair.name}.{len(self.model.conns)}", unix=pair.unix)

    def plug_dead(self, pair: Pair) -> None:
        """Its socket is closed, and no watcher's any more."""
        pair.conn = self.model.connect(pair.name, unix=pair.unix)
        pair.conn.gone = True

    # What is asked.

    def read(self, pair: Pair, size: int | None, timeout: float | None, *, full: bool = False) -> None:
        buffer = None if size is None else bytearray(UNTOUCHED * size)
        asked = self.model.read(pair.conn, size, timeout, full=full)
        self._outstanding[asked] = (pair.sock, buffer)
        submit = self.watcher.read_full if full else self.watcher.read
        submit(pair.sock, buffer, ctx=asked, timeout=timeout)

    def write(self, pair: Pair, size: int, timeout: float | None) -> None:
        asked = self.model.write(pair.conn, None, size, timeout)
        data = bytearray(asked.data) if size <= SMALL_WRITE_MAX_BYTES else asked.data
        self._outstanding[asked] = (pair.sock, data)
        self.watcher.write(pair.sock, data, ctx=asked, timeout=timeout)

    def write_held(self, pair: Pair, completion: Completion, data: bytes, timeout: float | None) -> None:
        asked = self.model.write(pair.conn, data, len(data), timeout)
        self._outstanding[asked] = (pair.sock, None)
        self.watcher.write(pair.sock, completion.data, ctx=asked, timeout=timeout)

    def sleep(self, seconds: float) -> None:
        self._outstanding[asked := self.model.sleep(seconds)] = (None, None)
        self.watcher.sleep(seconds, ctx=asked)

    def free(self, pair: Pair) -> None:
        self.model.free(pair.conn)
        self.watcher.free(pair.sock)
        _check_closed(pair.fd)
        self.watcher.free(pair.sock)

    def detach(self, pair: Pair, *, ask_former: bool) -> None:
        """Go on with what is given back. `ask_former`: with the former key, nothing goes on."""
        former = pair.sock
        try:
            pair.sock = self._bench.keep(self.watcher.detach(former))
        except ValueError:
            assert pair.conn.reads or any(not asked.once for asked in pair.conn.writes)
            return
        self.model.detach(pair.conn)
        assert (former.fileno(), pair.sock.fileno()) == (-1, pair.fd)
        if ask_former:
            self._outstanding[asked := self.model.read_of_former(pair.conn)] = (former, None)
            self.watcher.read(former, ctx=asked)
            self.watcher.free(former)

    def keep_slice(self, completion: Completion, data: bytes, start: int, end: int) -> None:
        self._keeps += 1
        self.kept.append((completion.data[start:end], data[start:end]))

    def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self.model.now_s += seconds

    # What comes of it.

    def wait(self, pairs: list[Pair]) -> None:
        """One `wait_io` that waits for nothing: all that can complete now does."""
        must_go = [pair.conn.writes[0] for pair in pairs if pair.has_room()]
        self.model.wait()
        self._wait_io()
        for asked in must_go:
            assert asked.answered, f"there was room for {asked}"
            assert asked.moved == asked.size, f"there was room for {asked}, which ended all the same"
        self.model.settle()
        for asked, (_, buffer) in self._outstanding.items():
            if isinstance(buffer, bytearray):
                with pytest.raises(BufferError):
                    buffer.append(0)
                assert len(buffer) == asked.size
        self.check_statistics(settled=True)

    def wait_until_nothing(self) -> None:
        """As `wait`, for more than one turn can do."""
        self.model.wait()
        while self._wait_io():
            pass
        self.model.settle()

    def read_on(self, pair: Pair, pairs: list[Pair]) -> None:
        """The peer reads until all writes are complete and all of their bytes are there: not one less or more."""
        conn = pair.conn
        self.wait(pairs)
        idle = 0
        while conn.writes:
            poll = select.poll()
            poll.register(pair.peer, select.POLLIN)
            poll.register(pair.fd, select.POLLOUT)
            assert poll.poll(PATIENCE_S * 1000), f"the kernel moves no bytes of {conn.writes}"
            got = pair.receive(1_000_000)
            self.wait(pairs)
            idle = 0 if got else idle + 1
            assert idle < 5, f"nothing more is written, though there is room: {conn.writes}"
        left = sum(asked.moved for asked in conn.outward) - conn.outward_got
        conn.got += receive_exactly(pair.peer, left)
        pair.peer.setblocking(False)
        pair.receive(1)
        self.wait(pairs)  # So that what is held does not depend on how many it took.

    def close(self, pairs: list[Pair], former: list[Pair]) -> None:
        """Close the watcher and all else. `former`: pairs that it has freed."""
        self.model.close()
        self.watcher.close()
        self.watcher.close()
        assert self.watcher.closed
        with pytest.raises(WatcherClosed):
            self.watcher.sleep(1.0)
        for pair in pairs:
            with pytest.raises(WatcherClosed):
                self.watcher.read(pair.sock)
            if pair.sock.fileno() < 0:
                _check_closed(pair.fd)
        while self._outstanding:
            self._wait_io()
        for pair in former:
            if not pair.conn.gone and not pair.conn.reset:
                pair.receive(1_000_000)
        self.model.settle()
        with pytest.raises(WatcherClosed):
            self.watcher.wait_io(0)
        self.model.take_back()
        self.check_statistics()
        self._bench.__exit__(None, None, None)

    def abandon(self) -> None:
        """Close it without another look."""
        self._bench.__exit__(AssertionError, AssertionError(), None)

    def check_statistics(self, *, settled: bool = False) -> None:
        """What can be told at any time; and what right after a `wait_io`, when no completion waits."""
        said, model = self.watcher.statistics(), self.model
        assert said.submitted == model.submitted == said.completed + said.pending
        assert said.waiting == said.completed - model.handed_out
        assert said.received_bytes == sum(conn.taken for conn in model.conns)
        assert said.swap_in_use_bytes == model.swap_ready + model.swap_lent
        assert said.swap_abandoned <= self._keeps
        assert said.connections == sum(conn.adopted for conn in model.conns)
        assert 0 <= said.completed - model.completed <= model.writes_open
        assert 0 <= said.sent_bytes - model.sent_bytes <= model.writes_open_bytes
        if settled:
            assert (said.waiting, said.completed) == (0, model.handed_out)
            assert said.pending == len(self._outstanding)
            assert said.deadlines == model.deadlines
            assert said.connections_pending == sum(1 for conn in model.conns if conn.reads or conn.writes)
            outcomes = {name: getattr(said, f"completed_{name}") for name in COUNTED}
            assert outcomes == {name: model.outcomes[name] for name in COUNTED}

    # Inside.

    def _wait_io(self) -> int:
        """Hand completions to the model; how many there were."""
        for completion, data in self.held:
            assert completion.data == data, f"{completion} changed in the caller's hands"
        completions = self.watcher.wait_io(0)
        self.model.take_back()
        for completion, _ in self.held:
            with pytest.raises(ValueError, match="before the next"):
                completion.buffer  # noqa: B018 - it raises
        self.held.clear()
        for view, data in self.kept:
            assert view == data, "a slice that the caller kept has changed"
        for completion in completions:
            self._check(completion)
        return len(completions)

    def _check(self, completion: Completion) -> None:
        asked = completion.ctx
        assert isinstance(asked, Asked)
        assert asked in self._outstanding, f"{asked} completes twice: {completion}"
        key, buffer = self._outstanding.pop(asked)
        assert completion.op is {Kind.WRITE: Op.WRITE, Kind.SLEEP: Op.TIMER}.get(asked.kind, Op.READ)
        assert completion.conn is key
        data = b""
        if asked.kind in (Kind.READ, Kind.READ_FULL):
            data = bytes(completion.data)
            assert completion.is_swap_buffer == (asked.size is None)
            if asked.size is None and data:
                self.held.append((completion, data))
            elif asked.size is not None:
                assert buffer[completion.size :] == UNTOUCHED * (len(buffer) - completion.size)
        if buffer is not None:
            assert completion.buffer is buffer
        if isinstance(buffer, bytearray):
            buffer.append(0)  # It is the caller's again.
        self.model.answer(asked, _fate(completion.error), completion.size, data)


COUNTED: Final = ("ok", "eof", "cancelled", "deadline", "reset", "error")


def _fate(error: object) -> Fate:
    match error:
        case None:
            return Fate.DONE
        case EOFError():
            return Fate.END
        case ConnectionFreed():
            return Fate.FREED
        case ConnectionBroken():
            return Fate.BROKEN
        case WatcherClosed():
            return Fate.CLOSED
        case DeadlineExceeded(errno=None):
            return Fate.DEADLINE
        case ConnectionResetError(errno=errno.ECONNRESET):
            return Fate.RESET
        case BrokenPipeError(errno=errno.EPIPE):
            return Fate.PIPE
        case OSError(errno=errno.EBADF):
            return Fate.NOWHERE
    raise AssertionError(f"nothing ends with {error!r}")


def _check_closed(fd: int) -> None:
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF


def _unread_bytes(sock: socket.socket) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0]
    return size


def _received_bytes(fd: int) -> int:
    """What a TCP socket has received in all, urgent bytes included."""
    sock = socket.socket(fileno=fd)
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    finally:
        sock.detach()
    size: int = struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received
    return size
