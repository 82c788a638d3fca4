"""A worker's side of lending: it accepts on what it is sent, and leaves what is queued when it gives that back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.connection import Connection
from shardnet.control import Message, pair
from shardnet.loans import Loans
from shardnet.testing.serving import open_listener
from tests.serving import Serving, until

ADDRESS = "127.0.0.1:9"


async def echo(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)


class Lender:
    """A supervisor's end of a control channel, and a sibling's listener."""

    def __init__(self) -> None:
        self.ours, self.theirs = pair()
        self.listener = open_listener("127.0.0.1")

    def lend(self, *fds: int, **fields: object) -> Message:
        """What the worker receives."""
        assert self.ours.send("lend", fds or [self.listener.fileno()], **fields) is not None
        [message] = self.theirs.receive(fds_max=8)
        return message

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=20.0)

    def close(self) -> None:
        for one in (self.ours, self.theirs, self.listener):
            one.close()


@pytest.fixture
def lender() -> Iterator[Lender]:
    one = Lender()
    yield one
    one.close()


def open_fds() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def test_worker_accepts_on_what_it_was_lent_and_counts_it_for_the_address(lender: Lender) -> None:
    async def main(kit: Serving) -> None:
        loans = Loans(kit.server, ["other", ADDRESS])
        assert loans.take(lender.lend(loan=3, addresses=[1])) == ("borrowed", {"loan": 3})
        with lender.connect() as client:
            await until(lambda: len(list(kit.connections)) == 1)
            client.sendall(b"x")
            await until(lambda: next(iter(kit.connections)).sent_bytes == 1)
            assert client.recv(1) == b"x"
        loans.give_back(3)

    with Serving(echo, listener_count=2) as kit:
        kit.run(main(kit))


@pytest.mark.fault("F12")
def test_what_is_queued_when_it_is_given_back_is_left_to_the_lender(lender: Lender) -> None:
    before = open_fds()

    async def main(kit: Serving) -> None:
        loans = Loans(kit.server, [ADDRESS])
        loans.take(lender.lend(loan=1, addresses=[0]))
        with lender.connect():
            loans.give_back(1)  # In the very turn in which its event is ready.
            for _ in range(3):
                await asyncio.sleep(0)
            assert not list(kit.connections)
            lender.listener.accept()[0].close()
        loans.give_back(1)  # It means nothing the second time.

    with Serving(echo) as kit:
        kit.run(main(kit))
    assert open_fds() == before


def test_worker_that_is_full_accepts_nothing_on_what_it_was_lent(lender: Lender) -> None:
    async def main(kit: Serving) -> None:
        loans = Loans(kit.server, [ADDRESS])
        client, _ = await kit.open()
        loans.take(lender.lend(loan=1, addresses=[0]))
        with lender.connect():
            for _ in range(3):
                await asyncio.sleep(0)
            [first] = kit.connections
            client.close()
            await until(lambda: list(kit.connections) not in ([first], []))
        loans.give_back(1)

    with Serving(echo, connections_max=1) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"loan": 1, "addresses": [0, 0]}, "1 of 2 listeners arrived: too many open files"),
        ({"loan": 1, "addresses": [1]}, "a loan for an address that is not known"),
        ({"loan": 1, "addresses": ["0"]}, "a loan for an address that is not known"),
        ({"loan": 1}, "a loan that cannot be understood"),
        ({"loan": "1", "addresses": [0]}, "a loan that cannot be understood"),
    ],
)
def test_loan_that_cannot_be_taken_is_refused_and_leaves_nothing_behind(
    lender: Lender, fields: dict[str, object], why: str
) -> None:
    before = open_fds()

    async def main(kit: Serving) -> None:
        answer = Loans(kit.server, [ADDRESS]).take(lender.lend(**fields))
        assert answer == ("loan_refused", {"loan": fields["loan"], "why": why})

    with Serving(echo) as kit:
        kit.run(main(kit))
    assert open_fds() == before


def test_descriptor_that_cannot_be_watched_is_refused(lender: Lender, tmp_path: Path) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    before = open_fds()

    async def main(kit: Serving) -> None:
        type_, _ = Loans(kit.server, [ADDRESS]).take(lender.lend(file, loan=1, addresses=[0]))
        assert type_ == "loan_refused"

    with Serving(echo) as kit:
        kit.run(main(kit))
    assert open_fds() == before
    os.close(file)
