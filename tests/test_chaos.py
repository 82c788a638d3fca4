"""The parts of `shardnet chaos`: what a client calls lost, to which fault it belongs, what the report makes of it."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from shardnet.chaos import FAULTS, MIXES, Options, Report, as_json, as_text, parse_faults
from shardnet.chaos.server import Holdings
from shardnet.chaos.session import Outcome, Place, Session, Visit
from shardnet.chaos.sockdiag import SockDiag
from shardnet.chaos.tally import NO_FAULT, Counts, Tally
from shardnet.cli.chaos import chaos
from shardnet.errors import SystemFault, UsageError

TIMEOUT_S = 0.3
LONG_S = 20.0
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def diag() -> Iterator[SockDiag]:
    try:
        asked = SockDiag()
    except SystemFault as exc:
        pytest.skip(str(exc))
    with asked:
        yield asked


# Whether a connection was accepted.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_tells_accepted_connections_from_those_in_the_queue(diag: SockDiag, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener, socket.socket(family) as client:
        client.connect(listener.getsockname())
        ends = listener.getsockname()[:2], client.getsockname()[:2]
        assert not diag.is_accepted(*ends)
        client.shutdown(socket.SHUT_WR)
        assert not diag.is_accepted(*ends)
        accepted, _ = listener.accept()
        assert diag.is_accepted(*ends)
        accepted.close()
        assert diag.is_accepted(*ends)


# What comes of a session.

Deed = Callable[[socket.socket], Awaitable[object]]


def visit(diag: SockDiag, deed: Deed, timeout_s: float = LONG_S) -> Session:
    """What a client sees of a listener to which that is done."""

    async def both() -> Session:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            doing = asyncio.create_task(_ignore(deed(listener)))
            session = await Visit(Place(listener.getsockname(), b"hi\n", timeout_s, diag)).run()
            doing.cancel()
            return session

    return asyncio.run(both())


async def _ignore(deed: Awaitable[object]) -> None:
    await deed


async def accept(listener: socket.socket) -> socket.socket:
    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    return sock


async def receive(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 100)


async def until_queued(listener: socket.socket) -> None:
    """Until a connection waits in the queue; it stays there."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(listener, ready.set)
    await ready.wait()
    loop.remove_reader(listener)


async def answer(listener: socket.socket) -> None:
    with await accept(listener) as sock:
        assert await receive(sock) == b"hi\n"
        sock.send(b"hello\n")
        assert await receive(sock) == b""


async def close_queue(listener: socket.socket) -> None:
    await until_queued(listener)
    listener.close()


async def close_at_once(listener: socket.socket) -> None:
    (await accept(listener)).close()


async def reset_once_asked(listener: socket.socket) -> None:
    with await accept(listener) as sock:
        await asyncio.sleep(0)
        await receive(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)


async def reset_in_the_answer(listener: socket.socket) -> None:
    with await accept(listener) as sock:
        await receive(sock)
        sock.send(b"hel")
        assert await receive(sock) == b""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)


async def say_nothing(listener: socket.socket) -> None:
    with await accept(listener):
        await asyncio.Event().wait()


async def accept_nobody(_: socket.socket) -> None:
    await asyncio.Event().wait()


async def close(listener: socket.socket) -> None:
    listener.close()


@pytest.mark.parametrize(
    ("deed", "outcome"),
    [
        (answer, Outcome.ANSWERED),
        (close_queue, Outcome.RESET),
        (close_at_once, Outcome.CUT),
        (reset_once_asked, Outcome.CUT),
        (reset_in_the_answer, Outcome.CUT),
    ],
)
def test_outcome_of_a_session(diag: SockDiag, deed: Deed, outcome: Outcome) -> None:
    session = visit(diag, deed)
    assert session.outcome is outcome
    assert 0 <= session.accept_wait_s <= session.wait_s < LONG_S


@pytest.mark.parametrize(("deed", "outcome"), [(accept_nobody, Outcome.HUNG), (say_nothing, Outcome.STALLED)])
def test_outcome_of_a_session_without_an_end(diag: SockDiag, deed: Deed, outcome: Outcome) -> None:
    session = visit(diag, deed, TIMEOUT_S)
    assert session.outcome is outcome
    assert session.wait_s >= TIMEOUT_S
    assert (session.accept_wait_s < TIMEOUT_S) == (outcome is Outcome.STALLED)


def test_a_closed_port_refuses(diag: SockDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    session = asyncio.run(Visit(Place(address, b"hi\n", LONG_S, diag)).run())
    assert session.outcome is Outcome.REFUSED


def test_sessions_travel_between_processes_as_they_are() -> None:
    session = Session(1.5, 2.75, 0.125, Outcome.STALLED)
    assert Session.unpack(session.pack()) == session
    assert len(session.pack()) == Session.FORM.size


# To which fault a session belongs.


def session(started_s: float, ended_s: float, outcome: Outcome = Outcome.ANSWERED) -> Session:
    return Session(started_s, ended_s, (ended_s - started_s) / 2, outcome)


def test_sessions_belong_to_the_fault_they_were_under() -> None:
    tally = Tally()
    before_s = time.monotonic()
    tally.begin("kill")
    during_s = time.monotonic()
    tally.end()
    tally.add(session(before_s - 2.0, before_s - 1.0))
    tally.add(session(before_s - 2.0, during_s, Outcome.CUT))
    tally.add(session(during_s, during_s + 0.1, Outcome.RESET))
    tally.add(session(during_s + 5.0, during_s + 6.0))
    assert tally.by_fault[NO_FAULT].attempted == 2
    assert tally.by_fault["kill"].outcomes[Outcome.CUT] == 1
    assert tally.by_fault["kill"].outcomes[Outcome.RESET] == 1
    assert tally.by_fault["kill"].injections == 1
    assert tally.total().attempted == 4
    assert tally.total().lost == 1


def test_of_two_faults_a_session_belongs_to_the_later_one() -> None:
    tally = Tally()
    tally.begin("stop")
    tally.end()
    tally.begin("kill")
    now_s = time.monotonic()
    tally.add(session(now_s, now_s))
    assert tally.by_fault["kill"].attempted == 1
    assert tally.by_fault["stop"].attempted == 0


def test_waits_are_those_of_connections_that_came_to_something() -> None:
    counts = Counts()
    counts.add(Session(0.0, 3.0, 2.0, Outcome.ANSWERED))
    counts.add(Session(0.0, 9.0, 8.0, Outcome.HUNG))
    counts.add(Session(0.0, 7.0, 2.5, Outcome.CUT))
    assert (counts.accept_worst_s, counts.answer_worst_s) == (2.5, 3.0)


# What is asked for.


def test_mixes_name_faults_that_exist() -> None:
    for mix in MIXES.values():
        assert set(mix) <= set(FAULTS)
    assert parse_faults("short") == MIXES["short"]
    assert parse_faults("kill=3, reload,scale=0") == {"kill": 3, "reload": 1}
    assert parse_faults("none") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kil=3", "there is no 'kil'"),
        ("", "there is no ''"),
        ("kill=", "a count is a whole number"),
        ("kill=-1", "a count is a whole number"),
        ("kill=²", "a count is a whole number"),
        ("kill=9999999", "a count is a whole number up to 1,000,000"),
    ],
)
def test_faults_that_cannot_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_faults(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": 1}, "--workers is 1: give 2 to"),
        ({"clients": 0}, "--clients is 0"),
        ({"rate": math.nan}, "--rate is nan"),
        ({"timeout_s": 0.0}, "--timeout is 0"),
        ({"duration_s": -1.0}, "--duration is -1"),
        ({"request": b""}, "--text is empty"),
        ({"stop_for_s": 5.0}, "--stop-for 5 is not less than --hang-timeout 3"),
    ],
)
def test_options_that_cannot_be_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Options({"stop": 1}, **values)  # type: ignore[arg-type]


def test_a_round_has_each_fault_as_often_as_it_says() -> None:
    options = Options(parse_faults("kill=5,reload=2"))
    faults = list(options.round(random.Random(1)))
    assert sorted(faults) == ["kill"] * 5 + ["reload"] * 2
    assert faults == list(options.round(random.Random(1)))


def test_help_tells_of_every_fault() -> None:
    assert chaos.epilog is not None
    told = chaos.epilog.partition("Faults:")[2].partition("\b")[0]
    assert dict(line.split(None, 1) for line in told.strip().splitlines()) == dict(FAULTS)


# What is made of it.


def report(*sessions: Session, **fields: object) -> Report:
    tally = Tally()
    for one in sessions:
        tally.add(one)
    return Report("app:handler", "0", tally.by_fault, 10.0, 32, 0.001, **fields)  # type: ignore[arg-type]


def holdings(files: int) -> Holdings:
    held = Holdings([])
    held.files = files
    return held


ANSWERED = session(0.0, 0.01)


@pytest.mark.parametrize(
    ("sessions", "fields", "said"),
    [
        ([session(0, 1, Outcome.REFUSED)], {}, "1 of 2 connections were lost"),
        ([session(0, 1, Outcome.RESET)], {}, "1 of 2 connections were lost"),
        ([session(0, 1, Outcome.HUNG)], {}, "1 of 2 connections were lost"),
        ([session(0, 1, Outcome.STALLED)], {}, "1 connections were accepted, and neither answered nor ended"),
        ([], {"before": holdings(5), "after": holdings(6)}, "open files grew from 5 to 6"),
        ([], {"generations_most": 3}, "3 generations had workers at a time"),
        ([], {"exit_status": 70}, "the server's exit status was 70"),
        ([], {"gave_up": "it did not recover"}, "it did not recover"),
        ([], {"others": ["something"]}, "something"),
    ],
)
def test_the_verdict_finds_what_should_not_be(sessions: list[Session], fields: dict[str, object], said: str) -> None:
    found = report(ANSWERED, *sessions, **fields)
    assert [trouble for trouble in found.troubles() if said in trouble]
    assert said in as_text(found)
    assert json.loads(as_json(found))["troubles"] == found.troubles()


def test_the_verdict_is_well_when_nothing_was_lost() -> None:
    cut = session(0, 1, Outcome.CUT)  # Its worker died with it: no server can help that.
    found = report(ANSWERED, cut, before=holdings(5), after=holdings(5), generations_most=2, exit_status=0)
    assert found.troubles() == []
    assert "no connection was lost" in as_text(found)


def test_a_run_in_which_nobody_was_answered_shows_nothing() -> None:
    assert "nobody was answered" in report().troubles()[0]
