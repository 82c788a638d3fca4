"""The selector of a worker's loop: what asyncio expects of one, kept by an engine."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE

import pytest

from shardnet.loop import EngineSelector
from shardnet.watcher.engine import Engine

BOTH = EVENT_READ | EVENT_WRITE


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def selector(engine: Engine) -> EngineSelector:
    return EngineSelector(engine)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.setblocking(False)
    yield left, right
    left.close()
    right.close()


Pair = tuple[socket.socket, socket.socket]


# The contract of a selector, as asyncio uses it. The standard library's own selector keeps us honest.


@pytest.fixture(params=["engine", "standard library"])
def either(request: pytest.FixtureRequest, selector: EngineSelector) -> Iterator[selectors.BaseSelector]:
    if request.param == "engine":
        yield selector
    else:
        with selectors.EpollSelector() as standard:
            yield standard


def test_registered_file_is_found_by_object_and_by_number(either: selectors.BaseSelector, pair: Pair) -> None:
    left, right = pair
    key = either.register(left, EVENT_READ, "data")
    assert key == (left, left.fileno(), EVENT_READ, "data")
    either.register(right.fileno(), EVENT_WRITE)
    assert either.get_key(left) is key
    assert either.get_key(left.fileno()) is key
    mapping = either.get_map()
    assert len(mapping) == 2
    assert set(mapping) == {left.fileno(), right.fileno()}
    assert mapping[left] is key
    assert mapping.get(right) == (right.fileno(), right.fileno(), EVENT_WRITE, None)
    assert either.unregister(left) is key
    assert mapping.get(left) is None
    for unknown in (left, left.fileno(), 10_000):
        with pytest.raises(KeyError):
            either.get_key(unknown)


def test_wrong_uses_raise_what_a_selector_raises(either: selectors.BaseSelector, pair: Pair) -> None:
    left, right = pair
    either.register(left, EVENT_READ)
    for again in (left, left.fileno()):
        with pytest.raises(KeyError):
            either.register(again, EVENT_WRITE)
    with pytest.raises(KeyError):
        either.modify(right, EVENT_READ)
    with pytest.raises(KeyError):
        either.unregister(right)
    for events in (0, 64):
        with pytest.raises(ValueError):
            either.register(right, events)
    for nothing in (-1, object(), "text"):
        with pytest.raises(ValueError):
            either.register(nothing, EVENT_READ)  # type: ignore[arg-type]
    assert list(either.get_map()) == [left.fileno()]


def test_file_that_cannot_be_polled_is_not_registered(either: selectors.BaseSelector) -> None:
    with open(__file__, "rb") as file:  # noqa: PTH123 - a path is not what is opened, a descriptor is
        with pytest.raises(PermissionError):
            either.register(file, EVENT_READ)
        with pytest.raises(KeyError):
            either.get_key(file)


def test_file_that_was_closed_can_still_be_unregistered(either: selectors.BaseSelector, pair: Pair) -> None:
    left, right = pair
    key = either.register(left, EVENT_READ)
    left.close()
    assert either.get_key(left) is key
    assert either.unregister(left) is key
    right.close()
    for operation in (either.get_key, either.unregister):
        with pytest.raises((KeyError, ValueError)):
            operation(right)


def test_select_says_what_is_ready(either: selectors.BaseSelector, pair: Pair) -> None:
    left, right = pair
    reading = either.register(left, EVENT_READ)
    assert either.select(0) == []
    right.send(b"x")
    assert either.select(None) == [(reading, EVENT_READ)]
    assert either.select(-1) == [(reading, EVENT_READ)]  # Level-triggered: until it is read.
    both = either.modify(left, BOTH, "both")
    assert either.get_key(left) is both
    assert either.select(None) == [(both, BOTH)]
    left.recv(1)
    assert either.select(None) == [(both, EVENT_WRITE)]
    writing = either.modify(left, EVENT_WRITE)
    right.send(b"x")
    assert either.select(None) == [(writing, EVENT_WRITE)]
    either.unregister(left)
    assert either.select(0) == []


def test_hang_up_wakes_readers_and_writers(either: selectors.BaseSelector, pair: Pair) -> None:
    left, right = pair
    key = either.register(left, EVENT_READ)
    right.close()
    assert either.select(None) == [(key, EVENT_READ)]
    key = either.modify(left, EVENT_WRITE)
    assert either.select(None) == [(key, EVENT_WRITE)]


def test_close_lets_go_of_every_file(selector: EngineSelector, engine: Engine, pair: Pair) -> None:
    left, right = pair
    selector.register(left, EVENT_READ)
    selector.register(right, EVENT_READ)
    selector.close()
    right.send(b"x")
    engine.turn(0)
    assert engine.guests_ready == []
    selector.register(left, EVENT_READ)  # The engine is still its owner's.
    assert len(selector.select(None)) == 1


# Descriptors that change hands while others are served.


def test_descriptor_unregistered_during_the_turn_is_not_reported(
    selector: EngineSelector, engine: Engine, pair: Pair
) -> None:
    left, right = pair
    selector.register(left, EVENT_READ)
    right.send(b"x")
    engine.after(0, lambda: selector.unregister(left))
    assert selector.select(None) == []


def test_number_registered_anew_during_the_turn_inherits_no_event(
    selector: EngineSelector, engine: Engine, pair: Pair
) -> None:
    """The event was the old file's; the new one behind the same number has nothing to say."""
    left, right = pair
    fresh, other = socket.socketpair()

    def replace() -> None:
        number = left.fileno()
        selector.unregister(left)
        left.close()
        os.dup2(fresh.fileno(), number)
        selector.register(number, EVENT_READ, "fresh")
        numbers.append(number)

    numbers: list[int] = []
    selector.register(left, EVENT_READ)
    right.send(b"x")
    engine.after(0, replace)
    assert selector.select(None) == []
    assert selector.select(0) == []
    other.send(b"x")
    [(key, events)] = selector.select(None)
    assert (key.data, events) == ("fresh", EVENT_READ)
    os.close(numbers[0])
    fresh.close()
    other.close()


def test_descriptor_modified_during_the_turn_is_reported_as_it_is_now(
    selector: EngineSelector, engine: Engine, pair: Pair
) -> None:
    left, right = pair
    selector.register(left, EVENT_READ, "old")
    right.send(b"x")
    engine.after(0, lambda: selector.modify(left, EVENT_READ, "new"))
    assert selector.select(None) == []
    [(key, _)] = selector.select(None)
    assert key.data == "new"


def test_exception_out_of_a_turn_loses_no_event_of_asyncio(
    selector: EngineSelector, engine: Engine, pair: Pair
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    left, right = pair
    key = selector.register(left, EVENT_READ)
    right.send(b"x")
    engine.after(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        selector.select(None)
    ready = selector.select(0)
    assert (key, EVENT_READ) in ready
    assert len(ready) == 1


def test_idle_select_returns_for_its_heartbeat(selector: EngineSelector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardnet.loop.HEARTBEAT_S", 0.01)
    assert selector.select(None) == []
    assert selector.select(1e9) == []
