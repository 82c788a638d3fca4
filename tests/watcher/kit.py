"""A bench for the watcher's conformance tests: a watcher of any engine, connections to it, and their peers.

Nothing here waits for time to pass: `Bench.collect` waits for completions, and `wait_for` and `wait_unread` of
`tests.engine.kit` for what the kernel has.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from shardnet.watcher import Channel, Completion, Op, Watcher
from tests.engine.kit import PATIENCE_S, open_fds, tcp_pair

# What the suite runs on: an engine's name, and how to ask for it. An engine that comes later joins here.
ENGINES: Final[dict[str, dict[str, Any]]] = {
    "python-epoll": {"poller": "epoll"},
    "python-poll": {"poller": "poll"},
}


class Answer(NamedTuple):
    """A completion, with its bytes kept."""

    op: Op
    ctx: Any
    conn: socket.socket | Channel | None
    data: bytes
    error: BaseException | None
    completion: Completion

    @property
    def size(self) -> int:
        return self.completion.size


class Bench:
    """One watcher and the peers of its connections.

    At the end all is closed: everything that was submitted must have completed, once, and no descriptor may be left.
    """

    def __init__(self, engine: str, swap_size: int = 65536) -> None:
        self._fds_before = open_fds()
        self.watcher = Watcher(swap_size, **ENGINES[engine])
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        watcher = self.watcher
        watcher.close()
        self._undo.close()
        if error is not None:
            return
        said = watcher.statistics()
        assert said.submitted == said.completed
        outcomes = (said.completed_ok, said.completed_eof, said.completed_cancelled, said.completed_deadline)
        assert sum(outcomes) + said.completed_reset + said.completed_error == said.completed
        assert (said.pending, said.connections, said.deadlines) == (0, 0, 0)
        assert open_fds() <= self._fds_before

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close `sock` at the end."""
        self._undo.callback(sock.close)
        return sock

    def tcp(self, buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection: one for the watcher, and the blocking one of its peer. `buffer_bytes` narrows
        the way to the peer."""
        ours, theirs = tcp_pair(buffer_bytes)
        return self.keep(ours), self.keep(theirs)

    def unix(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        return self.keep(ours), self.keep(theirs)

    def listener(self, backlog: int = 128) -> socket.socket:
        return self.keep(socket.create_server(("127.0.0.1", 0), backlog=backlog))

    def accepted(self) -> tuple[Channel, socket.socket]:
        """A channel that the watcher has accepted, and its peer."""
        listener = self.listener()
        theirs = self.keep(socket.create_connection(listener.getsockname()))
        self.watcher.accept(listener)
        conn = self.one().conn
        assert isinstance(conn, Channel)
        return conn, theirs

    def collect(self, count: int) -> list[Answer]:
        """The next `count` completions, however many calls they take, and not one more."""
        answers: list[Answer] = []
        self.until(lambda: len(answers) >= count, answers)
        assert len(answers) == count, answers
        return answers

    def one(self) -> Answer:
        """The next completion."""
        return self.collect(1)[0]

    def none(self) -> None:
        """Nothing completes now."""
        for _ in range(3):
            assert self.watcher.wait_io(0) == []

    def until(self, condition: Callable[[], object], answers: list[Answer]) -> None:
        """Wait for completions, and put them into `answers`, until `condition()` holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"it never came; so far {answers[-20:]}"
            answers += map(_answer, self.watcher.wait_io(left_s))


def _answer(completion: Completion) -> Answer:
    data = bytes(completion.data)
    return Answer(completion.op, completion.ctx, completion.conn, data, completion.error, completion)
