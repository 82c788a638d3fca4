"""A fleet against a clock that only the tests move, and a world that does only what the tests say.

Lives here: `Story`, for tests that tell one, and `World`, for those that leave it to chance and check the laws.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from shardnet.supervisor.actions import Action, Drain, Ended, Finish, Fork, GiveBack, Kill, Lend, Reloaded, Renew, Serve
from shardnet.supervisor.events import (
    Borrowed,
    Ending,
    Event,
    Exited,
    Failed,
    ForkFailed,
    Leaving,
    LoanRefused,
    Misspoke,
    Ready,
    ReloadAsked,
    RenewalFailed,
    Renewed,
    ScaleAsked,
)
from shardnet.supervisor.handover import FleetState, SupervisorState, decode, encode
from shardnet.supervisor.lending import REFUSED_S
from shardnet.supervisor.lifecycle import Fleet
from shardnet.supervisor.orders import Patience
from shardnet.supervisor.slot import DRAINERS_MAX, State

BOOT_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0
DRAIN_SPREAD_S = 1.0
HANG_TIMEOUT_S = 20.0
PATIENCE = Patience(BOOT_TIMEOUT_S, DRAIN_TIMEOUT_S, DRAIN_SPREAD_S, hang_timeout_s=HANG_TIMEOUT_S)
KILLED = Ending(signum=signal.SIGKILL)
A = TypeVar("A", bound=Action)


class Story:
    """Tells a fleet what happens, and keeps what it wants done."""

    def __init__(
        self,
        shards: int = 1,
        *,
        exporter: bool = False,
        random: Callable[[], float] = lambda: 0.5,
        renews: bool = False,
        lends: bool = False,
        shards_max: int | None = None,
    ) -> None:
        self.make_fleet = partial(
            Fleet,
            shards,
            PATIENCE,
            shards_max=shards_max,
            exporter=exporter,
            random=random,
            renews=renews,
            lends=lends,
        )
        self.fleet = self.make_fleet()
        self.now_s = 1000.0
        self.done: list[Action] = []
        self.turn()

    def turn(self, *events: Event, after_s: float = 0.0) -> list[Action]:
        """So much later this happens; returns what is then to be done."""
        self.now_s += after_s
        for event in events:
            self.fleet.apply(event, self.now_s)
        actions = self.fleet.plan(self.now_s)
        self.done += actions
        return actions

    def sleep(self) -> list[Action]:
        """On to the deadline that the fleet asked to be woken at."""
        deadline_s = self.fleet.next_deadline_s()
        assert deadline_s is not None
        return self.turn(after_s=deadline_s - self.now_s)

    def boot(self) -> None:
        """Every child that was forked at the start comes up."""
        self.turn(*(Ready(fork.child) for fork in of(Fork, self.done)))

    def renew(self, answer: Renewed | RenewalFailed) -> list[Action]:
        """The fleet goes on in another program, with what that is told."""
        self.fleet = self.make_fleet(state=handed_over(self.fleet.state()))
        return self.turn(answer)

    def states(self) -> list[str]:
        return [slot.state for slot in self.fleet.slots]


def of(kind: type[A], actions: Sequence[Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def failed_app(child: int) -> Failed:
    return Failed(child, "app", "app:handler does not import: no module named 'app'", "Traceback…")


def handed_over(state: FleetState) -> FleetState:
    """The state after its way through JSON."""
    whole = SupervisorState(state, (), (), {}, {}, 0.0)
    return decode(json.loads(json.dumps(encode(whole)))).fleet


class World:
    """Does what a fleet wants done, checks the laws after each turn, and lets chance decide the rest."""

    def __init__(
        self, shards: int, *, shards_max: int, exporter: bool, random: Callable[[], float], renews: bool = False
    ) -> None:
        self.make_fleet = partial(
            Fleet, shards, PATIENCE, shards_max=shards_max, exporter=exporter, random=random, renews=renews
        )
        self.fleet = self.make_fleet()
        self.renewals = 0
        self.refuse_renewals = False
        self.now_s = 0.0
        self.alive: dict[int, int | None] = {}  # The shard, by child.
        self.generations: dict[int, int] = {}  # Of every worker there ever was.
        self.accepting: set[int] = set()
        self.came_up: set[int] = set()
        self.dying: set[int] = set()
        self.told_to_go: set[int] = set()
        self.lent: dict[int, tuple[int, int]] = {}  # Borrower and shard of each loan that was not given back.
        self.refused_s: dict[int, float] = {}  # When a child has last refused a loan.
        self.refuse_forks = False
        self.last_child = 0
        self.reloads_completed = 0
        self.finish: Finish | None = None

    def turn(self, *events: Event) -> None:
        stopping = self.fleet.stopping
        for event in events:
            if isinstance(event, Exited):
                self.alive.pop(event.child, None)
                self.dying.discard(event.child)
                self.stop_accepting(event.child)
            elif isinstance(event, LoanRefused):
                if self.lent.pop(event.loan, None):
                    self.refused_s[event.child] = self.now_s
            elif isinstance(event, Ready) and self.alive.get(event.child) is not None:
                held = self.fleet_holds(event.child) or event.child in self.told_to_go
                if event.child not in self.came_up and not held:
                    self.accepting.add(event.child)
                self.came_up.add(event.child)
            self.fleet.apply(event, self.now_s)
        actions = self.fleet.plan(self.now_s)
        for action in actions:
            self.perform(action, stopping)
        if any(isinstance(action, Renew) for action in actions):
            assert isinstance(actions[-1], Renew)
            self.renew()
        self.reloads_completed += any(isinstance(action, Reloaded) for action in actions)
        self.check()

    def renew(self) -> None:
        """The fleet goes on in another program, with what that is told, and makes its next plan at once."""
        self.renewals += 1
        self.fleet = self.make_fleet(state=handed_over(self.fleet.state()))
        self.fleet.apply(RenewalFailed("no", "") if self.refuse_renewals else Renewed(), self.now_s)
        self.turn()

    def fleet_holds(self, child: int) -> bool:
        return any(worker.held for slot in self.fleet.slots for worker in slot.workers if worker.child == child)

    def perform(self, action: Action, stopping: bool) -> None:
        assert self.finish is None
        match action:
            case Fork(child, shard, generation, held):
                assert not stopping
                assert not self.fleet.stopping
                assert child > self.last_child
                assert not (held and shard is None)
                if shard is not None:
                    known = self.generations.values()
                    assert generation in known or generation > max(known, default=0)
                    assert held or generation == self.fleet.generation
                    self.generations[child] = generation
                self.last_child = child
                if self.refuse_forks:
                    self.fleet.apply(ForkFailed(child, "refused"), self.now_s)
                else:
                    self.alive[child] = shard
            case Kill(child, signal.SIGKILL, _):
                self.dying |= {child} & self.alive.keys()
            case Serve(child):
                assert child in self.came_up & self.alive.keys()
                self.accepting.add(child)
            case Kill(child):
                assert child in self.alive
            case Drain(child):
                assert child in self.alive
                self.stop_accepting(child)
                self.told_to_go.add(child)
            case Lend(child, shard, loan):
                assert child in self.accepting
                assert self.alive[child] != shard
                assert loan not in self.lent
                self.lent[loan] = (child, shard)
            case GiveBack(child, loan):
                assert self.lent.pop(loan)[0] == child
            case Ended(child, _, _, _, reason, _):
                assert reason is None or not self.fleet_holds(child)
            case Finish():
                self.finish = action
            case _:
                pass

    def stop_accepting(self, child: int) -> None:
        self.accepting.discard(child)
        self.lent = {loan: terms for loan, terms in self.lent.items() if terms[0] != child}

    def check_loans(self) -> None:
        """Every listener on which something may be queued is read, by its own worker or by a sibling that can."""
        able = [child for child in self.accepting if self.refused_s.get(child, -REFUSED_S) <= self.now_s - REFUSED_S]
        for slot in self.fleet.slots:
            borrowers = {child for child, shard in self.lent.values() if shard == slot.shard}
            own = any(self.alive.get(child) == slot.shard for child in self.accepting)
            assert borrowers == {loan.borrower for loan in slot.loans}
            assert not (own and borrowers)
            assert own or borrowers or not able or not slot.is_lendable

    def check(self) -> None:
        if not self.fleet.stopping:
            self.check_loans()
        for slot in self.fleet.slots:
            workers = slot.workers
            states = [worker.state for worker in workers]
            booting = [w for w in workers if w.state is State.BOOTING and not w.held and not w.dismissed]
            assert states.count(State.SERVING) <= 1
            assert len(booting) <= 1
            assert sum(worker.held and not worker.dismissed for worker in workers) <= 1
            assert len(states) <= 3  # The board has so many rows for each shard.
            assert all(slot.shard == self.alive[worker.child] for worker in workers)
            assert sum(self.alive.get(child) == slot.shard for child in self.accepting) <= 1
            waits = slot.fork_at_s > self.now_s or self.refuse_forks or slot.drainers >= DRAINERS_MAX or not slot.wanted
            assert self.fleet.stopping or State.SERVING in states or booting or waits
        assert list(self.alive.values()).count(None) <= (2 if self.renewals else 1)  # That of the last program ends.
        living = {self.generations[child] for child, shard in self.alive.items() if shard is not None}
        assert len(living) <= 2
        deadline_s = self.fleet.next_deadline_s()
        # Forks that have just been refused are due again at once, for the first failure; nothing else is late.
        assert self.finish or self.refuse_forks or deadline_s is None or deadline_s > self.now_s


def events_of(world: World, step: str, pick: int) -> list[Event]:
    if step == "die":  # All that were killed.
        return [Exited(child, KILLED) for child in sorted(world.dying)]
    if step == "up":  # Everybody who can.
        return [Ready(child) for child in sorted(world.alive)]
    if step == "refuse renewal":
        world.refuse_renewals = not world.refuse_renewals
    if step == "refuse":
        world.refuse_forks = not world.refuse_forks
    child = pick if pick > 15 or not world.alive else sorted(world.alive)[pick % len(world.alive)]
    known: dict[str, Event] = {
        "ready": Ready(child),
        "app": Failed(child, "app", "broken", ""),
        "boot": Failed(child, "boot", "broken", ""),
        "leaving": Leaving(child),
        "reload": ReloadAsked(),
        "upgrade": ReloadAsked(upgrade=True),
        "scale": ScaleAsked(pick % (len(world.fleet.slots) + 1)),
        "misspoke": Misspoke(child),
        "borrowed": Borrowed(child, pick),
        "loan refused": LoanRefused(*_loan(world, pick), "out of descriptors"),
        "exit": Exited(child, Ending(status=pick % 2)),
        "kill": Exited(child, KILLED),
    }
    return [known[step]] if step in known else []


def _loan(world: World, pick: int) -> tuple[int, int]:
    """A loan, by its borrower and number."""
    loans = sorted(world.lent)
    number = loans[pick % len(loans)] if loans else pick
    return (world.lent[number][0] if loans else pick), number
