"""What comes in the middle of a call: signal handlers and the garbage collector run between any two lines of it.

So something is done at each line of the watcher in turn, once in each run of a short program, until all lines have had
their turn.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

import shardnet.watcher
from shardnet.errors import WatcherClosed
from shardnet.watcher import Channel, Completion, Op, Watcher
from shardnet.watcher.borrowed import BorrowedListener
from shardnet.watcher.listener import Listener
from shardnet.watcher.operations import Operation
from shardnet.watcher.queued import QueuedEndpoint
from tests.engine.kit import open_fds, wait_for, wait_unread
from tests.watcher.kit import ENGINES, Bench
from tests.watcher.promise_kit import unused_address

WATCHER: Final = str(Path(shardnet.watcher.__file__).parent)


class Interrupt:
    """Calls `action` at the line of the watcher's code that is the `at`-th to run in the block."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self.left = at
        self._action = action

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHER):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(self._before)
                self._action()
        return self._trace


class Program:
    """Every kind of operation on a watcher, and the completions, by `ctx`."""

    def __init__(self, engine: str) -> None:
        self.watcher = Watcher(**ENGINES[engine])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ours, self.theirs = socket.socketpair()
        self.dropped = list(socket.socketpair())
        self.idle: list[socket.socket] = []
        self.asked: list[object] = []
        self.answered: Counter[object] = Counter()
        self.channels: list[Channel] = []

    def prepare(self) -> None:
        """A connection that is idle, and known to the poller, with an event to come; and one that is to be dropped."""
        self.watcher.read(self.dropped[0], timeout=0)
        self.idle.append(self.dropped.pop(0))
        self.watcher.wait_io()
        self.watcher.read(self.idle[0], ctx="first")
        self.dropped[0].send(b"x")
        self.watcher.wait_io()
        self.dropped[0].send(b"news")

    def run(self) -> None:
        watcher, ours = self.watcher, self.ours
        self.ask("connect", lambda ctx: watcher.connect(self.listener.getsockname(), ctx=ctx))
        self.ask("accept", lambda ctx: watcher.accept(self.listener, ctx=ctx, timeout=60))
        self.ask("read", lambda ctx: watcher.read(ours, ctx=ctx, timeout=60))
        self.ask("full", lambda ctx: watcher.read_full(ours, bytearray(3), ctx=ctx))
        self.ask("write", lambda ctx: watcher.write(ours, b"hello", ctx=ctx))
        self.ask("late", lambda ctx: watcher.read(ours, ctx=ctx, timeout=0))
        self.ask("sleep", lambda ctx: watcher.sleep(0, ctx=ctx))
        with contextlib.suppress(BrokenPipeError):  # When it is closed already.
            self.theirs.send(b"abcdef")
        self.wait()
        self.ask("more", lambda ctx: watcher.read(ours, ctx=ctx))
        watcher.free(ours)
        self.wait()

    def ask(self, ctx: object, call: Callable[[object], None]) -> None:
        call(ctx)
        self.asked.append(ctx)

    def wait(self) -> None:
        for completion in self.watcher.wait_io():
            self.answer(completion)

    def answer(self, completion: Completion) -> None:
        self.answered[completion.ctx] += 1
        if isinstance(completion.conn, Channel):
            self.channels.append(completion.conn)

    def end(self) -> None:
        """Close, and take what is left."""
        self.watcher.close()
        with contextlib.suppress(WatcherClosed):
            while True:
                self.wait()
        for sock in (self.listener, self.ours, self.theirs, *self.dropped, *self.idle):
            sock.close()


def at_each_line(engine: str, action: Callable[[Program], object]) -> int:
    """Run the program again and again, with `action` one line later each time; how many lines there were."""
    at = 0
    while True:
        at += 1
        before = open_fds()
        program = Program(engine)
        program.prepare()
        closed = False
        with Interrupt(at, lambda program=program: action(program)) as interrupt:  # type: ignore[misc]
            try:
                program.run()
            except WatcherClosed:
                closed = True
        program.end()
        assert program.answered == Counter(program.asked), f"line {at}"
        said = program.watcher.statistics()
        assert said.submitted == said.completed == said.completed + said.pending, f"line {at}"
        assert open_fds() <= before, f"line {at}"
        if interrupt.left > 0 and not closed:
            return at


@pytest.mark.slow
def test_close_from_a_signal_handler_loses_no_completion_at_any_line(engine: str) -> None:
    """It once carried the close out where it was: in the middle of a submission, whose operation completed never or
    twice."""
    assert at_each_line(engine, lambda program: program.watcher.close()) > 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a connection:ResourceWarning")
def test_connection_may_be_dropped_at_any_line(engine: str) -> None:
    """With poll(2), one that was dropped between a poll and its events made `wait_io` raise `KeyError`."""
    assert at_each_line(engine, lambda program: program.idle.clear()) > 300


@pytest.mark.slow
def test_wake_comes_at_any_line(engine: str) -> None:
    at_each_line(engine, lambda program: program.watcher.wake())


def test_call_in_the_middle_of_another_is_refused_and_does_no_harm(bench: Bench) -> None:
    """The clock stands for whatever Python runs in between."""
    ours, theirs = bench.tcp()
    refused: list[RuntimeError] = []
    clock = bench.watcher._clock

    def meddling() -> float:
        for call in (bench.watcher.read, bench.watcher.free, bench.watcher.detach):
            with pytest.raises(RuntimeError, match=r"wake\(\) and close\(\)") as caught:
                call(ours)
            refused.append(caught.value)
        return clock()

    bench.watcher.read(ours, ctx="read")
    bench.watcher.write(ours, b"x", ctx="write")
    bench.watcher._clock = meddling
    first = bench.watcher.wait_io()
    bench.watcher._clock = clock
    assert refused
    theirs.send(b"y")
    assert [completion.ctx for completion in first] == ["write"]
    assert bench.one()[1:4] == ("read", ours, b"y")


@pytest.mark.parametrize("size", [4, 0])
def test_reset_that_a_write_met_is_no_end_of_stream_for_a_read(bench: Bench, size: int) -> None:
    """The kernel tells once of a reset, and then that the stream is over. A truncated message looked like a whole."""
    ours, theirs = bench.tcp()
    number = ours.fileno()
    bench.watcher.read_full(ours, bytearray(10), ctx="waiting")
    if size:
        theirs.send(b"half")
        wait_unread(number, size)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    wait_for(number, 0x18)  # POLLERR and POLLHUP
    bench.watcher.write(ours, b"x", ctx="write")
    answers = {answer.ctx: answer for answer in bench.collect(2)}
    for ctx in ("write", "waiting"):
        assert isinstance(answers[ctx].error, ConnectionResetError)
    for _ in range(2):
        bench.watcher.read(ours)
        error = bench.one().error
        assert isinstance(error, ConnectionResetError)
        assert error.errno == errno.ECONNRESET
    bench.watcher.write(ours, b"x")
    assert isinstance(bench.one().error, BrokenPipeError)


def test_connections_that_are_gone_leave_nothing_for_the_garbage_collector(engine: str) -> None:
    """Each connect once left a cycle, and so did each accept, with the user's listener in it."""
    gc.collect()
    kinds = (QueuedEndpoint, Operation, Completion, Channel, BorrowedListener, Listener)
    before = {id(found) for found in gc.get_objects() if isinstance(found, kinds)}
    gc.disable()
    try:
        with Bench(engine) as bench:
            listener = bench.listener()
            nobody = unused_address()
            for _ in range(5):
                bench.watcher.accept(listener, timeout=60)
                bench.watcher.connect(listener.getsockname(), timeout=60)
                channels = [as_channel(answer.conn) for answer in bench.collect(2)]
                bench.watcher.read(channels[0], timeout=60)
                bench.watcher.read_full(channels[0], bytearray(3), timeout=60)
                bench.watcher.write(channels[1], b"12345", timeout=60)
                bench.watcher.connect(nobody, timeout=60)
                bench.watcher.sleep(0)
                assert Op.TIMER in {answer.op for answer in bench.collect(4)}
                bench.watcher.free(channels[0])
                bench.watcher.free(channels[1])
                bench.collect(1)
                del channels
        assert [found for found in gc.get_objects() if isinstance(found, kinds) and id(found) not in before] == []
    finally:
        gc.enable()


def as_channel(conn: socket.socket | Channel | None) -> Channel:
    assert isinstance(conn, Channel)
    return conn
