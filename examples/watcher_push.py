"""Push with the watcher alone: who is connected gets a numbered line with the time, every second.

    python examples/watcher_push.py --bind 127.0.0.1:9000
    nc 127.0.0.1 9000

The timer is a completion like any other. Whoever has not taken his last line yet misses the next ones, and sees by the
numbers which; whoever takes nothing for long is let go. What clients say is read and thrown away, so that it is noticed
when they leave. Ctrl-C stops it.
"""

import argparse
import signal
import socket
import sys
import threading
import time
from typing import Final

from shardnet.watcher import Channel, Completion, Op, Watcher

STALL_S: Final = 30.0  # A client that takes none of a line for so long is gone.


class Push:
    """The server: who is connected, and who of them has taken everything so far."""

    def __init__(self, watcher: Watcher, listener: socket.socket, interval_s: float) -> None:
        self.watcher = watcher
        self.listener = listener
        self.interval_s = interval_s
        self.number = 0
        self.clients: dict[Channel, bool] = {}  # And whether no write is under way. They are held here, and so open.

    def serve(self, stopping: threading.Event) -> None:
        self.watcher.accept(self.listener)
        self.watcher.sleep(self.interval_s)
        while not stopping.is_set():
            for done in self.watcher.wait_io():
                self.answer(done)

    def answer(self, done: Completion) -> None:
        """What follows from one completion."""
        conn = done.conn
        if done.op is Op.TIMER:
            self.watcher.sleep(self.interval_s)
            self.number += 1
            self.tell(time.strftime(f"{self.number} %H:%M:%S\n").encode())
        elif done.op is Op.ACCEPT:
            self.watcher.accept(self.listener)
            if isinstance(conn, Channel):
                self.clients[conn] = True
                self.watcher.read(conn)
            else:  # Out of descriptors, say. The listener rests for a moment before it tries again.
                print(f"watcher_push: accept: {done.error}", file=sys.stderr)
        elif isinstance(conn, Channel) and conn in self.clients:  # Else it was freed by an earlier one of its two.
            if done.error is not None:
                del self.clients[conn]
                self.watcher.free(conn)
            elif done.op is Op.READ:
                self.watcher.read(conn)
            else:
                self.clients[conn] = True

    def tell(self, line: bytes) -> None:
        """A line for all who have taken the last one. All writes share its bytes."""
        for conn, ready in self.clients.items():
            if ready:
                self.watcher.write(conn, line, timeout=STALL_S)
                self.clients[conn] = False


def main() -> None:
    parser = argparse.ArgumentParser(description="Push with the watcher alone.")
    parser.add_argument("--bind", default="127.0.0.1:9000", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two lines")
    arguments = parser.parse_args()
    host, _, port = arguments.bind.rpartition(":")
    if not 0.001 <= arguments.interval < float("inf"):
        sys.exit("watcher_push: the interval takes 0.001 seconds or more")
    try:
        listener = socket.create_server((host, int(port)), backlog=1024)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"watcher_push: cannot listen on {arguments.bind}: {error}")
    with listener, Watcher() as watcher:  # The watcher goes first, and lets go of the listener.
        stopping = threading.Event()

        def stop(*_: object) -> None:
            stopping.set()
            watcher.wake()

        signal.signal(signal.SIGINT, stop)
        host, port = listener.getsockname()
        print(f"watcher_push: serving on {host}:{port}, Ctrl-C stops it", flush=True)
        Push(watcher, listener, arguments.interval).serve(stopping)


if __name__ == "__main__":
    main()
