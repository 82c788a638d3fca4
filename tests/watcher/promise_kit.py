"""What the tests of the promises 1 to 9 share: operations that wait, full ways, and calls that are refused.

A test that needs time to pass puts a `FakeClock` into its watcher before it asks for anything (`stop_time`), and then
moves it by hand. `Bench.one` and `Bench.collect` then wait for events alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from shardnet.testing import FakeClock
from shardnet.watcher import Channel, Op
from tests.engine.kit import receive_exactly
from tests.watcher.kit import Bench

TIMEOUT_S: Final = 5.0  # On a clock that is moved by hand, or never to be reached.


class Waiting(NamedTuple):
    """An operation that waits."""

    op: Op
    conn: socket.socket | None  # What was passed, to be freed.
    answer: Callable[[], object]  # Makes it succeed.


def stop_time(bench: Bench) -> FakeClock:
    bench.watcher._clock = clock = FakeClock()
    return clock


class CountedTime(float):
    """A point in time that counts how often it is compared."""

    compared = 0

    def __add__(self, other: float) -> Self:
        return type(self)(float(self) + other)

    def _count(self) -> float:
        CountedTime.compared += 1
        return float(self)

    def __lt__(self, other: float) -> bool:
        return self._count() < float(other)

    def __gt__(self, other: float) -> bool:
        return self._count() > float(other)

    def __le__(self, other: float) -> bool:
        return self._count() <= float(other)

    def __ge__(self, other: float) -> bool:
        return self._count() >= float(other)

    def __eq__(self, other: object) -> bool:
        return self._count() == other

    def __hash__(self) -> int:
        return hash(float(self))


def fill(sock: socket.socket) -> int:
    """Send until the way to the peer is full: how many bytes. Only a unix socket's stays so until the peer reads."""
    sock.setblocking(False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += sock.send(b"-" * 4096)
    sock.settimeout(None)
    return size


def full(bench: Bench) -> tuple[socket.socket, socket.socket, int]:
    """A connection whose way to the peer is full, and of how many bytes."""
    ours, theirs = bench.unix()
    return ours, theirs, fill(ours)


def full_listener(bench: Bench) -> socket.socket:
    """A TCP listener whose backlog is full: the kernel ignores who comes now, who comes again after a second."""
    listener = bench.listener(backlog=0)
    bench.keep(socket.create_connection(listener.getsockname()))
    return listener


def _taken() -> tuple[str, int]:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    host, port = taken.getsockname()
    taken.detach()
    return host, port


_TAKEN = _taken()


def unused_address() -> tuple[str, int]:
    """A loopback address where nobody listens. It is taken all the same: who connects to a free port may, now and then,
    be given that very port, and is then connected with himself."""
    return _TAKEN


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Whatever wants a new descriptor gets EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Operations that wait, one of each kind. `timeout` is passed on.


def _read(bench: Bench, timeout: float | None) -> Waiting:
    ours, theirs = bench.unix()
    bench.watcher.read(ours, timeout=timeout)
    return Waiting(Op.READ, ours, lambda: theirs.sendall(b"four"))


def _read_into(bench: Bench, timeout: float | None) -> Waiting:
    ours, theirs = bench.unix()
    bench.watcher.read(ours, bytearray(100), timeout=timeout)
    return Waiting(Op.READ, ours, lambda: theirs.sendall(b"four"))


def _read_full(bench: Bench, timeout: float | None) -> Waiting:
    ours, theirs = bench.unix()
    theirs.sendall(b"fo")
    bench.watcher.read_full(ours, bytearray(4), timeout=timeout)
    return Waiting(Op.READ, ours, lambda: theirs.sendall(b"ur"))


def _write(bench: Bench, timeout: float | None) -> Waiting:
    ours, theirs, size = full(bench)
    bench.watcher.write(ours, b"four", timeout=timeout)
    return Waiting(Op.WRITE, ours, lambda: receive_exactly(theirs, size))


def _accept(bench: Bench, timeout: float | None) -> Waiting:
    listener = bench.listener()
    bench.watcher.accept(listener, timeout=timeout)
    return Waiting(Op.ACCEPT, listener, lambda: bench.keep(socket.create_connection(listener.getsockname())))


def _connect(bench: Bench, timeout: float | None) -> Waiting:
    listener = full_listener(bench)
    bench.watcher.connect(listener.getsockname(), timeout=timeout)
    return Waiting(Op.CONNECT, None, lambda: bench.keep(listener.accept()[0]))


WAITING: Final[dict[str, Callable[[Bench, float | None], Waiting]]] = {
    "read": _read,
    "read_into": _read_into,
    "read_full": _read_full,
    "write": _write,
    "accept": _accept,
    "connect": _connect,
}
FREEABLE: Final = [name for name in WAITING if name != "connect"]  # Of a connect, the user has nothing to free yet.


# Calls that are refused, given a connection that nobody has used yet.


class Refused(NamedTuple):
    error: type[Exception]
    call: Callable[[Bench, socket.socket], object]


def _of_kind(kind: socket.SocketKind) -> Callable[[Bench, socket.socket], object]:
    def call(bench: Bench, _: socket.socket) -> None:
        bench.watcher.read(bench.keep(socket.socket(socket.AF_UNIX, kind)))

    return call


def _a_file(bench: Bench, _: socket.socket) -> None:
    with open(os.devnull, "rb") as file:  # noqa: PTH123 - an object with a `fileno`, and nothing else is wanted
        bench.watcher.read(_anything(file))


def _anything(value: object) -> Any:
    return value


def _with_timeout(timeout: object) -> dict[str, Refused]:
    error = TypeError if isinstance(timeout, str) else ValueError
    wrong = _anything(timeout)
    return {
        f"read_timeout_{timeout}": Refused(error, lambda b, c: b.watcher.read(c, timeout=wrong)),
        f"fill_timeout_{timeout}": Refused(error, lambda b, c: b.watcher.read_full(c, bytearray(1), timeout=wrong)),
        f"write_timeout_{timeout}": Refused(error, lambda b, c: b.watcher.write(c, b"x", timeout=wrong)),
        f"accept_timeout_{timeout}": Refused(error, lambda b, c: b.watcher.accept(c, timeout=wrong)),
        f"connect_timeout_{timeout}": Refused(error, lambda b, _: b.watcher.connect(("127.0.0.1", 9), timeout=wrong)),
        f"sleep_{timeout}": Refused(error, lambda b, _: b.watcher.sleep(wrong)),
    }


def _connecting(name: str, error: type[Exception], address: object) -> dict[str, Refused]:
    return {f"connect_{name}": Refused(error, lambda b, _: b.watcher.connect(address))}


_NOT_CONTIGUOUS: Final = memoryview(bytearray(8))[::2]

REFUSED: Final[dict[str, Refused]] = {
    # What is no connection.
    "none": Refused(TypeError, lambda b, _: b.watcher.read(_anything(None))),
    "an_int": Refused(TypeError, lambda b, c: b.watcher.read(_anything(c.fileno()))),
    "an_object": Refused(TypeError, lambda b, _: b.watcher.write(_anything(object()), b"x")),
    "a_file": Refused(TypeError, _a_file),
    "udp": Refused(TypeError, _of_kind(socket.SOCK_DGRAM)),
    "seqpacket": Refused(TypeError, _of_kind(socket.SOCK_SEQPACKET)),
    "accept_none": Refused(TypeError, lambda b, _: b.watcher.accept(_anything(None))),
    "accept_an_int": Refused(TypeError, lambda b, c: b.watcher.accept(_anything(c.fileno()))),
    # What is no buffer to read into.
    "read_into_bytes": Refused(ValueError, lambda b, c: b.watcher.read(c, b"read-only")),
    "read_into_nothing": Refused(ValueError, lambda b, c: b.watcher.read(c, bytearray())),
    "read_into_str": Refused(TypeError, lambda b, c: b.watcher.read(c, "text")),
    "read_into_a_size": Refused(TypeError, lambda b, c: b.watcher.read(c, 100)),
    "read_not_contiguous": Refused(TypeError, lambda b, c: b.watcher.read(c, _NOT_CONTIGUOUS)),
    "read_full_into_bytes": Refused(ValueError, lambda b, c: b.watcher.read_full(c, b"read-only")),
    "read_full_into_nothing": Refused(ValueError, lambda b, c: b.watcher.read_full(c, bytearray())),
    "read_full_into_none": Refused(TypeError, lambda b, c: b.watcher.read_full(c, None)),
    "read_full_not_contiguous": Refused(TypeError, lambda b, c: b.watcher.read_full(c, _NOT_CONTIGUOUS)),
    # What cannot be written.
    "write_nothing": Refused(ValueError, lambda b, c: b.watcher.write(c, b"")),
    "write_an_empty_view": Refused(ValueError, lambda b, c: b.watcher.write(c, memoryview(b"data")[4:])),
    "write_str": Refused(TypeError, lambda b, c: b.watcher.write(c, "text")),
    "write_none": Refused(TypeError, lambda b, c: b.watcher.write(c, None)),
    "write_an_int": Refused(TypeError, lambda b, c: b.watcher.write(c, 100)),
    "write_not_contiguous": Refused(TypeError, lambda b, c: b.watcher.write(c, _NOT_CONTIGUOUS)),
    # What cannot be waited for.
    **_with_timeout(-1),
    **_with_timeout(-0.001),
    **_with_timeout(-math.inf),
    **_with_timeout(math.nan),
    **_with_timeout("soon"),
    "sleep_for_ever": Refused(ValueError, lambda b, _: b.watcher.sleep(math.inf)),
    "sleep_none": Refused(ValueError, lambda b, _: b.watcher.sleep(_anything(None))),
    # What is no address. Nothing is looked up.
    **_connecting("none", TypeError, None),
    **_connecting("a_port", TypeError, 80),
    **_connecting("a_list", TypeError, ["127.0.0.1", 80]),
    **_connecting("a_host_alone", TypeError, ("127.0.0.1",)),
    **_connecting("a_name", ValueError, ("localhost", 80)),
    **_connecting("an_empty_host", ValueError, ("", 80)),
    **_connecting("half_an_ip_address", ValueError, ("127.1", 80)),
    **_connecting("an_ipv4_address_with_a_scope", ValueError, ("127.0.0.1%lo", 80)),
    **_connecting("port_0", ValueError, ("127.0.0.1", 0)),
    **_connecting("port_65536", ValueError, ("127.0.0.1", 65536)),
    **_connecting("a_negative_port", ValueError, ("::1", -1)),
    **_connecting("a_port_by_name", ValueError, ("127.0.0.1", "http")),
    **_connecting("too_much_for_ipv4", TypeError, ("127.0.0.1", 80, 0)),
    **_connecting("too_much_for_ipv6", TypeError, ("::1", 80, 0, 0, 0)),
    **_connecting("a_flow_by_name", TypeError, ("::1", 80, "flow")),
    **_connecting("a_flow_out_of_range", ValueError, ("::1", 80, -1)),
    **_connecting("a_path_that_cannot_be_encoded", ValueError, "\ud800"),
}


def submissions(bench: Bench, conn: Any) -> dict[str, Callable[[], object]]:
    """Every call that submits, as it should be."""
    watcher = bench.watcher
    return {
        "read": lambda: watcher.read(conn),
        "read_full": lambda: watcher.read_full(conn, bytearray(1)),
        "write": lambda: watcher.write(conn, b"x"),
        "accept": lambda: watcher.accept(bench.listener()),
        "connect": lambda: watcher.connect(unused_address()),
        "sleep": lambda: watcher.sleep(0),
    }


SUBMISSIONS: Final = ("read", "read_full", "write", "accept", "connect", "sleep")


def hold(bench: Bench, channel: object) -> Channel:
    """Keep a channel to the end, so that it is closed with the watcher, and not because nobody holds it."""
    assert isinstance(channel, Channel)
    bench._undo.callback(lambda _: None, channel)
    return channel
