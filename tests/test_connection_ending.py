"""Connections: every way to an end, whoever begins it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

import pytest

from shardnet.connection import Connection, Limits
from shardnet.errors import ConnectionFreed
from shardnet.watcher.counters import Op, Outcome
from tests.serving import Serving, the_task, this_task, until

SMALL_BUFFER_BYTES = 4096
MUCH = bytes(range(256)) * 4096


async def wait_in_read(conn: Connection) -> None:
    await conn.read()


async def wait_for_the_end(conn: Connection) -> None:
    """A handler that neither reads nor writes."""
    await conn.wait_closed()


# We close.


def test_return_of_the_handler_flushes_and_closes() -> None:
    async def handler(conn: Connection) -> None:
        conn.write(MUCH)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        assert await client.receive_to_end() == MUCH
        client.close()
        await until(lambda: kit.closed() == {"LOCAL": 1})

    with Serving(handler, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_reply_survives_input_that_nobody_read() -> None:
    """A close with unread input would reset the connection, and the reply would be lost with it."""

    async def handler(conn: Connection) -> None:
        await conn.read(1)
        while conn.unread_in_kernel() < 30_000:
            await asyncio.sleep(0)
        await conn.send(MUCH)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.put(bytes(30_001))
        assert await client.receive_to_end() == MUCH
        client.put(b"and more")
        client.close()
        await until(lambda: kit.closed() == {"LOCAL": 1})
        assert kit.received_bytes() == 30_001 + 8

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_lingering_ends_when_the_peer_sends_too_much() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.close()
        with pytest.raises(ConnectionError):
            await client.send(bytes(100 << 20))
        assert kit.closed() == {"LOCAL": 1}
        assert kit.completions(Op.TIMER, Outcome.OK) == 0

    with Serving(wait_in_read, limits=Limits(linger_bytes=20_000)) as kit:
        kit.run(main(kit))


def test_lingering_ends_when_the_peer_does_nothing() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.close()
        await conn.wait_closed()
        assert await client.receive() == b""
        assert kit.completions(Op.TIMER, Outcome.OK) == 1

    with Serving(wait_in_read, limits=Limits(linger_s=0.02)) as kit:
        kit.run(main(kit))


def test_close_wakes_a_parked_reader_with_the_end_of_its_stream() -> None:
    async def handler(conn: Connection) -> bytes:
        return await conn.read()

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        task = the_task(conn)
        conn.close()
        assert await task == b""

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_close_lets_waiting_sends_end_well() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.ensure_future(conn.send(MUCH))
        conn.close()
        assert await client.receive_to_end() == MUCH
        await sending

    with Serving(wait_in_read, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_close_of_a_stalled_connection_does_not_wait_for_ever() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        conn.write(MUCH)
        conn.close()
        await conn.wait_closed()
        assert kit.closed() == {"DEADLINE": 1}
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()

    with Serving(wait_in_read, limits=Limits(write_stall_s=0.05), send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_abort_resets_and_drops_what_is_unsent() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        sending = asyncio.ensure_future(conn.send(MUCH))
        conn.abort()
        with pytest.raises(ConnectionFreed):
            await sending
        with pytest.raises(ConnectionResetError):
            await client.receive_to_end()
        assert kit.closed() == {"LOCAL": 1}
        assert kit.completions(Op.WRITE, Outcome.CANCELLED) == 1

    with Serving(wait_in_read, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))


def test_everybody_who_waits_for_the_end_is_told() -> None:
    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        waiting = [asyncio.create_task(conn.wait_closed()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        conn.abort()
        assert await asyncio.gather(*waiting[1:]) == [None, None]
        await conn.wait_closed()
        assert waiting[0].cancelled()

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))


def test_waiting_for_the_end_and_giving_up_leaves_nothing_behind() -> None:
    """A handler may wait for the end beside each of its reads. Every wait that it gave up stayed on the connection, in
    a list that was copied for the next: memory for each message, and time that grew with their square."""

    async def main(kit: Serving) -> None:
        _, conn = await kit.open()
        for _ in range(10):
            waiting = asyncio.create_task(conn.wait_closed())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert conn._aside is not None
        assert conn._aside.closers == []

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))


def test_peer_sees_the_end_although_somebody_else_holds_the_descriptor() -> None:
    """As a process does that the app forked, a pool's for instance. Where the peer had ended its stream first, ours was
    ended by the close alone, which such a holder keeps from having any effect: the client waited for ever."""

    async def handler(conn: Connection) -> None:
        assert await conn.read() == b""
        await conn.send(b"bye")

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        held = os.dup(conn.fd)
        try:
            client.end()
            assert await client.receive_to_end() == b"bye"
        finally:
            os.close(held)

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_descriptor_that_the_handler_closed_itself_ends_only_its_connection() -> None:
    """`socket.socket(fileno=conn.fd)`, for a socket option, closes the descriptor when it is collected. Our close then
    raised EBADF: from a timer, that left `select()` and ended the worker, and the connection was counted for ever."""

    async def handler(conn: Connection) -> None:
        await conn.read()
        conn.close()
        os.close(conn.fd)

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"x")
        await conn.wait_closed()
        assert kit.active() == 0

    with Serving(handler, limits=Limits(linger_s=0.01)) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize("first", ["close", "abort"])
@pytest.mark.parametrize("second", ["close", "abort"])
def test_descriptor_is_closed_once(first: str, second: str) -> None:
    """Whoever has got the same number meanwhile keeps it."""

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        fd = conn.fd
        client.close()
        getattr(conn, first)()
        await conn.wait_closed()
        successors = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]  # The client's number is free, too.
        try:
            assert fd in successors
            getattr(conn, second)()
            await asyncio.sleep(0)
            os.fstat(fd)
        finally:
            for successor in successors:
                os.close(successor)
        assert sum(kit.closed().values()) == 1

    with Serving(wait_for_the_end) as kit:
        kit.run(main(kit))


# The peer ends.


def test_end_of_the_peers_stream_leaves_ours_open() -> None:
    async def handler(conn: Connection) -> None:
        assert await conn.read() == b""
        await conn.send(MUCH)

    async def main(kit: Serving) -> None:
        client, _ = await kit.open()
        client.end()
        assert await client.receive_to_end() == MUCH
        await until(lambda: kit.closed() == {"EOF": 1})
        assert kit.completions(Op.TIMER, Outcome.OK) == 0  # Nothing to linger for.

    with Serving(handler) as kit:
        kit.run(main(kit))


def test_reset_before_the_accept_is_an_ordinary_connection_that_fails() -> None:
    errors: list[BaseException] = []
    peers = []

    async def handler(conn: Connection) -> None:
        peers.append(conn.peer)
        try:
            await conn.read()
        except OSError as error:
            errors.append(error)
            raise

    async def main(kit: Serving) -> None:
        client = kit.connect()
        address = client.sock.getsockname()
        client.reset()
        await until(lambda: kit.closed() == {"RESET": 1})
        assert peers == [address]
        assert kit.handler_exceptions == 0

    with Serving(handler) as kit:
        kit.run(main(kit))
    assert [type(error) for error in errors] == [ConnectionResetError]


def test_reset_fails_the_parked_read_and_everything_after_it() -> None:
    got: list[object] = []

    async def handler(conn: Connection) -> None:
        async def attempt(operation: Callable[[], Awaitable[object]]) -> None:
            try:
                got.append(await operation())
            except OSError as error:
                got.append(type(error))

        await attempt(lambda: conn.read_exactly(10))
        await attempt(conn.read)
        await attempt(conn.read_until)
        await attempt(lambda: conn.read_exactly(0))
        await attempt(lambda: conn.send(b"x"))
        await attempt(conn.drain)
        conn.write(b"x")
        conn.close()
        conn.abort()
        assert this_task().cancelling() == 0

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        task = the_task(conn)
        client.put(b"abc")
        await until(lambda: conn._buffered() == 3)
        client.reset()
        await task
        assert kit.closed() == {"RESET": 1}
        assert kit.completions(Op.READ, Outcome.RESET) == 1

    with Serving(handler) as kit:
        kit.run(main(kit))
    reset = ConnectionResetError
    assert got == [reset, b"abc", reset, b"", reset, BrokenPipeError]


def test_send_to_a_peer_that_has_reset_raises_its_error_then_broken_pipe() -> None:
    got: list[object] = []

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.reset()
        for _ in range(3):  # Before the loop turns: it is the send that meets the reset.
            try:
                await conn.send(b"x")
            except OSError as error:
                got.append((type(error), error.errno))

    with Serving(wait_for_the_end) as kit:
        kit.run(main(kit))
        assert kit.completions(Op.WRITE, Outcome.RESET) == 1
    broken = (BrokenPipeError, errno.EPIPE)
    assert got == [(ConnectionResetError, errno.ECONNRESET), broken, broken]


def test_waiting_send_that_fails_counts_as_the_first() -> None:
    got: list[object] = []

    async def handler(conn: Connection) -> None:
        for _ in range(2):
            try:
                await conn.send(MUCH)
            except OSError as error:
                got.append(type(error))

    async def main(kit: Serving) -> None:
        client, conn = await kit.open(receive_buffer_bytes=SMALL_BUFFER_BYTES)
        task = the_task(conn)
        await client.receive(1)
        client.reset()
        await task

    with Serving(handler, send_buffer_bytes=SMALL_BUFFER_BYTES) as kit:
        kit.run(main(kit))
    assert got == [ConnectionResetError, BrokenPipeError]


def test_reset_while_lingering_is_no_news() -> None:
    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        conn.close()
        assert await client.receive() == b""
        client.reset()
        await until(lambda: kit.closed() == {"LOCAL": 1})
        assert kit.handler_exceptions == 0
        with pytest.raises(ConnectionFreed):
            await conn.send(b"x")

    with Serving(wait_in_read) as kit:
        kit.run(main(kit))
