"""The same scene on asyncio's own streams and on shardnet's connections: what a handler does, and what it sees.

A test gives its handler and what its clients do, once. It is played with `asyncio.start_server` on asyncio's loop, then
with shardnet, and both have to note the same things. So what is right is not in question, not even where Python
versions differ; what is wrong shows as a difference.

A handler must not be able to tell how it is resumed, but others can: it runs a little sooner here. So a scene's notes
are made by one side, or after waiting for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import selectors
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from shardnet.app import Kind
from shardnet.connection import Connection
from tests.serving import MODES, Client, Serving, set_mode, until

__all__ = ["PLAYS", "STREAMS_PLAYS", "Face", "Play", "Scene"]

T = TypeVar("T")

PATIENCE_S: Final = 30.0


def steps(task: asyncio.Task[Any], coro: Any) -> bool:
    """Whether `coro` runs in `task`, which may see it through what shardnet puts in front."""
    return getattr(task.get_coro(), "cr_frame", None) is coro.cr_frame


class Face:
    """What a handler is given: the stream of its kind, whose methods have the same names for all kinds.

    The methods are the stream's own, so that nothing stands between a task and what it waits for.
    """

    def __init__(self, scene: Scene, conn: Connection | None, reader: Any = None, writer: Any = None) -> None:
        self.scene = scene
        self.read: Any = reader.read if conn is None else conn.read
        self.read_exactly: Any = reader.readexactly if conn is None else conn.read_exactly
        self.read_until: Any = reader.readuntil if conn is None else conn.read_until
        self.writer: Any = writer if conn is None else conn
        self.write: Any = self.writer.write
        self.coro: Any = None

    def note(self, what: object) -> None:
        self.scene.journal.append(what)

    @property
    def task(self) -> asyncio.Task[Any]:
        """The task of the handler, which must not be over."""
        [task] = [task for task in asyncio.all_tasks(self.scene.loop) if steps(task, self.coro)]
        return task


Handler = Callable[[Face], Coroutine[Any, Any, object]]
Main = Callable[["Scene"], Coroutine[Any, Any, object]]


class Scene:
    """A server of one kind, its clients, and the journal of what happened."""

    def __init__(self, kind: str, handler: Handler, mode: str = "plain") -> None:
        self.kind = kind
        self.journal: list[object] = []
        self.faces: list[Face] = []
        self._handler = handler
        self._kit: Serving | _Stock
        match kind:
            case "stock":
                self._kit = _Stock(self._on_streams, mode)
            case "streams":
                self._kit = Serving(self._on_streams, kind=Kind.STREAMS, mode=mode)
            case "conn":
                self._kit = Serving(self._on_conn, kind=Kind.CONN, mode=mode)
            case _:
                raise ValueError(kind)
        self.loop: asyncio.AbstractEventLoop = self._kit.loop
        self.loop_errors = self._kit.loop_errors  # A test that expects some takes them out.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        assert kind is not None or not self.loop_errors, self.loop_errors

    def close(self) -> None:
        self._kit.close()

    def hand_over(self) -> asyncio.AbstractEventLoop:
        """The loop, for somebody who closes it: all the rest ends with it."""
        kit, close_alone = self._kit, self.loop.close

        def close() -> None:
            if isinstance(kit, _Stock):
                self.loop.run_until_complete(kit.end())
            close_alone()
            if isinstance(kit, Serving):
                kit.engine.close()
            for one in (*kit.clients, *kit.listeners):
                one.close()

        self.loop.close = close  # type: ignore[method-assign]
        return self.loop

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run the loop until `main` is over."""
        return self._kit.run(main)

    def note(self, what: object) -> None:
        self.journal.append(what)

    def connect(self) -> Client:
        return self._kit.connect()

    async def open(self) -> tuple[Client, Face]:
        """A client and what its handler was given, which waits for something, or is over."""
        client, count = self.connect(), len(self.faces)
        await until(lambda: len(self.faces) > count)
        face = self.faces[count]
        started = (inspect.CORO_SUSPENDED, inspect.CORO_CLOSED)
        await until(lambda: inspect.getcoroutinestate(face.coro) in started)
        return client, face

    async def noted(self, count: int) -> None:
        """When so much stands in the journal."""
        await until(lambda: len(self.journal) >= count)

    # Plain functions, so that the coroutine of the task is the handler's own.

    def _on_streams(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Coroutine[Any, Any, object]:
        return self._begin(Face(self, None, reader, writer))

    def _on_conn(self, conn: Connection) -> Coroutine[Any, Any, object]:
        return self._begin(Face(self, conn))

    def _begin(self, face: Face) -> Coroutine[Any, Any, object]:
        face.coro = self._handler(face)
        self.faces.append(face)
        return face.coro  # type: ignore[no-any-return]  # it is the handler's


class _Stock:
    """`asyncio.start_server` on asyncio's own loop, as far as a scene needs it the way `Serving` is."""

    def __init__(self, function: Callable[..., Any], mode: str) -> None:
        self.loop = asyncio.SelectorEventLoop(selectors.EpollSelector())
        set_mode(self.loop, mode)
        self.loop_errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(self._note_error)
        self.clients: list[Client] = []
        self._writers: list[Any] = []
        self._function = function
        self._server = self.loop.run_until_complete(asyncio.start_server(self._on_pair, "127.0.0.1", 0))
        self._address = self._server.sockets[0].getsockname()
        self.listeners: tuple[socket.socket, ...] = ()  # They end with the server.

    def _note_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncio.CancelledError):  # 3.11's: each handler that is cancelled.
            self.loop_errors.append(context)

    def _on_pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        self._writers.append(writer)
        return self._function(reader, writer)

    def connect(self) -> Client:
        sock = socket.create_connection(self._address)
        sock.setblocking(False)
        self.clients.append(Client(sock, self.loop))
        return self.clients[-1]

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(main, PATIENCE_S))

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.end())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        for client in self.clients:
            client.close()
        self.loop.close()

    async def end(self) -> None:
        """End everything but the loop."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@dataclass(frozen=True)
class Play:
    """Plays a scene twice, with asyncio's streams and with a kind of shardnet's."""

    kind: str
    mode: str = "plain"

    def __str__(self) -> str:
        return f"{self.kind}-{self.mode.replace(' ', '_')}"

    def __call__(self, handler: Handler, main: Main) -> list[object]:
        """The journal, which has to be the same both times, and not empty."""
        stock, ours = (self.once(kind, handler, main) for kind in ("stock", self.kind))
        assert ours == stock, f"{ours}; with asyncio: {stock}"
        assert ours, "nothing was noted"
        return ours

    def once(self, kind: str, handler: Handler, main: Main) -> list[object]:
        with Scene(kind, handler, self.mode) as scene:
            scene.run(main(scene))
        return scene.journal


PLAYS: Final = [Play(kind, mode) for kind in ("streams", "conn") for mode in MODES]
STREAMS_PLAYS: Final = [play for play in PLAYS if play.kind == "streams"]
