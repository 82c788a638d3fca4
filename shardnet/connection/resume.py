"""Direct resumption: how a parked task goes on inside the poll that found its bytes.

The usual road from a completion to the coroutine that awaits it is a Future, a Handle and another pass of the event
loop, several microseconds each time. Here the Task parks on a `Waiter`, which is as much of a future as Task needs,
and the completion calls the Task's own wake-up, in its context, from inside `select()`.

What makes it safe:

1. A wake-up is called inline only from the top of a turn, where no task is running (`wake_inline`). Completions made
   by running code are deferred to the next turn (`wake_deferred`), so that a chain of them needs no stack.
2. What `read()` returns is awaitable but no future: asyncio wraps it in a Task. (3.11's `wait_for` and `gather` would
   adopt a future as it is and never poll it.) Only the `Waiter` that it yields says `_asyncio_future_blocking`.
3. Bytes leave the kernel for a parked reader, or at the await, never when `read()` is merely called: a `wait_for` that
   gives up loses none.
4. The wake-up is given one finished Future instead of the Waiter: Task then takes its fast path and asks nothing.
5. Cancelling goes through the loop, never inline, and a read whose bytes were on their way leaves them behind for the
   next one.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Final, Protocol, cast

from shardnet.watcher.engine import Engine

WakeUp = Callable[[Any], object]


def _nothing() -> None:
    pass


class State(enum.Enum):
    IDLE = enum.auto()
    PARKED = enum.auto()
    WOKEN = enum.auto()  # Deferred: it runs in the next turn.
    CANCELLED = enum.auto()  # The CancelledError is on its way through the loop.


class Waiter:
    """What a parked task waits on: one for each connection, used again and again."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_error", "_loop", "_on_cancel", "_wake_up", "state")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_cancel: Callable[[], object]) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._on_cancel = on_cancel
        self._wake_up: WakeUp | None = None
        self._context: Context | None = None
        self._error: BaseException | None = None
        self.state = State.IDLE

    # The part of asyncio.Future that Task uses.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: WakeUp, *, context: Context | None = None) -> None:
        self._wake_up = callback
        self._context = context

    def remove_done_callback(self, callback: WakeUp) -> int:
        if self._wake_up != callback:
            return 0
        self._wake_up = None
        return 1

    def done(self) -> bool:
        return self.state is not State.PARKED

    def cancelled(self) -> bool:
        return self.state is State.CANCELLED

    def exception(self) -> BaseException | None:
        return None

    def result(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def cancel(self, msg: Any = None) -> bool:
        """Called by `Task.cancel`. False when nobody is parked: Task then throws by itself at its next step."""
        if self.state is not State.PARKED:
            return False
        self.state = State.CANCELLED
        self._on_cancel()
        wake_up, self._wake_up = self._wake_up, None
        if wake_up is not None:
            self._loop.call_soon(self._throw, wake_up, msg, context=self._context)
        return True

    def _throw(self, wake_up: WakeUp, msg: Any) -> None:
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        try:
            wake_up(self)
        finally:
            del wake_up  # As in `wake_inline`.

    # The connection's side.

    def retire(self) -> None:
        """Nobody parks here any more. Lets go of the connection, so that it needs no garbage collector."""
        self._on_cancel = _nothing

    def wake_inline(self, finished: asyncio.Future[None]) -> None:
        """Run the parked task now. Only from a hook of the engine, where no task is running."""
        wake_up, context = self._wake_up, self._context
        if wake_up is None or context is None:
            return  # Stepped by hand, not by a Task.
        self._wake_up = None
        self.state = State.WOKEN
        try:
            context.run(wake_up, finished)
        finally:
            wake_up = None  # If the task has raised, its traceback refers to this frame, and must not to the task.

    def wake_deferred(self, engine: Engine, finished: asyncio.Future[None]) -> None:
        """Run the parked task at the top of the next turn. From anywhere; nothing when nobody is parked."""
        if self.state is State.PARKED and self._wake_up is not None:
            self.state = State.WOKEN
            engine.defer(self.wake_inline, finished)


class Source(Protocol):
    """What is read from."""

    def take(self, size: int) -> bytes | None:
        """At most `size` bytes that are here or in the kernel; b"" at the end, None when the reader has to park."""

    def fill(self, have: int, size: int) -> bool | None:
        """Whether more than `have` bytes are buffered now; False at the end, None when the reader has to park."""

    def park(self, size: int) -> Waiter:
        """Post a read of `size` bytes and hand out the waiter."""


def _parked(waiter: Waiter) -> Generator[Any, None, None]:
    waiter.state = State.PARKED
    waiter._asyncio_future_blocking = True
    try:
        yield waiter
    finally:
        waiter.state = State.IDLE


class Read:
    """The awaitable of `read(size)`."""

    __slots__ = ("_size", "_source")

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size

    def __await__(self) -> Generator[Any, None, bytes]:
        source = self._source
        while (data := source.take(self._size)) is None:
            yield from _parked(source.park(self._size))
        return data


class Fill:
    """The awaitable that buffers more than `have` bytes: False when the stream ends before."""

    __slots__ = ("_have", "_size", "_source")

    def __init__(self, source: Source, have: int, size: int) -> None:
        self._source = source
        self._have = have
        self._size = size

    def __await__(self) -> Generator[Any, None, bool]:
        source = self._source
        while (more := source.fill(self._have, self._size)) is None:
            yield from _parked(source.park(self._size))
        return more


_NOTHING_LEFT = cast("Generator[Any, None, None]", iter(()))


class Done:
    """The awaitable that is over. Its iterator is exhausted from birth, so that one serves for all."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return _NOTHING_LEFT


DONE: Final = Done()
