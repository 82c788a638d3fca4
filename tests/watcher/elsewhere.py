"""Doing things somewhere else: in another thread, in the child of a fork, with a number that somebody else had.

Nothing here waits for time to pass, and no child outlives its test.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

from tests.engine.kit import PATIENCE_S, open_fds, receive_exactly, tcp_pair


def in_thread(function: Callable[[], Any]) -> Any:
    """Call `function` in another thread, and wait for it: what it returns, or raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(PATIENCE_S)


@contextlib.contextmanager
def interrupted(action: Callable[[], object], signals: int = 5) -> Iterator[None]:
    """Another thread sends this one signals, each when the last was handled; the handler of the last calls `action`.

    So this thread is where it waits, most likely: between two signals it does nothing but go there again. Python runs
    no handler for a signal that comes right before a system call that waits, until another comes: hence the second try.
    """
    owner = threading.get_ident()
    handled = threading.Semaphore(0)
    left = signals

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            action()
        handled.release()

    def interrupt() -> None:
        while left > 0:
            signal.pthread_kill(owner, signal.SIGUSR1)
            handled.acquire(timeout=0.1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        yield
        assert left <= 0
    finally:
        left = 0
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def child(function: Callable[[], object]) -> Iterator[str]:
    """Fork. The child calls `function`, and lives until the block ends; the block gets the text of what it returned."""
    answer_reader, answer_writer = os.pipe()
    life_reader, life_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE_S))
            os.close(life_writer)
            os.close(answer_reader)
            os.write(answer_writer, _told(function).encode()[:60000])
            os.close(answer_writer)
            os.read(life_reader, 1)
            status = 0
        finally:
            os._exit(status)  # Nothing of the test may run on here.
    try:
        os.close(answer_writer)
        os.close(life_reader)
        with os.fdopen(answer_reader, "rb") as answer:
            yield answer.read().decode()
    finally:
        os.close(life_writer)
        _, status = os.waitpid(pid, 0)
    assert status == 0


def in_child(function: Callable[[], object]) -> str:
    """Fork, and call `function` in the child alone: the text of what it returned, when the child has ended."""
    with child(function) as answer:
        return answer


def _told(function: Callable[[], object]) -> str:
    try:
        return str(function())
    except BaseException:
        return traceback.format_exc()


def copy_at(sock: socket.socket, number: int) -> socket.socket:
    """Another descriptor of `sock`, which gets `number`: it must be free."""
    copy = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, number))
    assert copy.fileno() == number, "the number was not free"
    return copy


def successor(number: int) -> tuple[socket.socket, socket.socket]:
    """A TCP connection that gets `number`, which must be free, and its peer."""
    assert not is_open(number), "the number was not free"
    spare = os.open("/dev/null", os.O_RDONLY)
    if spare != number:
        os.dup2(spare, number, inheritable=False)
        os.close(spare)
    ours, theirs = tcp_pair()  # Neither has got the number.
    os.dup2(ours.fileno(), number, inheritable=False)
    ours.close()
    return socket.socket(fileno=number), theirs


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """The process may open no more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest limit under which every number in use stands, and holes below it are filled.
    with contextlib.ExitStack() as undo:
        highest = max(map(int, open_fds()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        while True:
            try:
                undo.callback(os.close, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                break
        yield


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def at_end(peer: socket.socket) -> bool:
    """Wait until the stream to `peer` ends or brings something: whether it was the end."""
    peer.settimeout(PATIENCE_S)
    return peer.recv(1) == b""


@contextlib.contextmanager
def receiving(peer: socket.socket, size: int) -> Iterator[Future[bytes]]:
    """Another thread receives `size` bytes from `peer` meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(receive_exactly, peer, size)
