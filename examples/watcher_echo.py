"""Echo with the watcher alone: operations in, completions out, in one loop. No asyncio, no workers.

    python examples/watcher_echo.py --bind 127.0.0.1:9000
    nc 127.0.0.1 9000

Each connection has one operation under way: a read, or the write that sends its bytes back. So whoever does not read
his echo is not read either. Ctrl-C stops it.
"""

import argparse
import signal
import socket
import sys
import threading
from typing import Final

from shardnet.watcher import Op, Watcher

STALL_S: Final = 60.0  # A client that takes none of its echo for so long has lost it.


def serve(watcher: Watcher, listener: socket.socket, stopping: threading.Event) -> None:
    """Answer completions, until told to stop."""
    watcher.accept(listener)
    while not stopping.is_set():
        for done in watcher.wait_io():
            if done.op is Op.ACCEPT:
                watcher.accept(listener)  # The next. One that has failed, for want of descriptors say, is asked again.
                if done.error is not None:
                    print(f"watcher_echo: accept: {done.error}", file=sys.stderr)
            if done.conn is None:
                continue
            if done.error is not None:  # End of stream, a reset, a stalled write: all one to an echo.
                watcher.free(done.conn)
            elif done.op is Op.READ:
                watcher.write(done.conn, done.data, timeout=STALL_S)
            else:  # Accepted, or written: read on.
                watcher.read(done.conn)


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo with the watcher alone.")
    parser.add_argument("--bind", default="127.0.0.1:9000", metavar="HOST:PORT", help="port 0 takes a free one")
    bind = parser.parse_args().bind
    host, _, port = bind.rpartition(":")
    try:
        listener = socket.create_server((host, int(port)), backlog=1024)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"watcher_echo: cannot listen on {bind}: {error}")
    with listener, Watcher() as watcher:  # The watcher goes first, and lets go of the listener.
        stopping = threading.Event()

        def stop(*_: object) -> None:
            stopping.set()
            watcher.wake()

        signal.signal(signal.SIGINT, stop)
        host, port = listener.getsockname()
        print(f"watcher_echo: serving on {host}:{port}, Ctrl-C stops it", flush=True)
        serve(watcher, listener, stopping)


if __name__ == "__main__":
    main()
