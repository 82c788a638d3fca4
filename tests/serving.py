"""A server on the loopback, in an event loop of the test's own; the test's clients live in the same loop.

    with Serving(handler) as kit:
        kit.run(main(kit))

Other than the test kit's `serve`, it makes the loop, in whatever mode, and looks into everything: cells, log, errors of
the loop.

Nothing here sleeps: `until` lets the loop turn until something is so, and everything else waits for sockets.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from shardnet.app import App, Handler, Kind
from shardnet.catalogue.cells import AT_ACCEPTED, AT_ACTIVE, AT_CLOSED, AT_RECEIVED, AT_SENT
from shardnet.connection import CloseReason, Connection, Limits
from shardnet.log import Log
from shardnet.loop import new_loop
from shardnet.server import Server, private_cells
from shardnet.testing.serving import open_listener, resolve_handler
from shardnet.watcher.counters import Op, Outcome, completions_cell
from shardnet.watcher.engine import Engine

T = TypeVar("T")

PATIENCE_S: Final = 30.0

# The implementations of Task, and asyncio's own checks: a handler must not see a difference.
MODES: Final = ("plain", "debug", "python task", *(("eager task",) if sys.version_info >= (3, 12) else ()))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition()` is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


class Client:
    """The peer of a connection: a non-blocking socket."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.sock = sock
        self._loop = loop

    def put(self, data: bytes) -> None:
        """Hand all of `data`, which is not much, to the kernel now: the server finds it in its next turn."""
        assert self.sock.send(data) == len(data)

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self, size: int = 65536) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def receive_exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            data = await self.receive(size - len(received))
            assert data, f"the end of the stream after {len(received)} of {size} bytes"
            received += data
        return bytes(received)

    async def receive_to_end(self) -> bytes:
        received = bytearray()
        while data := await self.receive():
            received += data
        return bytes(received)

    def end(self) -> None:
        """Say that nothing more is sent (FIN), and stay to listen."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Logged(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Serving:
    """A `Server` with real listeners, on a real loop. Close it, or use it in a `with`."""

    def __init__(
        self,
        function: Callable[..., Any] | App,
        *,
        mode: str = "plain",
        kind: Kind | None = None,
        limits: Limits | None = None,
        connections_max: int = 100_000,
        swap_size_bytes: int = 65536,
        send_buffer_bytes: int = 0,  # Of the connections; 0: the kernel's choice.
        listener_count: int = 1,
        host: str = "127.0.0.1",
    ) -> None:
        counts, self.cells = private_cells(listener_count)
        self.engine = Engine(swap_size_bytes, counts)
        self.loop = new_loop(self.engine)
        set_mode(self.loop, mode)
        self.loop_errors: list[dict[str, Any]] = []  # A test that expects some takes them out.
        self.loop.set_exception_handler(lambda _, context: self.loop_errors.append(context))
        logger = logging.Logger("test")
        self._logged = Logged()
        logger.addHandler(self._logged)
        if kind is None or isinstance(function, App):
            handler = resolve_handler(function, kind)
        else:
            handler = Handler(kind, function)
        self.server = Server(
            self.engine,
            self.loop,
            handler,
            self.cells,
            Log(logger, {}),
            connections_max=connections_max,
            limits=limits,
        )
        self.listeners = [open_listener(host, send_buffer_bytes=send_buffer_bytes) for _ in range(listener_count)]
        for address, listener in enumerate(self.listeners):
            self.server.listen(listener, address)
        self.clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        assert kind is not None or not self.loop_errors, self.loop_errors

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run the loop until `main` is over."""
        return self.loop.run_until_complete(_patiently(main))

    def close(self, *, cancel: bool = True) -> None:
        """End everything; without `cancel`, with tasks still waiting."""
        if self.loop.is_closed():
            return
        if cancel:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait_for(_all_over(tasks), PATIENCE_S))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        for client in self.clients:
            client.close()
        self.loop.close()
        self.engine.close()
        for listener in self.listeners:
            listener.close()

    # Clients.

    def connect(self, *, receive_buffer_bytes: int = 0, listener: int = 0) -> Client:
        """A client, connected as far as the kernel is concerned."""
        sock = socket.socket(self.listeners[listener].family)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.connect(self.listeners[listener].getsockname())
        sock.setblocking(False)
        client = Client(sock, self.loop)
        self.clients.append(client)
        return client

    async def open(self, *, receive_buffer_bytes: int = 0, listener: int = 0) -> tuple[Client, Connection]:
        """A client and its accepted connection, whose handler has come to its first wait."""
        client = self.connect(receive_buffer_bytes=receive_buffer_bytes, listener=listener)
        return client, await self.accepted(client)

    async def accepted(self, client: Client) -> Connection:
        """The connection of a client, whose handler has come to its first wait."""
        address = client.sock.getsockname()
        await until(lambda: any(conn.peer == address for conn in self.connections))
        await asyncio.sleep(0)
        return next(conn for conn in self.connections if conn.peer == address)

    @property
    def connections(self) -> Iterable[Connection]:
        return self.server.shard.connections

    # What was counted and logged.

    def _count(self, offset: int, listener: int) -> int:
        return int(self.engine.cells[self.cells.traffic[listener] + offset])

    def active(self, listener: int = 0) -> int:
        return self._count(AT_ACTIVE, listener)

    def accepted_total(self, listener: int = 0) -> int:
        return self._count(AT_ACCEPTED, listener)

    def received_bytes(self, listener: int = 0) -> int:
        return self._count(AT_RECEIVED, listener)

    def sent_bytes(self, listener: int = 0) -> int:
        return self._count(AT_SENT, listener)

    def closed(self, listener: int = 0) -> dict[str, int]:
        """How many connections ended, by reason; those that did not happen are left out."""
        counts = {reason.name: self._count(AT_CLOSED + reason, listener) for reason in CloseReason}
        return {name: count for name, count in counts.items() if count}

    def completions(self, op: Op, outcome: Outcome) -> int:
        return int(self.engine.cells[completions_cell(op, outcome)])

    @property
    def handler_exceptions(self) -> int:
        return int(self.engine.cells[self.cells.handler_exceptions])

    @property
    def logged(self) -> list[tuple[str, dict[str, Any], BaseException | None]]:
        """Event, fields and exception of each line."""
        return [
            (record.getMessage(), record.__dict__["shardnet_fields"], record.exc_info[1] if record.exc_info else None)
            for record in self._logged.records
        ]


def set_mode(loop: asyncio.AbstractEventLoop, mode: str) -> None:
    """Make `loop` one of `MODES`."""
    match mode:
        case "plain":
            pass
        case "debug":
            loop.set_debug(True)
        case "python task":
            loop.set_task_factory(_python_task)
        case "eager task" if sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        case _:
            raise ValueError(mode)


def _python_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
    return asyncio.tasks._PyTask(coro, loop=loop, **kwargs)  # type: ignore[attr-defined]


def the_task(conn: Connection) -> asyncio.Task[object]:
    """The task of the connection's handler, which must not be over."""
    assert conn.task is not None
    return conn.task


def this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _patiently(main: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        return await main


async def _all_over(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def collect_garbage() -> None:
    """Run the collector until objects with finalizers are gone, too."""
    for _ in range(3):
        gc.collect()
