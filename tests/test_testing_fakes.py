"""A supervisor that runs on no kernel at all, in no time at all."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from shardnet.board import Board
from shardnet.catalogue.families import SHARD_RESTARTS
from shardnet.errors import ExitCode, UsageError
from shardnet.listen import ListenerBank, parse_address
from shardnet.seats import WorkerSeat
from shardnet.supervisor.actions import Finish
from shardnet.supervisor.supervisor import Supervisor, SupervisorOptions
from shardnet.supervisor.system import System
from shardnet.testing import FakeClock, FakeSystem, StoryOver

Story = Callable[[FakeSystem], Iterator[None]]
Run = Callable[..., Finish]

BOOT_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0


@pytest.fixture
def bank() -> Iterator[ListenerBank]:
    bank = ListenerBank.open([parse_address("127.0.0.1:0")], 2)
    yield bank
    bank.close()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    board.close()


@pytest.fixture
def run(bank: ListenerBank, board: Board) -> Run:
    def run(story: Story, shards: int = 1) -> Finish:
        def never(_seat: WorkerSeat) -> int:
            raise AssertionError("a worker of a FakeSystem has run")

        system: System = FakeSystem(story)
        options = SupervisorOptions(shards, DRAIN_TIMEOUT_S, BOOT_TIMEOUT_S)
        return Supervisor(system, bank, board, options, never, None, lambda: None).run()

    return run


def stop(system: FakeSystem) -> Iterator[None]:
    """The end of a story: everybody goes at once."""
    system.signal(signal.SIGQUIT)
    yield
    yield


def test_supervisor_respawns_a_worker_that_exits_on_a_fake_system(run: Run, board: Board) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        yield
        assert system.living == [1, 2]
        for child in system.living:
            system.says(child, "ready")
        yield
        system.exits(1, status=3)
        yield
        assert system.living == [2, 3]  # The successor is forked at once, and no time has passed.
        assert system.children[3].forked_s == system.children[1].forked_s
        system.says(3, "ready")
        yield from stop(system)

    assert run(story, shards=2).code is ExitCode.OK
    assert board.snapshot().value(SHARD_RESTARTS, shard="0", reason="crash") == 1


def test_supervisor_waits_longer_after_each_failure_in_a_row_on_a_fake_system(run: Run) -> None:
    """Minutes of a crash loop, without waiting for any of them."""
    delays_s: list[float] = []

    def story(system: FakeSystem) -> Iterator[None]:
        yield
        system.says(1, "ready")
        yield
        for child in range(1, 9):
            system.exits(child, status=1)
            ended_s = system.now_s()
            yield
            while child + 1 not in system.children:
                system.pass_time()
                yield
            delays_s.append(system.now_s() - ended_s)
        yield from stop(system)

    assert run(story).code is ExitCode.OK
    assert delays_s[0] == 0.0
    for delay_s, steady_s in zip(delays_s[1:], [0.1 * 2**doubling for doubling in range(7)], strict=True):
        assert 0.8 * steady_s <= delay_s <= 1.2 * steady_s


def test_supervisor_kills_a_worker_that_boots_for_ever_on_a_fake_system(run: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        yield
        system.clock.advance(BOOT_TIMEOUT_S - 1.0)
        yield
        assert system.children[1].signals == []
        system.clock.advance(1.0)
        yield
        assert system.children[1].signals == [signal.SIGKILL]
        yield
        assert system.living == [2]
        yield from stop(system)

    run(story)


def test_supervisor_kills_a_worker_that_does_not_drain_on_a_fake_system(run: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        yield
        system.says(1, "ready")
        yield
        system.children[1].hears = False
        system.signal(signal.SIGTERM)
        yield
        assert not system.children[1].was_told("drain")
        assert system.living == [1]
        system.clock.advance(DRAIN_TIMEOUT_S * 2)
        yield
        assert system.children[1].signals == [signal.SIGKILL]
        yield

    assert run(story).code is ExitCode.OK


def test_supervisor_tries_again_when_a_fork_is_refused_on_a_fake_system(run: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        system.refuse_forks(1)
        yield
        assert system.living == []
        yield
        assert system.living == [2]
        yield from stop(system)

    assert run(story).code is ExitCode.OK


def test_supervisor_reloads_on_a_fake_system(run: Run) -> None:
    """The old workers serve until each of the new is ready, and drain then."""

    def story(system: FakeSystem) -> Iterator[None]:
        yield
        for child in (1, 2):
            system.says(child, "ready")
        yield
        system.signal(signal.SIGHUP)
        yield
        assert system.living == [1, 2, 3, 4]
        system.says(3, "ready")
        yield
        assert not any(child.told for child in system.children.values())
        system.says(4, "ready")
        yield
        assert [child.number for child in system.children.values() if child.was_told("serve")] == [3, 4]
        assert [child.number for child in system.children.values() if child.was_told("drain")] == [1, 2]
        for child in (1, 2):
            system.exits(child)
        yield
        assert system.living == [3, 4]
        yield from stop(system)

    assert run(story, shards=2).code is ExitCode.OK


def test_fake_system_ends_a_supervisor_that_waits_longer_than_its_story(run: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        yield

    with pytest.raises(StoryOver, match=r"children \[1\]"):
        run(story)


def test_fake_system_refuses_to_tell_of_a_child_that_is_gone(run: Run) -> None:
    def story(system: FakeSystem) -> Iterator[None]:
        yield
        system.dies(1)
        system.says(1, "ready")
        yield

    with pytest.raises(UsageError, match="child 1"):
        run(story)


def test_fake_clock_stands_until_it_is_advanced() -> None:
    clock = FakeClock(5.0)
    assert clock() == clock.now_s == 5.0
    clock.advance(2.5)
    clock.advance_to(6.0)
    assert clock() == 7.5
    clock.advance_to(8.0)
    assert clock() == 8.0
    with pytest.raises(ValueError, match="steady"):
        clock.advance(-1.0)
