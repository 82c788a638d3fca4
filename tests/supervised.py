"""A real supervisor with tiny workers, run as a process of its own by test_supervisor.py.

    python -m tests.supervised [--shards N] [--exporter] [--boot HOW] … [--drain-timeout S]

Says on stdout, one JSON object per line, what the test needs to know; logs on stderr. A worker answers whoever
connects to it with a JSON line, and obeys one word: see `Worker.obey`. Not a test itself.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable

from shardnet import log
from shardnet.board import Board
from shardnet.catalogue.cells import declare_worker_metrics
from shardnet.control import ControlEndpoint, Message
from shardnet.errors import AppError
from shardnet.listen import ListenerBank, open_metrics_listener, parse_tcp_address
from shardnet.seats import ExporterSeat, WorkerSeat
from shardnet.supervisor.supervisor import NobodyServed, SupervisorOptions, supervise
from shardnet.watcher.counters import LOOP_TURNS

PR_SET_CHILD_SUBREAPER = 36
DRAIN_SPREAD_S = 0.5
COUNT_CELL = LOOP_TURNS  # As good as any to count in.


def say(**facts: object) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


class Worker:
    """Serves one connection at a time, in a loop that a child can read."""

    def __init__(self, seat: WorkerSeat) -> None:
        self.seat = seat
        self.counts = seat.board.row(seat.row).counts
        declare_worker_metrics(seat.board.row(seat.row), ["a", "b"][: len(seat.listeners)])
        self.status: int | None = None
        self.is_accepting = False
        self.deaf = False  # Told to drain, it goes on as if nothing had been said.
        self.introduction = {"shard": seat.shard, "generation": seat.generation, "pid": os.getpid()}
        signal.signal(signal.SIGTERM, lambda _signum, _frame: seat.control.send("leaving"))

    def run(self) -> int:
        poll = select.poll()
        poll.register(self.seat.control.fileno(), select.POLLIN)
        if not self.seat.held:
            self.accept_from(poll)
        self.seat.control.send("ready")
        while self.status is None:
            ready = {fd for fd, _ in poll.poll()}
            for listener in self.seat.listeners:
                if listener.fileno() in ready:
                    self.serve(listener)
            if self.seat.control.fileno() in ready:
                for message in self.seat.control.receive():
                    self.hear(message, poll)
                if self.seat.control.eof:
                    self.drain()
        return self.status

    def hear(self, message: Message, poll: select.poll) -> None:
        match message.type:
            case "serve":
                self.accept_from(poll)
            case "drain" if not self.deaf:
                say(said="drain", generation=self.seat.generation, **message.fields)
                self.drain()
            case "reopen_logs":
                say(said="reopen_logs", shard=self.seat.shard)
            case _:
                pass

    def accept_from(self, poll: select.poll) -> None:
        for listener in self.seat.listeners:
            poll.register(listener.fileno(), select.POLLIN)
        self.is_accepting = True

    def drain(self) -> None:
        for listener in self.seat.listeners:
            while self.is_accepting and self.serve(listener):
                pass
            listener.close()
        self.is_accepting = False
        say(said="drained", shard=self.seat.shard, pid=os.getpid(), orphaned=self.seat.control.eof)
        self.status = self.status or 0

    def serve(self, listener: socket.socket) -> bool:
        """Answer one waiting connection, if there is one."""
        try:
            conn, _ = listener.accept()
        except BlockingIOError:
            return False
        with conn:
            conn.setblocking(True)
            self.counts[COUNT_CELL] += 1
            conn.sendall(json.dumps(self.introduction).encode() + b"\n")
            self.obey(conn.recv(100).decode())
        return True

    def obey(self, word: str) -> None:
        match word.split():
            case ["exit", status]:
                self.status = int(status)
            case ["raise"]:
                raise RuntimeError("as told")
            case ["rubbish"]:
                with socket.socket(fileno=os.dup(self.seat.control.fileno())) as raw:
                    for _ in range(3):
                        raw.send(b"rubbish")
            case ["deaf"]:
                self.deaf = True
            case ["orphan"]:
                self.orphan()
            case _:
                pass

    def orphan(self) -> None:
        """Have a grandchild whose parent ends at once: it becomes the supervisor's."""
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                os.closerange(3, 256)
                say(said="orphan", pid=os.getpid())
                signal.pause()
            os._exit(0)
        os.waitpid(child, 0)


def run_worker(seat: WorkerSeat, how: str) -> int:
    say(
        said="worker",
        shard=seat.shard,
        shard_count=seat.shard_count,
        generation=seat.generation,
        incarnation=seat.incarnation,
        pid=os.getpid(),
        fds=[*(listener.fileno() for listener in seat.listeners), seat.control.fileno(), seat.board.fd, seat.stacks_fd],
        held=seat.held,
        signals_blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )
    first = seat.incarnation <= seat.shard_count
    match how:
        case "app-fails":
            seat.control.send("failed", kind="app", message="app:handler does not import", detail="Traceback: why")
            return 4
        case "app-fails-later" if seat.generation == 2:
            seat.control.send("failed", kind="app", message="app:handler does not import", detail="Traceback: why")
            return 4
        case "crash-later" if seat.generation == 2:
            return 3
        case "hang-later" if seat.generation == 2 and seat.shard == 0:
            return wait_for_end(seat.control)
        case "crash":
            return 3
        case "crash-first" if first:
            return 3
        case "hang":
            return wait_for_end(seat.control)
        case "hang-first" if first:
            return wait_for_end(seat.control)
        case _:
            return Worker(seat).run()


def wait_for_end(control: ControlEndpoint) -> int:
    """As if importing for ever, but not longer than the supervisor lives."""
    poll = select.poll()
    poll.register(control.fileno(), 0)  # POLLHUP alone: nothing that is said is heard.
    poll.poll()
    return 0


def run_exporter(seat: ExporterSeat) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(
        said="exporter",
        pid=os.getpid(),
        fds=[seat.listener.fileno(), seat.control.fileno(), seat.board.fd, seat.stacks_fd],
    )
    poll = select.poll()
    poll.register(seat.control.fileno(), select.POLLIN)
    while True:
        poll.poll()
        told = [message.type for message in seat.control.receive()]
        if told == ["reopen_logs"]:
            say(said="reopen_logs", shard=None)
        elif told or seat.control.eof:
            workers = len(seat.board.snapshot().workers)
            say(said="exporter told", workers=workers)
            return 0


def failing_fork(times: int) -> Callable[[], int]:
    """os.fork at the limit of processes, so many times; root has no such limit to run into."""
    fork = os.fork
    left = iter(range(times))

    def fail_first() -> int:
        for _ in left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    return fail_first


def signalled_fork() -> Callable[[], int]:
    """os.fork with a TERM for the parent right before and one for the child right after."""
    fork = os.fork

    def fork_and_signal() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        pid = fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    return fork_and_signal


def failing_pidfd_open(times: int) -> Callable[[int, int], int]:
    """os.pidfd_open with every descriptor taken, so many times."""
    pidfd_open = os.pidfd_open
    left = iter(range(times))

    def fail_first(pid: int, flags: int = 0) -> int:
        for _ in left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pidfd_open(pid, flags)

    return fail_first


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--addresses", type=int, default=1)
    parser.add_argument("--exporter", action="store_true")
    parser.add_argument("--boot", default="well")
    parser.add_argument("--drain-timeout", type=float, default=30.0)
    parser.add_argument("--boot-timeout", type=float, default=30.0)
    parser.add_argument("--forks-refused", type=int, default=0)
    parser.add_argument("--pidfds-refused", type=int, default=0)
    parser.add_argument("--signal-forks", action="store_true")
    parser.add_argument("--subreaper", action="store_true")
    parser.add_argument("--stray-fds", type=int, default=0)
    parser.add_argument("--thread", action="store_true")
    parser.add_argument("--hang-up-ignored", action="store_true")
    arguments = parser.parse_args()

    log.set_up(log.LogOptions(level="debug"))
    if arguments.hang_up_ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if arguments.subreaper:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    if arguments.thread:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if arguments.forks_refused:
        os.fork = failing_fork(arguments.forks_refused)
    if arguments.pidfds_refused:
        os.pidfd_open = failing_pidfd_open(arguments.pidfds_refused)  # type: ignore[assignment]  # names only
    if arguments.signal_forks:
        os.fork = signalled_fork()
    for _ in range(arguments.stray_fds):
        os.open("/dev/null", os.O_RDONLY)  # Closed by no object: a child has to find it by its number.
    any_port = parse_tcp_address("127.0.0.1:0")
    bank = ListenerBank.open([any_port] * arguments.addresses, arguments.shards)
    board = Board.create(arguments.shards)
    say(
        said="starting",
        ports=[listener.getsockname()[1] for listener in bank.listeners(0)],
        pid=os.getpid(),
        board=board.fd,
    )
    metrics_listener = open_metrics_listener(any_port) if arguments.exporter else None
    try:
        code = supervise(
            bank,
            board,
            SupervisorOptions(arguments.shards, arguments.drain_timeout, arguments.boot_timeout, DRAIN_SPREAD_S),
            lambda seat: run_worker(seat, arguments.boot),
            run_exporter if arguments.exporter else None,
            metrics_listener,
            lambda: say(said="serving"),
        )
    except (AppError, NobodyServed) as exc:
        say(said="error", type=type(exc).__name__, text=str(exc), notes=getattr(exc, "__notes__", []))
        return 1
    except Exception:
        traceback.print_exc()
        return 99
    finally:
        if metrics_listener:
            metrics_listener.close()
        board.close()
        bank.close()
    say(said="end")
    return code


if __name__ == "__main__":
    sys.exit(main())
