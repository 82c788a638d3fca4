"""What `test_strace` runs under strace: both ends of some connections, all of it by one watcher, or by one engine.

It works in a thread of its own: strace counts the calls of each thread apart, so that `when=1` is the thread's first
call. What the interpreter does to start is counted too, in the main thread: an injection into read(2) has to begin
behind that, and so the thread makes as many reads as it is told first. Prints one line of JSON.
"""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import sys
from collections import Counter
from dataclasses import asdict
from threading import Thread
from typing import Any, Final

from shardnet.watcher import Channel, Op, Watcher, pollers
from shardnet.watcher.counters import READ_EOF, READ_OK, WRITE_OK
from tests.engine.kit import PATIENCE_S
from tests.engine.kit import Bench as EngineBench

PAIRS: Final = 4
ROUNDS: Final = 12
SIZE: Final = 300_000  # More than a socket takes at once.

# What a completion may say when it was told to: it is asked again.
AGAIN: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Program:
    """Opens pairs of connections, and sends a message through each, there and back, some times."""

    def __init__(self, poller: str) -> None:
        self.watcher = Watcher(poller=poller)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.refused: Counter[str] = Counter()
        self.exact = 0
        self._random = random.Random(7)

    def run(self) -> dict[str, Any]:
        pairs = [self._pair() for _ in range(PAIRS)]
        for number in range(ROUNDS):
            for left, right in pairs:
                self._send(left, right, SIZE if number == 0 else 100 + number)
                self._send(right, left, 100 + number)
            self.watcher.wake()
            assert self._wait() == []
        self.watcher.sleep(0.001)
        (slept,) = self._wait()
        assert slept.op is Op.TIMER
        for left, right in pairs:
            self.watcher.free(left)
            self.watcher.read(right)
            (ended,) = self._wait()
            assert isinstance(ended.error, EOFError)
            self.watcher.free(right)
        said = asdict(self.watcher.statistics())
        self.watcher.close()
        self.listener.close()
        return {"exact": self.exact, "refused": dict(self.refused), "statistics": said}

    def _wait(self) -> list[Any]:
        return self.watcher.wait_io(PATIENCE_S)

    def _pair(self) -> tuple[Channel, Channel]:
        made: dict[Op, Channel] = {}
        self.watcher.accept(self.listener)
        self.watcher.connect(self.listener.getsockname())
        while len(made) < 2:
            for completion in self._wait():
                if isinstance(completion.conn, Channel):
                    made[completion.op] = completion.conn
                    continue
                assert isinstance(completion.error, OSError)
                assert completion.error.errno in AGAIN, completion
                self.refused[errno.errorcode[completion.error.errno]] += 1
                if completion.op is Op.ACCEPT:
                    self.watcher.accept(self.listener)
                else:
                    self.watcher.connect(self.listener.getsockname())
        return made[Op.ACCEPT], made[Op.CONNECT]

    def _send(self, sender: Channel, receiver: Channel, size: int) -> None:
        data = self._random.randbytes(size)
        buffer = bytearray(size - 10)
        self.watcher.read_full(receiver, buffer)
        self.watcher.write(sender, data)
        received = bytearray()
        pending = 2
        while pending or len(received) < size:
            for completion in self._wait():
                assert completion.error is None, completion
                pending -= completion.op is Op.WRITE or not completion.is_swap_buffer
                if completion.op is Op.READ:
                    received += completion.data
                    if len(received) < size:
                        self.watcher.read(receiver)  # The last ten bytes through the swap buffer.
        self.exact += received == data


def run_engine(poller: str) -> dict[str, Any]:
    """The other kind of endpoints: hooks. Many small writes are queued, and gathered into few calls."""
    pollers.DEFAULT = poller
    data = random.Random(7).randbytes(SIZE)
    exact = 0
    with EngineBench() as bench:
        for number in range(PAIRS):
            ours, theirs = socket.socketpair()
            sender, receiver = bench.adopt(ours, f"s{number}", unix=True), bench.adopt(theirs, f"r{number}", unix=True)
            receiver.read_on()
            for start in range(0, SIZE, 1000):
                sender.submit_write(data[start : start + 1000])
            bench.until_received(receiver, data)
            sender.end_output()
            bench.until(lambda name=f"r{number}": "end" in bench.of(name))  # type: ignore[misc]
            exact += receiver.received == data
        cells = bench.engine.cells
        counted = {"writes": cells[WRITE_OK], "reads": cells[READ_OK], "ends": cells[READ_EOF]}
        return {"exact": exact, "received": bench.received_bytes, "sent": bench.sent_bytes, **counted}


def main(kind: str, poller: str, reads_before: str) -> None:
    answers: list[dict[str, Any]] = []

    def work() -> None:
        fd = os.open("/dev/zero", os.O_RDONLY)
        for _ in range(int(reads_before)):
            os.read(fd, 1)
        os.close(fd)
        answers.append(Program(poller).run() if kind == "watcher" else run_engine(poller))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    print(json.dumps(answers[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
