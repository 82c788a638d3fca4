"""Which listener the kernel gives a connection to, by program; and what programs a fleet gets."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.listen import ListenerBank, parse_address, steering
from shardnet.supervisor.slot import Slot, State, Worker
from shardnet.supervisor.steering import REFRESH_S, Steering, shares

SHARDS = 4
LOOPBACK = "127.0.0.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def bank() -> Iterator[ListenerBank]:
    one = ListenerBank.open([parse_address("0.0.0.0:0")], SHARDS)
    yield one
    one.close()


def own(bank: ListenerBank, shard: int = 0) -> socket.socket:
    return bank.own_listeners(shard)[0]


def hits(bank: ListenerBank, sources: Sequence[str] = (LOOPBACK,), to: str = LOOPBACK) -> list[int]:
    """How many of the connections from these addresses each listener gets."""
    port = own(bank).getsockname()[1]
    for source in sources:
        with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)  # No port is kept in TIME_WAIT.
            client.bind((source, 0))
            client.connect((to, port))
    return [accept_all(own(bank, shard)) for shard in range(bank.shards)]


def accept_all(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_weights_are_shares_and_none_means_none(bank: ListenerBank) -> None:
    steering.attach(own(bank, 2), steering.by_weight([1.0, 0.0, 2.0, 1.0]))  # Whichever socket it is attached to.
    found = hits(bank, [LOOPBACK] * 800)
    assert found[1] == 0
    # Binomial, 6 standard deviations to either side: once in a thousand million runs by chance.
    assert abs(found[0] - 200) < 74
    assert abs(found[2] - 400) < 85
    assert sum(found) == 800


@pytest.mark.parametrize("only", range(SHARDS))
def test_all_go_to_the_only_one_with_a_weight(bank: ListenerBank, only: int) -> None:
    steering.attach(own(bank), steering.by_weight([float(shard == only) for shard in range(SHARDS)]))
    assert hits(bank, [LOOPBACK] * 50)[only] == 50


def test_random_spreads_over_as_many_as_it_is_told(bank: ListenerBank) -> None:
    steering.attach(own(bank), steering.uniformly(2))
    found = hits(bank, [LOOPBACK] * 400)
    assert found[2:] == [0, 0]
    assert abs(found[0] - 200) < 60


def test_source_is_the_same_listener_each_time_and_many_are_spread(bank: ListenerBank) -> None:
    steering.attach(own(bank), steering.by_source(SHARDS))
    for last in (1, 2, 77):
        assert sorted(hits(bank, [f"127.0.0.{last}"] * 20)) == [0, 0, 0, 20]
    found = hits(bank, [f"127.0.{number // 200}.{number % 200 + 1}" for number in range(600)])
    assert min(found) > 100


@pytest.mark.parametrize(("to", "sources"), [("::1", ["::1"] * 20), (LOOPBACK, ["127.0.0.9"] * 20)])
def test_source_of_either_protocol_on_one_socket(to: str, sources: list[str]) -> None:
    bank = ListenerBank.open([parse_address("*:0")], SHARDS)
    steering.attach(own(bank), steering.by_source(SHARDS))
    assert sorted(hits(bank, sources, to)) == [0, 0, 0, 20]
    bank.close()


def test_cpu_names_a_listener_that_there_is(bank: ListenerBank) -> None:
    steering.attach(own(bank), steering.by_cpu(2))
    assert hits(bank, [LOOPBACK] * 40)[2:] == [0, 0]


def test_index_that_there_is_none_of_is_the_hash(bank: ListenerBank) -> None:
    steering.attach(own(bank), ((steering.RET_K, 0, 0, 77),))
    assert min(hits(bank, [LOOPBACK] * 400)) > 0


def test_program_of_the_largest_server_is_taken(bank: ListenerBank) -> None:
    steering.attach(own(bank), steering.by_weight([1.0] * 1024))


def test_detached_program_decides_no_more(bank: ListenerBank) -> None:
    steering.attach(own(bank), steering.uniformly(1))
    steering.detach(own(bank))
    assert min(hits(bank, [LOOPBACK] * 400)) > 0


# The fleet's.


class Fleet:
    """Slots, and connections by child."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = dict(enumerate(counts))
        self.slots = [Slot(shard, [Worker(shard, State.SERVING, 0.0, 1)]) for shard in self.counts]


def test_least_fills_the_emptiest_shard(bank: ListenerBank) -> None:
    fleet = Fleet([100, 0, 100, 100])
    Steering(bank, "least", fleet.counts.__getitem__).refresh(fleet.slots, 0.0)
    assert hits(bank, [LOOPBACK] * 60) == [0, 60, 0, 0]


def test_least_gives_nothing_to_a_shard_that_is_lent_and_follows_at_once(bank: ListenerBank) -> None:
    fleet = Fleet([0, 0, 0, 0])
    one = Steering(bank, "least", fleet.counts.__getitem__)
    one.refresh(fleet.slots, 0.0)
    fleet.slots[2].workers[0].stuck = True
    fleet.slots[3].workers.clear()
    one.refresh(fleet.slots, 0.0)
    found = hits(bank, [LOOPBACK] * 100)
    assert found[2:] == [0, 0]
    assert min(found[:2]) > 0


def test_least_asks_the_board_ten_times_a_second_at_most(bank: ListenerBank) -> None:
    fleet = Fleet([0, 0, 0, 0])
    asked: list[int] = []

    def connections(child: int) -> int:
        asked.append(child)
        return fleet.counts[child]

    one = Steering(bank, "least", connections)
    for now_s in (0.0, 0.0, REFRESH_S / 2, REFRESH_S * 0.99):
        one.refresh(fleet.slots, now_s)
    assert len(asked) == SHARDS
    one.refresh(fleet.slots, REFRESH_S)
    assert len(asked) == 2 * SHARDS


@pytest.mark.parametrize("kind", ["random", "source", "cpu"])
def test_programs_follow_the_number_of_shards(bank: ListenerBank, kind: str) -> None:
    fleet = Fleet([0, 0, 0, 0])
    one = Steering(bank, kind, fleet.counts.__getitem__)
    fleet.slots[3].in_size = fleet.slots[2].in_size = fleet.slots[1].in_size = False
    one.refresh(fleet.slots, 0.0)
    assert hits(bank, [f"127.0.0.{number}" for number in range(1, 60)]) == [59, 0, 0, 0]


@pytest.mark.parametrize("kind", ["random", "least"])
def test_kernel_that_refuses_is_said_once_and_hashes(
    bank: ListenerBank, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_sock: socket.socket, _program: steering.Program) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(steering, "attach", refuse)
    fleet = Fleet([0, 0, 0, 0])
    one = Steering(bank, kind, fleet.counts.__getitem__)
    for now_s in (0.0, 1.0, 2.0):
        one.refresh(fleet.slots, now_s)
    assert [record.message for record in caplog.records] == [f"--steering {kind} is refused by the kernel: hash it is"]
    assert min(hits(bank, [LOOPBACK] * 400)) > 0


def test_one_shard_alone_is_not_steered() -> None:
    bank = ListenerBank.open([parse_address("127.0.0.1:0")], 1)
    fleet = Fleet([0])
    Steering(bank, "least", fleet.counts.__getitem__).refresh(fleet.slots, 0.0)
    with pytest.raises(OSError, match="No such file"):  # No program is there.
        steering.detach(own(bank))
    bank.close()


@given(counts=st.lists(st.none() | st.integers(0, 10_000), min_size=1, max_size=8), arrivals=st.floats(0, 10_000))
def test_shares_level_the_shards(counts: list[int | None], arrivals: float) -> None:
    dealt = shares(counts, arrivals)
    known = [count for count in counts if count is not None]
    if not known:
        assert dealt == []
        return
    assert sum(dealt) == pytest.approx(max(arrivals, 4.0 * len(known)))
    assert all(share == 0 for count, share in zip(counts, dealt, strict=True) if count is None)
    levels = [count + share for count, share in zip(counts, dealt, strict=True) if count is not None and share > 0]
    assert max(levels) == pytest.approx(min(levels))
    # Who gets nothing has more than all that are filled up.
    rest = [count for count, share in zip(counts, dealt, strict=True) if count is not None and share == 0]
    assert all(count >= min(levels) - 1e-6 for count in rest)
