"""What is counted: `python -m bench.callgrind.serve KIND MESSAGES` serves one connection, then ends.

The client is another process, which is not counted. It sends the next message when the last has come back, so each
message has a turn of the engine to itself, and the count does not depend on how fast either of them is.
"""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from bench import handlers
from shardnet.app import Handler, Kind
from shardnet.log import get_logger
from shardnet.loop import new_loop
from shardnet.server import Server, private_cells
from shardnet.watcher.engine import Engine

KINDS: Final[dict[str, tuple[Kind, Callable[..., Any]]]] = {
    "callback": (Kind.CALLBACK, handlers.on_data),
    "conn": (Kind.CONN, handlers.read_send),
    "for": (Kind.CONN, handlers.async_for),
    "protocol": (Kind.PROTOCOL, handlers.EchoProtocol),
    "streams": (Kind.STREAMS, handlers.streams),
}

CLIENT: Final = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    for _ in range(int(sys.argv[2])):
        sock.sendall(bytes(64))
        received = 0
        while received < 64:
            received += len(sock.recv(64 - received))
"""


def main(kind: str, messages: int) -> None:
    gc.disable()  # Its runs would fall on some messages and not on others.
    counts, cells = private_cells(1)
    engine = Engine(65536, counts)
    loop = new_loop(engine)
    handler_kind, function = KINDS[kind]
    handler = Handler(handler_kind, function, on_disconnect=lambda _conn, _error: loop.stop())
    server = Server(engine, loop, handler, cells, get_logger("bench"), connections_max=10)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server.listen(listener)
        port = listener.getsockname()[1]
        with subprocess.Popen([sys.executable, "-I", "-c", CLIENT, str(port), str(messages)]) as client:
            loop.run_forever()
        server.stop_accepting()
    loop.close()
    engine.close()
    sys.exit(client.returncode)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
