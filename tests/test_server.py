"""The server of a worker: its limits, its counters, and handlers that fail."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardnet.app import Kind
from shardnet.connection import Connection
from shardnet.watcher._sys import EVENT_IN, EpollPoller
from shardnet.watcher.counters import Op, Outcome
from tests.serving import Serving, until


async def echo(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)


def on_data(conn: Connection, data: bytes) -> None:
    conn.write(data)


KINDS = pytest.mark.parametrize("handler", [echo, on_data], ids=["coroutine", "callback"])


# Accepting.


@KINDS
def test_server_counts_for_each_listener_apart(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        for listener, data in ((0, b"a"), (1, b"bcd"), (1, b"e")):
            client, _ = await kit.open(listener=listener)
            client.put(data)
            assert await client.receive() == data
        client.close()
        await until(lambda: kit.closed(1) == {"EOF": 1})
        assert [kit.accepted_total(listener) for listener in (0, 1)] == [1, 2]
        assert [kit.active(listener) for listener in (0, 1)] == [1, 1]
        assert [kit.received_bytes(listener) for listener in (0, 1)] == [1, 4]
        assert [kit.sent_bytes(listener) for listener in (0, 1)] == [1, 4]
        assert kit.closed(0) == {}

    with Serving(handler, listener_count=2) as kit:
        kit.run(main(kit))


def test_server_says_where_it_serves() -> None:
    async def handler(conn: Connection) -> None:
        shard = conn.shard
        await conn.send(f"{shard.id} {shard.count} {shard.generation} {shard.draining}".encode())

    async def main(kit: Serving) -> None:
        assert await kit.connect().receive() == b"0 1 0 False"

    with Serving(handler) as kit:
        kit.run(main(kit))


@KINDS
def test_connections_above_the_limit_wait_in_the_backlog(handler: Callable[..., Any]) -> None:
    """They are not refused, and the listener does not keep the loop busy; each that ends makes room for one."""

    async def main(kit: Serving) -> None:
        clients = [(await kit.open())[0] for _ in range(2)]
        waiting = [kit.connect() for _ in range(3)]
        for client in waiting:
            client.put(b"?")
        for _ in range(10):
            clients[0].put(b"x")
            assert await clients[0].receive() == b"x"
        assert (kit.accepted_total(), kit.active()) == (2, 2)
        for accepted, client in enumerate(waiting, start=3):
            clients.pop(0).close()
            assert await client.receive() == b"?"
            assert (kit.accepted_total(), kit.active()) == (accepted, 2)
            clients.append(client)
        for client in clients:
            client.close()
        await until(lambda: not kit.active())
        assert (await kit.open())[1].id == 6

    with Serving(handler, connections_max=2) as kit:
        kit.run(main(kit))
        assert kit.engine.cells[kit.cells.connections_limit] == 2


def test_limit_counts_the_connections_of_all_listeners() -> None:
    async def main(kit: Serving) -> None:
        client, _ = await kit.open(listener=0)
        other = kit.connect(listener=1)
        other.put(b"?")
        for _ in range(10):
            client.put(b"x")
            await client.receive()
        assert kit.accepted_total(1) == 0
        client.close()
        assert await other.receive() == b"?"

    with Serving(echo, connections_max=1, listener_count=2) as kit:
        kit.run(main(kit))


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """A function that leaves this process so many free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        free = []
        for _ in range(count):
            free.append(os.open("/dev/null", os.O_RDONLY))
        limit = os.open("/dev/null", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        for fd in (*free, limit):
            os.close(fd)

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_server_without_descriptors_pauses_says_so_once_and_recovers(
    few_descriptors: Callable[[int], None],
) -> None:
    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(3)]
        for client in clients:
            client.put(b"?")
        few_descriptors(1)
        assert await clients[0].receive() == b"?"
        await until(lambda: kit.completions(Op.ACCEPT, Outcome.ERROR) >= 3)
        assert kit.completions(Op.ACCEPT, Outcome.ERROR) <= kit.completions(Op.TIMER, Outcome.OK) + 1  # Never spins.
        assert kit.active() == 1
        clients[0].close()
        assert await clients[1].receive() == b"?"
        clients[1].close()
        assert await clients[2].receive() == b"?"
        [(event, fields, _)] = kit.logged
        assert (event, fields["error"]) == ("accepting pauses", os.strerror(errno.EMFILE))

    with Serving(echo) as kit:
        kit.run(main(kit))


def test_descriptor_that_cannot_be_polled_is_closed_and_counted_by_nobody() -> None:
    """The kernel limits how much a user may poll (`fs.epoll.max_user_watches`): an error there used to end the loop.

    A file stands for it here, which epoll refuses, too.
    """

    async def main(kit: Serving) -> None:
        fd = os.open(__file__, os.O_RDONLY)
        kit.server._on_accept(kit.cells.traffic[0], False, fd, ("127.0.0.1", 1))
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF
        assert (kit.active(), kit.accepted_total(), kit.closed()) == (0, 0, {})
        assert [event for event, _, _ in kit.logged] == ["accepting pauses"]
        assert list(kit.connections) == []

    with Serving(echo) as kit:
        kit.run(main(kit))


@pytest.mark.interpreted
def test_kernel_that_polls_no_more_costs_one_connection_not_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting went on at full speed: each queued connection in turn was taken, refused by epoll and closed."""
    add = EpollPoller.add
    refusals = [errno.ENOSPC]

    def refuse(poller: EpollPoller, fd: int, events: int) -> None:
        if refusals and events != EVENT_IN:
            raise OSError(refusals.pop(), "no more watches")
        add(poller, fd, events)

    async def main(kit: Serving) -> None:
        clients = [kit.connect() for _ in range(5)]
        monkeypatch.setattr(EpollPoller, "add", refuse)
        assert await clients[0].receive() == b""
        assert kit.accepted_total() == 0
        for client in clients[1:]:
            client.put(b"?")
            assert await client.receive() == b"?"

    with Serving(echo) as kit:
        kit.run(main(kit))


# Handlers that raise.


def test_exception_of_a_handler_is_logged_with_its_peer() -> None:
    async def handler(conn: Connection) -> None:
        await conn.read()
        raise LookupError("what was sought")

    async def main(kit: Serving) -> None:
        client, conn = await kit.open()
        client.put(b"x")
        assert await client.receive() == b""
        host, port = client.sock.getsockname()
        [(event, fields, error)] = kit.logged
        assert event == "handler raised"
        assert fields == {"peer": f"{host}:{port}", "connection": conn.id}
        assert isinstance(error, LookupError)
        assert error.__traceback__ is not None

    with Serving(handler) as kit:
        kit.run(main(kit))
        assert kit.handler_exceptions == 1


def test_peer_of_ipv6_is_logged_as_people_write_it() -> None:
    async def handler(conn: Connection) -> None:
        raise LookupError

    async def main(kit: Serving) -> None:
        client = kit.connect()
        assert await client.receive() == b""
        assert kit.logged[0][1]["peer"] == f"[::1]:{client.sock.getsockname()[1]}"

    with Serving(handler, host="::1") as kit:
        kit.run(main(kit))


def _raises(conn: Connection) -> None:
    raise LookupError


def _exits(conn: Connection) -> None:
    raise SystemExit


def _returns_nothing(conn: Connection) -> None:
    pass


@pytest.mark.parametrize("handler", [_raises, _exits, _returns_nothing])
def test_handler_that_makes_no_coroutine_ends_its_connection(handler: Callable[..., Any]) -> None:
    async def main(kit: Serving) -> None:
        for count in (1, 2):
            client = kit.connect()
            assert await client.receive() == b""
            client.close()
            await until(lambda count=count: kit.closed() == {"ERROR": count})  # type: ignore[misc]
        assert kit.handler_exceptions == 2

    with Serving(handler, kind=Kind.CONN) as kit:
        kit.run(main(kit))
