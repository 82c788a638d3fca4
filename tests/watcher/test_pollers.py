"""Two pollers, one behaviour: what poll(2) is made to tell is what epoll tells."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import random
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardnet.watcher import _sys
from shardnet.watcher._sys import Poller
from shardnet.watcher.pollers import PollPoller, new_poller
from tests.engine.kit import reset, tcp_pair, wait_for

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["epoll", "poll"]

# The news that an endpoint acts on: what has no bit of its own in poll's answer comes as one of these.
INWARD = ~_sys.EVENT_OUT
OUTWARD = _sys.EVENT_OUT | _sys.EVENT_FAILED


class Side:
    """One end of a pair that a poller watches for edges, and what an endpoint would remember of them."""

    def __init__(self, name: str, pair: tuple[socket.socket, socket.socket]) -> None:
        self.poller = new_poller(name)
        self.ours, self.theirs = pair
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.fd = self.ours.fileno()
        self.readable = False
        self.writable = False
        self.told: list[tuple[bool, bool]] = []  # Each time: whether inward, whether outward.
        self.poller.add(self.fd, _sys.ENDPOINT_EVENTS)
        self.hear()

    def hear(self) -> None:
        """Polls until nothing is told any more; it has to be quiet soon."""
        for _ in range(5):
            if not self.poller.poll(0):
                return
            fd, events = self.poller.event(0)
            assert fd == self.fd
            self.told.append((bool(events & INWARD), bool(events & OUTWARD)))
            self.readable = self.readable or self.told[-1][0]
            self.writable = self.writable or self.told[-1][1]
        pytest.fail(f"it never stops telling: {self.told}")

    def rearm(self, events: int) -> None:
        if self.poller.rearm is not None:
            self.poller.rearm(self.fd, events)

    # What may happen.

    def peer_sends(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.send(b"x" * 10)

    def peer_sends_much(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.send(b"x" * 100_000)

    def peer_ends(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.shutdown(socket.SHUT_WR)

    def peer_takes_all(self) -> None:
        with contextlib.suppress(OSError):
            while self.theirs.recv(1 << 20):
                pass

    def peer_closes(self) -> None:
        self.theirs.close()

    def read_some(self) -> None:
        with contextlib.suppress(OSError):
            self.ours.recv(5)

    def read_all(self) -> None:
        """Until the kernel has no more. Not tried without news, as by an endpoint with hooks."""
        if not self.readable:
            return
        try:
            while self.ours.recv(1 << 20):
                pass
        except BlockingIOError:
            self.readable = False
            self.rearm(_sys.EVENT_IN)
        except OSError:
            pass  # It stays readable: a dead connection says so each time.

    def write_all(self) -> None:
        """Until the kernel takes no more."""
        try:
            while self.ours.send(b"y" * 10_000):
                pass
        except BlockingIOError:
            self.writable = False
            self.rearm(_sys.EVENT_OUT)
        except OSError:
            pass

    def close(self) -> None:
        self.poller.close()
        self.ours.close()
        self.theirs.close()


STEPS: list[Callable[[Side], None]] = [
    Side.peer_sends,
    Side.peer_sends,
    Side.peer_sends_much,
    Side.peer_takes_all,
    Side.peer_takes_all,
    Side.read_some,
    Side.read_all,
    Side.read_all,
    Side.write_all,
    Side.write_all,
]
ENDS: list[Callable[[Side], None]] = [Side.peer_ends, Side.peer_closes]


@pytest.fixture(params=NAMES)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller = new_poller(request.param)
    yield poller
    poller.close()


@pytest.fixture
def sides() -> Iterator[list[Side]]:
    sides = [Side(name, socket.socketpair()) for name in NAMES]
    yield sides
    for side in sides:
        side.close()


def happen(sides: list[Side], *steps: Callable[[Side], None]) -> None:
    """Each step on every side, and the same is known of all after each."""
    done = []
    for step in steps:
        done.append(step.__name__)
        for side in sides:
            step(side)
            side.hear()
        known = {(side.readable, side.writable) for side in sides}
        assert len(known) == 1, (done, [(side.readable, side.writable) for side in sides])


@pytest.mark.parametrize("seed", range(40))
def test_pollers_tell_the_same_of_whatever_happens(sides: list[Side], seed: int) -> None:
    chance = random.Random(seed)
    steps = [chance.choice(STEPS) for _ in range(60)]
    happen(sides, *steps, chance.choice(ENDS), *(chance.choice(STEPS) for _ in range(20)))
    assert any(inward for inward, _ in sides[0].told)


def test_pollers_tell_of_a_state_once(sides: list[Side]) -> None:
    happen(sides, Side.peer_sends)
    for side in sides:
        side.told.clear()
        side.hear()
        assert side.told == []  # Still readable, and still writable.


def test_pollers_tell_again_after_all_was_read_and_more_came(sides: list[Side]) -> None:
    for _ in range(3):
        happen(sides, Side.peer_sends, Side.read_all)
        assert not sides[0].readable
        happen(sides, Side.peer_sends)
        assert sides[0].readable


def test_pollers_tell_what_came_between_the_last_read_and_the_rearming(sides: list[Side]) -> None:
    """The kernel was seen empty, and was empty no more when that was said."""
    happen(sides, Side.peer_sends, Side.read_all)
    for side in sides:
        with pytest.raises(BlockingIOError):
            side.ours.recv(1)
        side.peer_sends()
        side.rearm(_sys.EVENT_IN)
        side.hear()
        assert side.readable


def test_pollers_tell_of_room_once_the_peer_has_taken(sides: list[Side]) -> None:
    happen(sides, Side.write_all)
    assert not sides[0].writable
    happen(sides, Side.peer_takes_all)
    assert sides[0].writable
    happen(sides, Side.peer_sends, Side.write_all, Side.read_all, Side.peer_takes_all, Side.peer_sends)
    assert (sides[0].readable, sides[0].writable) == (True, True)


def test_pollers_tell_of_a_reset_in_both_directions_and_then_are_quiet() -> None:
    sides = [Side(name, tcp_pair()) for name in NAMES]
    try:
        for side in sides:
            side.write_all()
            side.hear()
            reset(side.theirs)
            wait_for(side.fd, select.POLLHUP | select.POLLERR)
            side.hear()
            assert (side.readable, side.writable) == (True, True)
            side.told.clear()
            for events in (_sys.EVENT_IN, _sys.EVENT_OUT):
                with contextlib.suppress(OSError):
                    side.ours.recv(1)
                side.hear()
                assert side.told == []
                side.rearm(events)  # There is nothing to wait for. Whoever waits all the same is told so once.
                side.hear()
                assert len(side.told) <= 1
                side.told.clear()
    finally:
        for side in sides:
            side.close()


def test_poller_without_edges_tells_as_long_as_it_is_so(poller: Poller) -> None:
    """Guests and listeners: the engine does nothing with what they are told."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.add(ours.fileno(), _sys.EVENT_IN)
        assert poller.poll(0) == 0
        theirs.send(b"x")
        for _ in range(3):
            assert poller.poll(0) == 1
            assert poller.event(0) == (ours.fileno(), _sys.EVENT_IN)
        ours.recv(1)
        assert poller.poll(0) == 0
        poller.modify(ours.fileno(), _sys.EVENT_OUT)
        for _ in range(3):
            assert [poller.event(index) for index in range(poller.poll(0))] == [(ours.fileno(), _sys.EVENT_OUT)]
        theirs.close()
        for _ in range(3):
            assert poller.poll(0) == 1
            assert poller.event(0)[1] & _sys.EVENT_FAILED
        poller.remove(ours.fileno())
        assert poller.poll(0) == 0


def told(poller: Poller) -> list[tuple[int, int]]:
    """The events of one poll, each asked for once."""
    return [poller.event(index) for index in range(poller.poll(0))]


def test_event_of_what_was_removed_meanwhile_is_told_to_nobody(poller: Poller) -> None:
    """The garbage collector may close a descriptor between a poll and its events. That once made the whole poll raise,
    and with it the news of all others was lost for good: they had been told, and nobody heard."""
    pairs = [socket.socketpair() for _ in range(3)]
    with contextlib.ExitStack() as undo:
        for pair in pairs:
            for sock in pair:
                undo.enter_context(sock)
        for ours, theirs in pairs:
            poller.add(ours.fileno(), _sys.EVENT_IN | _sys.EVENT_EDGE)
            theirs.send(b"x")
        assert poller.poll(None) == 3
        gone = pairs[0][0].fileno()
        poller.remove(gone)
        heard = {fd for fd, events in map(poller.event, range(3)) if events and fd != gone}
        assert heard == {ours.fileno() for ours, _ in pairs[1:]}
        assert told(poller) == []


def test_events_that_nobody_has_asked_for_are_told_again() -> None:
    """What an interrupt leaves of a poll: `PollPoller` looks away only from what it has told."""
    poller = PollPoller()
    pairs = [socket.socketpair() for _ in range(2)]
    with contextlib.ExitStack() as undo:
        for pair in pairs:
            for sock in pair:
                undo.enter_context(sock)
        for ours, theirs in pairs:
            poller.add(ours.fileno(), _sys.EVENT_IN | _sys.EVENT_EDGE)
            theirs.send(b"x")
        assert poller.poll(None) == 2
        heard, _ = poller.event(0)
        [again] = told(poller)
        assert {heard, again[0]} == {ours.fileno() for ours, _ in pairs}


def test_poller_that_is_changed_to_edges_tells_once(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.add(ours.fileno(), _sys.EVENT_OUT)
        poller.modify(ours.fileno(), _sys.EVENT_OUT | _sys.EVENT_EDGE)
        assert [len(told(poller)) for _ in range(3)] == [1, 0, 0]


def test_poller_tells_several_at_once(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    try:
        for ours, _ in pairs:
            poller.add(ours.fileno(), _sys.EVENT_IN | _sys.EVENT_EDGE)
        for _, theirs in pairs[1:4]:
            theirs.send(b"x")
        told = sorted(poller.event(index)[0] for index in range(poller.poll(None)))
        assert told == sorted(ours.fileno() for ours, _ in pairs[1:4])
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.001])
def test_poller_waits_no_longer_than_it_may(poller: Poller, timeout_s: float) -> None:
    assert poller.poll(timeout_s) == 0


@pytest.mark.parametrize("timeout_s", [1e-9, 86400.0, 1e9, 1e300, float("inf")])
def test_poller_bears_any_timeout_when_something_is_there(poller: Poller, timeout_s: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.add(ours.fileno(), _sys.EVENT_OUT)
        assert poller.poll(timeout_s) == 1


# What can be registered.


def test_poller_refuses_what_is_registered_closed_or_a_file(poller: Poller, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("wb") as file:
        poller.add(ours.fileno(), _sys.EVENT_IN)
        with pytest.raises(FileExistsError):
            poller.add(ours.fileno(), _sys.EVENT_IN)
        with pytest.raises(PermissionError):
            poller.add(file.fileno(), _sys.EVENT_OUT)
        number = theirs.fileno()
        theirs.close()
        for refuse in (poller.add, poller.modify):
            with pytest.raises(OSError) as caught:
                refuse(number, _sys.EVENT_IN)
            assert caught.value.errno in (errno.EBADF, errno.ENOENT)
        poller.remove(ours.fileno())
        with pytest.raises(FileNotFoundError):
            poller.modify(ours.fileno(), _sys.EVENT_IN)


def test_poller_forgets_silently_what_it_does_not_know(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.remove(ours.fileno())
        poller.add(ours.fileno(), _sys.EVENT_IN)
        for _ in range(2):
            poller.remove(ours.fileno())
        poller.add(ours.fileno(), _sys.EVENT_IN)
        poller.close()
        poller.remove(ours.fileno())


def test_poller_takes_a_number_that_stands_for_something_else_by_now(poller: Poller) -> None:
    """Its owner closed it behind our back, and the kernel gave the number to the next."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    poller.add(number, _sys.ENDPOINT_EVENTS)
    ours.close()
    with theirs, contextlib.ExitStack() as undo:
        heir, peer = (undo.enter_context(sock) for sock in socket.socketpair())
        if heir.fileno() != number:
            os.dup2(heir.fileno(), number)
            undo.callback(os.close, number)
        poller.add(number, _sys.ENDPOINT_EVENTS)
        while told(poller):
            pass
        peer.send(b"x")
        if poller.rearm is not None:
            poller.rearm(number, _sys.EVENT_IN)
        assert poller.poll(0) == 1
        assert poller.event(0)[0] == number
        assert poller.event(0)[1] & _sys.EVENT_IN


def test_poll_tells_once_that_a_descriptor_was_closed_behind_its_back() -> None:
    """epoll says nothing of it; poll says it in each answer, and would never wait again."""
    poller = PollPoller()
    ours, theirs = socket.socketpair()
    with theirs:
        number = ours.fileno()
        poller.add(number, _sys.ENDPOINT_EVENTS)
        ours.close()
        assert [len(told(poller)) for _ in range(3)] == [1, 0, 0]
        poller.remove(number)
        poller.rearm(number, _sys.EVENT_IN)
        assert poller.poll(0) == 0


def test_poll_tells_of_urgent_bytes_by_what_follows_them() -> None:
    """A byte out of band is no event here: poll is not asked for it. The bytes behind it are."""
    side = Side("poll", tcp_pair())
    try:
        side.told.clear()
        side.theirs.send(b"!", socket.MSG_OOB)
        wait_for(side.fd, select.POLLPRI)
        side.theirs.send(b"x")
        wait_for(side.fd, select.POLLIN)
        side.hear()
        assert side.told == [(True, False)]
    finally:
        side.close()


def test_pollers_tell_of_bytes_with_descriptors(sides: list[Side]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]

    def peer_sends_rights(side: Side) -> None:
        side.theirs.sendmsg([b"x"], rights)

    happen(sides, peer_sends_rights, peer_sends_rights, Side.read_all, peer_sends_rights)
    assert sides[0].readable


# The choice.


def test_new_poller_is_the_named_one_or_the_best() -> None:
    for name, kind in (("epoll", _sys.EpollPoller), ("poll", PollPoller), (None, _sys.EpollPoller)):
        poller = new_poller(name)
        poller.close()
        assert type(poller) is kind


@pytest.mark.parametrize("name", ["kqueue", "", "EPOLL", "select"])
def test_new_poller_says_which_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="there are 'epoll' and 'poll'"):
        new_poller(name)


WITHOUT = """
import os, select, socket
for module, names in ((select, {names}), (os, {os_names})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from shardnet.watcher import Op, Watcher
from shardnet.watcher.pollers import PollPoller, new_poller
try:
    new_poller("epoll")
except ValueError as error:
    print(error)
ours, theirs = socket.socketpair()
with Watcher() as watcher, theirs:
    for number in range(20):
        data = b"%d" % number * 5000
        watcher.read(ours)
        watcher.wake()
        assert watcher.wait_io() == []
        theirs.sendall(data)
        received = b""
        while len(received) < len(data):
            (completion,) = watcher.wait_io(10)
            received += completion.data
            watcher.write(ours, completion.data)
            if len(received) < len(data):
                watcher.read(ours)
            (written,) = watcher.wait_io(10)
            assert (written.op, written.error) == (Op.WRITE, None)
        assert received == data == theirs.recv(len(data), socket.MSG_WAITALL)
    watcher.read(ours)
    theirs.shutdown(socket.SHUT_WR)
    (ended,) = watcher.wait_io(10)
    assert isinstance(ended.error, EOFError)
    watcher.free(ours)
print("exact")
"""


@pytest.mark.parametrize(
    ("names", "os_names", "said"),
    [
        (["epoll", "EPOLLIN", "POLLRDHUP"], ["eventfd", "EFD_NONBLOCK", "EFD_CLOEXEC"], "this system has none"),
        (["epoll"], [], "this system has none"),
        (["POLLRDHUP"], ["eventfd"], None),
    ],
)
def test_watcher_works_where_the_system_lacks_something(
    names: list[str], os_names: list[str], said: str | None
) -> None:
    program = WITHOUT.format(names=names, os_names=os_names)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    *before, last = ran.stdout.splitlines()
    assert last == "exact"
    assert [said in line for line in before if said is not None] == [True] * (said is not None)
