"""`Pair`: what two connections do in memory is what they do over TCP.

The law is tested twice: every test here that takes `joined` runs in memory and over a real socket, and random scripts
of operations have the same results in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import pytest

from shardnet import App
from shardnet.connection import Connection, Limits
from shardnet.errors import AppError, ConnectionFreed, WriteQueueOverflow
from shardnet.testing import Pair
from shardnet.testing.lending import lent_engine
from shardnet.testing.pair import STAND_BY
from shardnet.testing.serving import CollectingServer, open_listener
from tests.serving import MODES, PATIENCE_S, set_mode, until

Ends = tuple[Connection, Connection]
Joined = Callable[..., AbstractAsyncContextManager[Ends]]
MUCH: Final = bytes(range(256)) * 4096


def run(main: Coroutine[Any, Any, None], mode: str = "plain") -> None:
    async def patiently() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await main

    with asyncio.Runner() as runner:
        set_mode(runner.get_loop(), mode)
        runner.run(patiently())


@contextlib.asynccontextmanager
async def over_tcp(limits: Limits | None = None) -> AsyncIterator[Ends]:
    """What a Pair pretends to be."""
    loop = asyncio.get_running_loop()
    with lent_engine(loop) as (engine, cells), open_listener(send_buffer_bytes=4096) as listener:
        server = CollectingServer(engine, loop, STAND_BY, cells, limits=limits)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.connect(listener.getsockname())
            accepted, peer = listener.accept()
            for number, sock in enumerate((client, accepted)):
                sock.setblocking(False)
                server._on_accept(cells.traffic[0], False, sock.detach(), peer if number else listener.getsockname())
        a, b = sorted(server.connections(), key=lambda conn: conn.id)
        try:
            yield a, b
        finally:
            tasks = [conn.task for conn in (a, b) if conn.task is not None]
            a.abort()
            b.abort()
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def in_memory(limits: Limits | None = None) -> AsyncIterator[Ends]:
    async with Pair(limits=limits, buffer_bytes=4096) as ends:
        yield ends


@pytest.fixture(params=[in_memory, over_tcp], ids=["memory", "tcp"])
def joined(request: pytest.FixtureRequest) -> Joined:
    world: Joined = request.param
    return world


async def read_to_end(conn: Connection) -> bytes:
    received = bytearray()
    while data := await conn.read():
        received += data
    return bytes(received)


# Either world.


def test_connections_bring_bytes_to_each_other(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            await a.send(b"from a\n")
            assert await b.read_until() == b"from a\n"
            b.write(b"from b")
            assert await a.read_exactly(6) == b"from b"
            assert a.local == b.peer
            assert b.local == a.peer

    run(main())


@pytest.mark.parametrize("mode", MODES)
def test_reader_that_waits_is_resumed(joined: Joined, mode: str) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            reading = asyncio.create_task(b.read_exactly(6))
            await until(lambda: b._parked)
            a.write(b"abc")
            await until(lambda: b._buffered() or b.reading)
            a.write(b"def")
            assert await reading == b"abcdef"

    run(main(), mode)


def test_cancelled_read_loses_nothing(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(b.read(), 0.01)
            a.write(b"abc")
            assert await b.read() == b"abc"

    run(main())


def test_close_is_the_end_of_the_stream_behind_what_was_written(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            a.write(MUCH)
            a.close()
            assert await read_to_end(b) == MUCH
            assert await b.read() == b""
            b.close()
            await b.wait_closed()
            await a.wait_closed()
            with pytest.raises(ConnectionFreed):
                await a.send(b"more")

    run(main())


def test_write_eof_ends_one_direction(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            a.write(b"question")
            a.write_eof()
            assert await read_to_end(b) == b"question"
            await b.send(b"answer")
            b.close()
            assert await read_to_end(a) == b"answer"
            await b.wait_closed()

    run(main())


def test_abort_is_a_reset_and_leaves_what_came_before(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            a.write(b"last words")
            a.abort()
            await a.wait_closed()
            assert await b.read_exactly(10) == b"last words"
            with pytest.raises(ConnectionResetError):
                await b.read()
            with contextlib.suppress(ConnectionResetError):  # It may be told once more.
                await b.send(b"?")
            with pytest.raises(BrokenPipeError):
                await b.send(b"?")

    run(main())


def test_abort_is_told_to_who_does_not_read(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            a.abort()
            await b.wait_closed()
            with pytest.raises(ConnectionResetError):
                await b.send(b"?")

    run(main())


def test_abort_ends_a_sender_that_waits(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            sending = asyncio.ensure_future(a.send(MUCH))
            await until(lambda: a.unsent_bytes)
            b.abort()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await sending

    run(main())


def test_writing_to_an_end_that_is_closed_is_answered_with_a_reset(joined: Joined) -> None:
    async def main() -> None:
        async with joined(Limits(linger_s=0.0)) as (a, b):
            a.close()
            await a.wait_closed()
            assert await b.read() == b""
            b.write(b"too late")
            await b.wait_closed()
            with pytest.raises(OSError):
                await b.send(b"?")

    run(main())


def test_closing_with_unread_bytes_is_a_reset_behind_the_end(joined: Joined) -> None:
    async def main() -> None:
        async with joined(Limits(linger_s=0.0)) as (a, b):
            b.write(b"never read")
            await until(lambda: a.unread_in_kernel() == 10)
            a.close()
            a.give_up()
            assert await b.read() == b""
            with pytest.raises(BrokenPipeError):
                await b.send(b"?")

    run(main())


def test_sender_waits_until_the_peer_reads(joined: Joined) -> None:
    async def main() -> None:
        async with joined(Limits(write_high_bytes=10_000, write_low_bytes=1000)) as (a, b):
            b.pause()
            a.write(MUCH)
            assert a.unsent_bytes > 10_000
            draining = asyncio.ensure_future(a.drain())
            sending = asyncio.ensure_future(a.send(b"end"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not draining.done()
            b.resume()
            assert await b.read_exactly(len(MUCH)) == MUCH
            await draining
            assert await b.read_exactly(3) == b"end"
            await sending
            assert a.unsent_bytes == 0

    run(main())


def test_peer_that_reads_too_slowly_is_given_up(joined: Joined) -> None:
    async def main() -> None:
        async with joined(Limits(write_hard_bytes=1000)) as (a, b):
            a.write(MUCH)
            a.write(MUCH)
            with pytest.raises(WriteQueueOverflow):
                await a.send(b"?")
            with pytest.raises(ConnectionResetError):
                await read_to_end(b)

    run(main())


def test_peer_that_reads_nothing_for_long_is_given_up(joined: Joined) -> None:
    async def main() -> None:
        async with joined(Limits(write_stall_s=0.01)) as (a, b):
            b.pause()
            with pytest.raises(TimeoutError, match="accepted no byte"):
                await a.send(MUCH)

    run(main())


def test_paused_connection_receives_nothing(joined: Joined) -> None:
    async def main() -> None:
        async with joined() as (a, b):
            b.pause()
            reading = asyncio.create_task(b.read_exactly(3))
            a.write(b"abc")
            await until(lambda: b.unread_in_kernel() == 3)
            assert not reading.done()
            b.resume()
            assert await reading == b"abc"

    run(main())


# Random scripts.

OPERATIONS: Final = ("write", "send", "send", "read_exactly", "read_exactly", "read_until", "drain", "pause")


class Script:
    """Operations of two ends, such that none of them waits for what will never come."""

    def __init__(self, seed: int) -> None:
        choice = random.Random(seed)
        self.steps: list[tuple[int, str, Any]] = []
        on_the_way = [b"", b""]  # To each end.
        for _ in range(choice.randint(1, 40)):
            end = choice.randrange(2)
            incoming = on_the_way[end]
            match choice.choice(OPERATIONS):
                case "write" | "send" as operation:
                    data = choice.randbytes(choice.choice((1, 10, 1000, 10_000))).replace(b"\x07", b"\n")
                    on_the_way[1 - end] += data
                    self.steps.append((end, operation, data))
                case "read_exactly" if incoming:
                    size = choice.randint(0, len(incoming))
                    on_the_way[end] = incoming[size:]
                    self.steps.append((end, "read_exactly", size))
                case "read_until" if b"\n" in incoming:
                    limit = choice.choice((10, 65536))
                    found = incoming.index(b"\n") + 1
                    on_the_way[end] = incoming[found if found <= limit else 0 :]
                    self.steps.append((end, "read_until", limit))
                case "drain" if not incoming and not on_the_way[1 - end]:
                    self.steps.append((end, "drain", None))
                case "pause":
                    self.steps.append((end, "pause", None))
                case _:
                    pass
        first = choice.randrange(2)
        self.steps.append((first, choice.choice(("close", "write_eof")), None))
        second = 1 - first
        self.steps += [(second, "rest", None), (second, "read_exactly", 5), (second, "close", None)]
        if self.steps[-4][1] == "write_eof":
            self.steps += [(first, "rest", None), (first, "read_until", 10), (first, "close", None)]
        self.steps += [(0, "wait_closed", None), (1, "wait_closed", None), (first, "send", b"late")]

    async def play(self, ends: Ends) -> list[Any]:
        """What each operation brought."""
        results: list[Any] = []
        sending = []
        for end, operation, argument in self.steps:
            conn = ends[end]
            match operation:
                case "send":
                    with contextlib.suppress(ConnectionFreed):  # Of the last step, told by its result's absence.
                        sending.append(asyncio.ensure_future(outcome(conn.send(argument))))
                case "pause":
                    conn.pause()
                    conn.resume()
                case "rest":
                    results.append(await outcome(read_to_end(conn)))
                case "write":
                    conn.write(argument)
                case "write_eof" | "close":
                    getattr(conn, operation)()
                case "read_until":
                    results.append(await outcome(conn.read_until(limit=argument)))
                case "drain" | "wait_closed":
                    results.append(await outcome(getattr(conn, operation)()))
                case _:
                    results.append(await outcome(conn.read_exactly(argument)))
        return [*results, *[await one for one in sending], [repr(conn).split()[-1] for conn in ends]]


async def outcome(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("seed", range(50))
def test_script_has_the_same_results_in_memory_as_over_tcp(seed: int) -> None:
    choice = random.Random(seed)
    chunk_bytes = choice.choice((7, 100, 1000, 10**9))
    buffer_bytes = choice.choice((10, 1000, 65536))

    async def main() -> None:
        script = Script(seed)
        async with over_tcp() as ends:
            wanted = await script.play(ends)
        async with Pair(chunk_bytes=chunk_bytes, buffer_bytes=buffer_bytes) as ends:
            assert await script.play(ends) == wanted

    run(main())


# What only a Pair does.


def test_pair_brings_bytes_in_chunks() -> None:
    async def main() -> None:
        async with Pair(chunk_bytes=2) as (a, b):
            await a.send(b"abcde")
            assert [await b.read() for _ in range(3)] == [b"ab", b"cd", b"e"]

    run(main())


def test_pair_holds_no_more_than_its_buffer() -> None:
    async def main() -> None:
        async with Pair(buffer_bytes=3) as (a, b):
            a.write(b"abcde")
            assert (a.sent_bytes, a.unsent_bytes) == (3, 2)
            assert await b.read() == b"abc"
            assert await b.read() == b"de"
            assert (a.sent_bytes, b.received_bytes) == (5, 5)

    run(main())


@pytest.mark.parametrize("arguments", [{"chunk_bytes": 0}, {"buffer_bytes": 0}])
def test_pair_refuses_sizes_that_stop_everything(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pair(**arguments)  # type: ignore[arg-type]


async def upper(conn: Connection) -> None:
    while line := await conn.read_until():
        await conn.send(line.upper())


async def upper_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for line in reader:
        writer.write(line.upper())
        await writer.drain()


def upper_callback(conn: Connection, data: bytes) -> None:
    conn.write(data.upper())


class UpperProtocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


KINDS: Final = pytest.mark.parametrize(
    "handler", [upper, upper_streams, upper_callback, UpperProtocol], ids=["conn", "streams", "callback", "protocol"]
)


@pytest.mark.parametrize("chunk_bytes", [1, 1000])
@KINDS
def test_pair_serves_every_kind_of_handler(handler: Any, chunk_bytes: int) -> None:
    async def main() -> None:
        pair = Pair(handler, chunk_bytes=chunk_bytes)
        async with pair as (a, b):
            for _ in range(3):
                await a.send(b"some line\n")
                assert await a.read_until() == b"SOME LINE\n"
            assert b.shard.connections == [b]
        assert pair.errors == []

    run(main())


def test_pair_lets_a_test_call_the_handler_itself() -> None:
    async def handler(conn: Connection) -> None:
        conn.write(b"%d\n" % len(await conn.read_exactly(3)))

    async def main() -> None:
        async with Pair() as (a, b):
            a.write(b"abc")
            await handler(b)
            assert await a.read_until() == b"3\n"

    run(main())


def test_pair_does_around_a_handler_what_a_server_does() -> None:
    told: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(shard: Any) -> AsyncIterator[None]:
        shard.state.greeting = b"hello"
        yield
        told.append("left")

    async def handler(conn: Connection) -> None:
        await conn.send(conn.shard.state.greeting)

    app = App(
        handler,
        lifespan=lifespan,
        on_connect=lambda conn: told.append(conn.peer),
        on_disconnect=lambda conn, error: told.append(error),
    )

    async def main() -> None:
        async with Pair(app) as (a, b):
            assert await read_to_end(a) == b"hello"
            assert told == [b.peer]
        assert told == [b.peer, None, "left"]

    run(main())


def test_pair_raises_what_the_handler_raised() -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()
        raise LookupError("nothing there")

    async def main(expect_errors: bool) -> None:
        pair = Pair(handler, expect_errors=expect_errors)
        async with pair as (a, _):
            a.write(b"?")
            assert await a.read() == b""
        assert [str(error) for error in pair.errors] == ["nothing there"]

    with pytest.raises(ExceptionGroup) as caught:
        run(main(expect_errors=False))
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    run(main(expect_errors=True))


def test_pair_lets_the_tests_own_failure_through_and_tells_of_the_handler() -> None:
    async def handler(conn: Connection) -> None:
        raise LookupError("nothing there")

    async def main() -> None:
        async with Pair(handler) as (a, _):
            await a.read_exactly(1)

    with pytest.raises(asyncio.IncompleteReadError) as caught:
        run(main())
    assert "LookupError: nothing there" in caught.value.__notes__[0]


def test_pair_cancels_a_handler_that_does_not_come_to_its_end() -> None:
    told: list[str] = []

    async def handler(conn: Connection) -> None:
        told.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("cancelled")

    async def main() -> None:
        async with Pair(handler, drain_timeout_s=0.0) as (a, b):
            await until(lambda: told)
        assert told == ["begun", "cancelled"]
        assert "closed" in repr(a)
        assert "closed" in repr(b)

    run(main())


def test_pair_does_not_wait_for_a_handler_that_ignores_its_cancellation() -> None:
    released = asyncio.Event()

    async def handler(conn: Connection) -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    async def main() -> None:
        async with Pair(handler, drain_timeout_s=0.0) as (a, b):
            a.abort()
            await b.wait_closed()
        released.set()

    run(main())


def test_pair_says_what_is_wrong_with_a_handler() -> None:
    with pytest.raises(AppError, match="handler"):
        Pair(7)


def test_pair_leaves_no_timer_behind() -> None:
    """The deadline of a peer that does not read is far away, and would keep everything alive until then."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        def alarms() -> list[Any]:
            return [timer for timer in loop._scheduled if not timer.cancelled() and "turn_soon" in repr(timer)]

        async with Pair(buffer_bytes=1) as (a, _):
            a.write(b"more than fits")
            await until(alarms)
        assert alarms() == []

    run(main())
