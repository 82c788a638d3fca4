"""A `System` without a kernel: a supervisor runs on it whose workers are never forked, in no time at all.

The test tells a story, as a generator: what it does before a `yield` has happened when the supervisor looks next, and
after the `yield` the supervisor has done whatever it thought fit. Time passes when the story says so.

    def story(system: FakeSystem) -> Iterator[None]:
        yield                           # The supervisor starts, and forks its workers.
        system.says(1, "ready")
        yield
        system.exits(1, status=3)       # Child 1 crashes;
        yield                           # its successor is forked.
        assert system.living == [2]
        system.signal(signal.SIGQUIT)
        yield
        yield

    Supervisor(FakeSystem(story), …).run()

Lives here: children that do what they are told to. Must not live here: what a supervisor should do about them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from signal import SIGKILL, Signals

from shardnet.control import Message
from shardnet.errors import UsageError
from shardnet.supervisor.events import Ending
from shardnet.supervisor.happenings import (
    Asked,
    ChildDumped,
    ChildExited,
    ChildMisspoke,
    ChildSaid,
    ClientAsked,
    Happening,
)
from shardnet.supervisor.system import Enter, Main
from shardnet.testing.clock import FakeClock

__all__ = ["FakeChild", "FakeSystem", "StoryOver"]

FIRST_PID = 70_000


class StoryOver(AssertionError):
    """The supervisor waits, and nothing more was said to happen."""


@dataclass(slots=True)
class FakeChild:
    """A child as a supervisor sees one: what it was told, and which signals it got."""

    number: int
    pid: int
    forked_s: float
    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    signals: list[Signals] = field(default_factory=list)
    hears: bool = True  # False: its control channel is full, as that of a worker that hangs.
    alive: bool = True
    messages: int = 0

    def was_told(self, type_: str) -> bool:
        """Whether the supervisor has sent it a message of this type."""
        return any(told == type_ for told, _ in self.told)


class FakeSystem:
    """What a `Supervisor` asks of the world, told by a story. `clock` is its time, moved by the story alone."""

    def __init__(self, story: Callable[[FakeSystem], Iterator[None]], clock: FakeClock | None = None) -> None:
        self.clock = FakeClock() if clock is None else clock
        self.children: dict[int, FakeChild] = {}  # All that ever were, by number.
        self.until_s = self.clock.now_s  # When the supervisor would have looked by itself: its next deadline.
        self.answers: list[tuple[int, int, dict[str, object]]] = []  # What operators were told: client, id, fields.
        self.memory: dict[int, int] = {}  # How much the story says that a child has, in bytes.
        self.closed = False
        self._story = story(self)
        self._forks_refused = 0
        self._asked: list[Happening] = []
        self._said: list[Happening] = []
        self._exited: list[Happening] = []

    # What the story tells.

    @property
    def living(self) -> list[int]:
        """The numbers of the children that have not exited."""
        return [child.number for child in self.children.values() if child.alive]

    def signal(self, signum: int) -> None:
        """Somebody sends the supervisor a signal."""
        self._asked.append(Asked(signum))

    def says(self, child: int, type_: str, **fields: object) -> None:
        """A child sends a control message."""
        one = self._living(child)
        one.messages += 1
        self._said.append(ChildSaid(child, Message(one.messages, type_, dict(fields))))

    def dumps(self, child: int, text: str) -> None:
        """A child's fault handler writes."""
        self._said.append(ChildDumped(self._living(child).number, text))

    def asks(self, client: int, type_: str, **fields: object) -> None:
        """An operator sends a command, always with the id 1."""
        self._said.append(ClientAsked(client, Message(1, type_, dict(fields))))

    def misspeaks(self, child: int) -> None:
        """A child sends what are no messages, too often."""
        self._said.append(ChildMisspoke(self._living(child).number))

    def exits(self, child: int, status: int = 0) -> None:
        """A child exits."""
        self._end(self._living(child), Ending(status=status))

    def dies(self, child: int, signum: int = SIGKILL) -> None:
        """A child is killed, by whomever."""
        self._end(self._living(child), Ending(signum=signum))

    def refuse_forks(self, times: int) -> None:
        """The kernel is out of processes, so many times."""
        self._forks_refused = times

    def pass_time(self) -> None:
        """Time passes until the supervisor would look by itself."""
        self.clock.advance_to(self.until_s)

    # What the supervisor asks: see `System`.

    def now_s(self) -> float:
        return self.clock.now_s

    def wait(self, until_s: float) -> list[Happening]:
        self.until_s = until_s
        try:
            next(self._story)
        except StopIteration:
            raise StoryOver(f"the story is over, and the supervisor waits, with children {self.living}") from None
        happenings = self._asked + self._said + self._exited
        self._asked, self._said, self._exited = [], [], []
        return happenings

    def fork(self, child: int, enter: Enter, main: Main) -> int:
        if self._forks_refused:
            self._forks_refused -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.children[child] = FakeChild(child, FIRST_PID + child, self.now_s())
        return self.children[child].pid

    def tell(self, child: int, type_: str, fds: Collection[int] = (), **fields: object) -> bool:
        one = self.children.get(child)
        if one is None or not one.alive or not one.hears:
            return False
        one.told.append((type_, dict(fields)))
        return True

    def kill(self, child: int, signum: Signals) -> None:
        one = self.children.get(child)
        if one is not None and one.alive:
            one.signals.append(signum)
            if signum == SIGKILL:  # Nobody has a choice about it.
                self._end(one, Ending(signum=signum))

    def memory_bytes(self, child: int) -> int | None:
        return self.memory.get(child)

    def answer(self, client: int, re: int, **fields: object) -> None:
        self.answers.append((client, re, dict(fields)))

    def close(self) -> None:
        self.closed = True

    # Inside.

    def _living(self, child: int) -> FakeChild:
        if child not in self.living:
            raise UsageError(f"the story tells of child {child}, but those that live are {self.living}")
        return self.children[child]

    def _end(self, child: FakeChild, ending: Ending) -> None:
        child.alive = False
        self._exited.append(ChildExited(child.number, ending))
