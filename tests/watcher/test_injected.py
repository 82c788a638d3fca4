"""Errors, refusals and partial moves of the kernel, at every place where it may have them."""

from __future__ import annotations

import errno
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardnet.watcher import Channel, ConnectionBroken, ConnectionFreed, Op
from shardnet.watcher.listener import EXHAUSTED_PAUSE_S, RETRY_ERRNOS
from tests.engine.kit import PATIENCE_S, receive_exactly
from tests.watcher.kit import Answer, Bench
from tests.watcher.scripted import NOT_NOW, REAL, Fail, Move, ScriptedSystem, Step

EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]
MESSAGE = bytes(range(1, 41))


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> ScriptedSystem:
    return ScriptedSystem(monkeypatch)


def named(numbers: list[int]) -> list[Any]:
    return [pytest.param(number, id=errno.errorcode[number]) for number in numbers]


def number_of(error: BaseException | None) -> int | None:
    assert isinstance(error, OSError), error
    return error.errno


def talk(bench: Bench, ours: socket.socket | Channel, theirs: socket.socket) -> None:
    """The connection works in both directions."""
    bench.watcher.write(ours, b"to you")
    assert bench.one().error is None
    assert receive_exactly(theirs, 6) == b"to you"
    theirs.sendall(b"to me")
    buffer = bytearray(5)
    bench.watcher.read_full(ours, buffer)
    answer = bench.one()
    assert (answer.error, answer.data) == (None, b"to me")


def use_up(bench: Bench, answer: Answer, theirs: socket.socket) -> None:
    """The completion has made a connection that works. It is then freed."""
    assert isinstance(answer.conn, Channel), answer
    talk(bench, answer.conn, theirs)
    bench.watcher.free(answer.conn)


# Accepting.


@pytest.mark.parametrize("number", named(EXHAUSTED))
def test_accept_completes_with_what_ran_out_and_the_listener_rests(
    bench: Bench, system: ScriptedSystem, number: int
) -> None:
    """The connection stays in the backlog, and the poller goes on telling of it: to try at once would be to spin."""
    listener = bench.listener()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(Fail(number))
    watcher = bench.watcher
    for ctx in range(3):
        watcher.accept(listener, ctx=ctx)
    failed = bench.one()
    assert (failed.op, failed.ctx, failed.conn, number_of(failed.error)) == (Op.ACCEPT, 0, None, number)
    for _ in range(50):
        assert watcher.wait_io(0) == []
    watcher.accept(listener, ctx=3)
    assert system.accept.calls == 1  # Nobody has tried in between, not even for an accept that is new.
    answer = bench.one()
    assert (answer.ctx, answer.error) == (1, None)
    assert system.accept.calls <= 3
    use_up(bench, answer, theirs)
    watcher.free(listener)
    assert [answer.ctx for answer in bench.collect(2)] == [2, 3]


def test_accept_that_is_asked_again_at_once_is_answered_no_faster_than_the_listener_rests(
    bench: Bench, system: ScriptedSystem
) -> None:
    listener = bench.listener()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(*[Fail(errno.EMFILE)] * 3)
    watcher = bench.watcher
    watcher.accept(listener)
    turns_before = watcher.statistics().turns
    for _ in range(3):
        assert number_of(bench.one().error) == errno.EMFILE
        watcher.accept(listener)
    answer = bench.one()
    assert system.accept.calls <= 5
    assert watcher.statistics().turns - turns_before < 40
    use_up(bench, answer, theirs)


def test_listener_that_rests_is_given_back_when_nobody_asks_again(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(Fail(errno.EMFILE))
    bench.watcher.accept(listener)
    assert number_of(bench.one().error) == errno.EMFILE
    bench.watcher.sleep(2 * EXHAUSTED_PAUSE_S)
    assert bench.one().op is Op.TIMER
    assert system.accept.calls == 1
    bench.watcher.accept(listener)
    use_up(bench, bench.one(), theirs)


def test_listener_that_rests_can_be_freed_and_used_again(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(Fail(errno.EMFILE))
    watcher = bench.watcher
    watcher.accept(listener)
    watcher.accept(listener)
    watcher.free(listener)
    failed, freed = bench.collect(2)
    assert number_of(failed.error) == errno.EMFILE
    assert isinstance(freed.error, ConnectionFreed)
    watcher.accept(listener)
    use_up(bench, bench.one(), theirs)


def test_deadline_of_an_accept_passes_while_the_listener_rests(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(Fail(errno.EMFILE))
    bench.watcher.accept(listener)
    assert number_of(bench.one().error) == errno.EMFILE
    bench.watcher.accept(listener, timeout=0)
    assert isinstance(bench.one().error, TimeoutError)
    assert system.accept.calls == 1


@pytest.mark.parametrize("number", named(sorted(RETRY_ERRNOS)))
def test_accept_of_a_connection_that_died_meanwhile_takes_the_next(
    bench: Bench, system: ScriptedSystem, number: int
) -> None:
    """More of them than a turn has attempts, so that the poll has to tell again."""
    listener = bench.listener()
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    system.accept.then(*[Fail(number)] * 40)
    bench.watcher.accept(listener)
    answer = bench.one()
    assert (answer.error, system.accept.calls) == (None, 41)
    use_up(bench, answer, theirs)


def test_accept_that_finds_nobody_although_the_poll_told_waits(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    system.accept.then(NOT_NOW, NOT_NOW, NOT_NOW)
    bench.watcher.accept(listener)
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    answer = bench.one()
    assert system.accept.calls == 4
    use_up(bench, answer, theirs)


# Writing.


@pytest.mark.parametrize("refusals", [1, 2, 7])
def test_write_that_is_refused_at_any_byte_goes_on_there(bench: Bench, system: ScriptedSystem, refusals: int) -> None:
    ours, theirs = bench.tcp()
    for position in range(len(MESSAGE)):
        system.send.then(*([Move(position)] if position else []), *[NOT_NOW] * refusals)
        bench.watcher.write(ours, MESSAGE)
        bench.watcher.write(ours, b"and the next")
        first, second = bench.collect(2)
        assert (first.error, first.size, second.error, second.size) == (None, len(MESSAGE), None, 12)
        assert receive_exactly(theirs, len(MESSAGE) + 12) == MESSAGE + b"and the next"
    assert system.send.played


@pytest.mark.parametrize("steps", [[Move(1)], [Move(1), NOT_NOW], [NOT_NOW, NOT_NOW, Move(1), Move(2)]])
def test_write_byte_by_byte_is_exact(bench: Bench, system: ScriptedSystem, steps: list[Step]) -> None:
    ours, theirs = bench.unix()
    data = bytes(number * 7 % 251 for number in range(1500))
    system.send.always(*steps)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_exactly, theirs, 1500)
        bench.watcher.write(ours, data[:700])
        bench.watcher.write(ours, data[700:])
        assert [answer.size for answer in bench.collect(2)] == [700, 800]
        assert received.result() == data
    assert bench.watcher.statistics().sent_bytes == 1500


@pytest.mark.parametrize("number", named([errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.EIO]))
@pytest.mark.parametrize("waited", [False, True])
def test_write_that_fails_in_its_middle_breaks_the_stream(
    bench: Bench, system: ScriptedSystem, number: int, waited: bool
) -> None:
    """What follows would be taken for the rest of it, at whichever byte it stopped."""
    for position in range(1, len(MESSAGE)):
        ours, theirs = bench.unix()
        system.send.then(Move(position), *([NOT_NOW] if waited else []), Fail(number))
        watcher = bench.watcher
        for ctx in range(3):
            watcher.write(ours, MESSAGE, ctx=ctx)
        failed, *behind = bench.collect(3)
        assert (failed.ctx, failed.size, number_of(failed.error)) == (0, position, number)
        assert [(answer.ctx, answer.size, type(answer.error)) for answer in behind] == [
            (1, 0, ConnectionBroken),
            (2, 0, ConnectionBroken),
        ]
        calls = system.send.calls
        watcher.write(ours, MESSAGE)
        assert isinstance(bench.one().error, ConnectionBroken)
        assert system.send.calls == calls
        theirs.sendall(b"still heard")
        watcher.read(ours)
        assert bench.one().data == b"still heard"
        watcher.free(ours)
        assert theirs.recv(100) == MESSAGE[:position]
        assert theirs.recv(1) == b""


def test_write_that_fails_before_its_first_byte_leaves_the_stream_whole(bench: Bench, system: ScriptedSystem) -> None:
    ours, theirs = bench.unix()
    system.send.then(Fail(errno.ENOBUFS), REAL, NOT_NOW, Fail(errno.ENOBUFS))
    for ctx in range(4):
        bench.watcher.write(ours, b"%d" % ctx, ctx=ctx)
    answers = bench.collect(4)
    assert [answer.ctx for answer in answers] == [0, 1, 2, 3]
    assert [getattr(answer.error, "errno", None) for answer in answers] == [errno.ENOBUFS, None, errno.ENOBUFS, None]
    assert receive_exactly(theirs, 2) == b"13"


# Reading.


@pytest.mark.parametrize("refusals", [1, 2, 7])
def test_read_full_that_is_refused_at_any_byte_goes_on_there(
    bench: Bench, system: ScriptedSystem, refusals: int
) -> None:
    ours, theirs = bench.tcp()
    for position in range(len(MESSAGE)):
        theirs.sendall(MESSAGE)
        system.receive_into.then(*([Move(position)] if position else []), *[NOT_NOW] * refusals)
        buffer = bytearray(len(MESSAGE))
        bench.watcher.read_full(ours, buffer)
        answer = bench.one()
        assert (answer.error, answer.size) == (None, len(MESSAGE))
        assert buffer == MESSAGE
    assert system.receive_into.played


@pytest.mark.parametrize("steps", [[Move(1)], [Move(1), NOT_NOW], [NOT_NOW, NOT_NOW, Move(1), Move(2)]])
def test_reads_byte_by_byte_are_exact(bench: Bench, system: ScriptedSystem, steps: list[Step]) -> None:
    ours, theirs = bench.unix()
    data = bytes(number * 7 % 251 for number in range(1500))
    system.receive_into.always(*steps)
    theirs.sendall(data)
    buffer = bytearray(700)
    bench.watcher.read_full(ours, buffer)
    assert bench.one().data == data[:700]
    received = bytearray()
    while len(received) < 800:
        into_swap = len(received) % 2 == 0
        bench.watcher.read(ours, None if into_swap else bytearray(100))
        answer = bench.one()
        assert answer.error is None
        assert 1 <= answer.size <= 2
        assert answer.completion.is_swap_buffer == into_swap
        received += answer.data
    assert received == data[700:]
    assert bench.watcher.statistics().received_bytes == 1500


@pytest.mark.parametrize("number", named([errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENOMEM]))
@pytest.mark.parametrize("waited", [False, True])
def test_read_full_that_fails_in_its_middle_says_what_it_has(
    bench: Bench, system: ScriptedSystem, number: int, waited: bool
) -> None:
    """Nothing is lost by it: the next read goes on behind."""
    ours, theirs = bench.unix()
    for position in range(1, len(MESSAGE)):
        theirs.sendall(MESSAGE)
        system.receive_into.then(Move(position), *([NOT_NOW] if waited else []), Fail(number))
        buffers = bytearray(len(MESSAGE)), bytearray(len(MESSAGE) - position)
        for buffer in buffers:
            bench.watcher.read_full(ours, buffer)
        failed, behind = bench.collect(2)
        assert (failed.size, number_of(failed.error), failed.data) == (position, number, MESSAGE[:position])
        assert (behind.error, behind.data) == (None, MESSAGE[position:])


def test_read_that_fails_into_the_swap_buffer_takes_none_of_it(bench: Bench, system: ScriptedSystem) -> None:
    ours, theirs = bench.unix()
    theirs.sendall(b"later")
    system.receive_into.then(Fail(errno.ENOMEM))
    bench.watcher.read(ours)
    failed = bench.one()
    assert (number_of(failed.error), failed.data, failed.completion.is_swap_buffer) == (errno.ENOMEM, b"", True)
    assert bench.watcher.statistics().swap_in_use_bytes == 0
    bench.watcher.read(ours)
    assert bench.one().data == b"later"


def test_end_of_the_stream_is_not_asked_for_again(bench: Bench, system: ScriptedSystem) -> None:
    """Behind it an error may stand, which a later read would be given instead."""
    ours, theirs = bench.unix()
    theirs.shutdown(socket.SHUT_WR)
    bench.watcher.read(ours)
    assert isinstance(bench.one().error, EOFError)
    system.receive_into.always(Fail(errno.ECONNRESET))
    bench.watcher.read(ours)
    bench.watcher.read_full(ours, bytearray(3))
    assert [type(answer.error) for answer in bench.collect(2)] == [EOFError, EOFError]


# Polling.


@pytest.mark.parametrize("number", named([errno.ENOMEM, errno.ENOSPC]))
def test_operation_that_cannot_be_polled_for_says_so_and_the_connection_works_on(
    bench: Bench, system: ScriptedSystem, number: int
) -> None:
    ours, theirs = bench.tcp()
    watcher = bench.watcher
    system.add.then(Fail(number), Fail(number))
    watcher.read(ours)
    failed = bench.one()
    assert (failed.op, failed.conn, number_of(failed.error)) == (Op.READ, ours, number)
    system.send.then(NOT_NOW)
    watcher.write(ours, b"x")
    failed = bench.one()
    assert (failed.op, failed.size, number_of(failed.error)) == (Op.WRITE, 0, number)
    assert system.add.calls == 2
    talk(bench, ours, theirs)
    watcher.read(ours)
    theirs.sendall(b"waited for")
    assert bench.one().data == b"waited for"


def test_write_that_cannot_be_polled_for_in_its_middle_breaks_the_stream(bench: Bench, system: ScriptedSystem) -> None:
    ours, theirs = bench.tcp()
    system.add.then(Fail(errno.ENOSPC))
    system.send.then(Move(3), NOT_NOW)
    bench.watcher.write(ours, MESSAGE)
    bench.watcher.write(ours, b"behind")
    failed, behind = bench.collect(2)
    assert (failed.size, number_of(failed.error)) == (3, errno.ENOSPC)
    assert isinstance(behind.error, ConnectionBroken)
    assert receive_exactly(theirs, 3) == MESSAGE[:3]


@pytest.mark.parametrize("number", named([errno.ENOMEM, errno.ENOSPC]))
def test_accept_that_cannot_be_polled_for_says_so_and_the_listener_works_on(
    bench: Bench, system: ScriptedSystem, number: int
) -> None:
    listener = bench.listener()
    system.add.then(Fail(number))
    bench.watcher.accept(listener)
    assert number_of(bench.one().error) == number
    bench.watcher.accept(listener)
    theirs = bench.keep(socket.create_connection(listener.getsockname()))
    use_up(bench, bench.one(), theirs)


def test_accepts_are_known_although_the_listener_could_not_be_polled_after_its_rest(
    bench: Bench, system: ScriptedSystem
) -> None:
    """Two rests of one listener overlap, and the end of the second is no news to who has it by then."""
    listener = bench.listener()
    bench.keep(socket.create_connection(listener.getsockname()))
    watcher = bench.watcher
    system.accept.then(Fail(errno.EMFILE))
    watcher.accept(listener)
    assert number_of(bench.one().error) == errno.EMFILE
    system.add.then(Fail(errno.ENOMEM))
    watcher.accept(listener)
    assert number_of(bench.one().error) == errno.ENOMEM
    system.accept.always(NOT_NOW)
    watcher.accept(listener, ctx="waits")
    watcher.sleep(2 * EXHAUSTED_PAUSE_S)
    assert bench.one().op is Op.TIMER
    watcher.accept(listener, ctx="behind")
    bench.none()
    watcher.free(listener)
    assert [answer.ctx for answer in bench.collect(2)] == ["waits", "behind"]


# Connecting.


@pytest.mark.parametrize("number", [errno.EINTR, errno.EALREADY, errno.EINPROGRESS])
def test_connect_that_is_under_way_already_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    listener = bench.listener()
    asked: list[int] = []
    real = socket.socket.connect_ex

    def connect_ex(sock: socket.socket, address: tuple[str, int]) -> int:
        answer = real(sock, address)
        asked.append(answer)
        return number if len(asked) == 1 else answer

    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)
    bench.watcher.connect(listener.getsockname())
    answer = bench.one()
    assert len(asked) == 2
    use_up(bench, answer, bench.keep(listener.accept()[0]))


def test_connect_that_is_told_not_now_again_and_again_is_asked_again(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    system.connect.then(*[NOT_NOW] * 5)
    bench.watcher.connect(listener.getsockname())
    answer = bench.one()
    assert system.connect.played
    use_up(bench, answer, bench.keep(listener.accept()[0]))


@pytest.mark.parametrize(
    "number", named([errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EAGAIN])
)
@pytest.mark.parametrize("steps_before", [[], [NOT_NOW]])
def test_connect_that_fails_says_so_and_leaves_nothing(
    bench: Bench, system: ScriptedSystem, number: int, steps_before: list[Step]
) -> None:
    system.connect.then(*steps_before, Fail(number))
    bench.watcher.connect(("127.0.0.1", 9), ctx="c")
    failed = bench.one()
    assert (failed.op, failed.ctx, failed.conn, number_of(failed.error)) == (Op.CONNECT, "c", None, number)
    assert system.close.calls == 1


def test_connect_that_cannot_be_polled_for_says_so_and_leaves_nothing(bench: Bench, system: ScriptedSystem) -> None:
    listener = bench.listener()
    system.add.then(Fail(errno.ENOSPC))
    bench.watcher.connect(listener.getsockname())
    failed = bench.one()
    assert (failed.op, failed.conn, number_of(failed.error)) == (Op.CONNECT, None, errno.ENOSPC)
    assert system.close.calls == 1


def test_connect_and_accept_without_a_descriptor_left_say_so(bench: Bench) -> None:
    listener = bench.listener()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        bench.watcher.connect(listener.getsockname())
        bench.watcher.accept(listener)
        answers = bench.collect(2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [(answer.op, answer.conn, number_of(answer.error)) for answer in answers] == [
        (Op.CONNECT, None, errno.EMFILE),
        (Op.ACCEPT, None, errno.EMFILE),
    ]
    bench.watcher.connect(listener.getsockname())
    use_up(bench, bench.one(), bench.keep(listener.accept()[0]))


# Closing.


def test_close_that_fails_ends_the_connection_all_the_same(bench: Bench, system: ScriptedSystem) -> None:
    ours, theirs = bench.tcp()
    system.close.then(Fail(errno.EIO))
    bench.watcher.read(ours)
    bench.watcher.free(ours)
    assert isinstance(bench.one().error, ConnectionFreed)
    assert bench.watcher.statistics().connections == 0
    assert theirs.recv(1) == b""
    assert system.close.played


def test_watcher_closes_all_although_every_close_fails(bench: Bench, system: ScriptedSystem) -> None:
    pairs = [bench.tcp() for _ in range(3)]
    system.close.always(Fail(errno.EIO))
    for ours, _ in pairs:
        bench.watcher.read(ours)
    bench.watcher.close()
    assert len(bench.collect(3)) == 3
    assert [theirs.recv(1) for _, theirs in pairs] == [b"", b"", b""]


# Both directions at once.


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_echo_is_exact_when_every_call_is_partial_or_refused(bench: Bench, system: ScriptedSystem, over: str) -> None:
    ours, theirs = bench.tcp() if over == "tcp" else bench.unix()
    watcher = bench.watcher
    data = bytes(number * 31 % 256 for number in range(2000))
    system.receive_into.always(Move(1), NOT_NOW, Move(3), Move(5))
    system.send.always(NOT_NOW, Move(2), Move(1), NOT_NOW, Move(7))
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_exactly, theirs, len(data))
        theirs.sendall(data)
        echoed = 0
        watcher.read(ours)
        while echoed < len(data):
            for completion in watcher.wait_io(PATIENCE_S):
                assert completion.error is None
                if completion.op is Op.READ:
                    watcher.write(ours, completion.data)
                    watcher.read(ours)
                else:
                    echoed += completion.size
        assert received.result() == data
    watcher.free(ours)
    assert isinstance(bench.one().error, ConnectionFreed)


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_megabyte_through_the_smallest_socket_buffers_is_exact(bench: Bench, over: str) -> None:
    data = bytes(number * 31 % 251 for number in range(1 << 20))
    buffer = bytearray(len(data))
    with ThreadPoolExecutor(1) as pool:
        ours, theirs = smallest(bench, over)
        received = pool.submit(receive_exactly, theirs, len(data))
        bench.watcher.write(ours, data)
        answer = bench.one()
        assert (answer.error, answer.size) == (None, len(data))
        assert received.result() == data
        theirs, ours = smallest(bench, over)
        sent = pool.submit(theirs.sendall, data)
        bench.watcher.read_full(ours, buffer)
        answer = bench.one()
        sent.result()
    assert (answer.error, answer.size) == (None, len(data))
    assert buffer == data


def smallest(bench: Bench, over: str) -> tuple[socket.socket, socket.socket]:
    """A sender and a receiver with the smallest buffers between them that the kernel grants: some kilobytes."""
    if over == "tcp":
        return bench.tcp(buffer_bytes=1)
    sender, receiver = bench.unix()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    return sender, receiver
