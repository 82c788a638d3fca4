"""Direct resumption: how a parked task goes on inside the poll that found its bytes.

The usual road from a completion to the coroutine that awaits it is a Future, a Handle and another pass of the event
loop, several microseconds each time. Here the Task parks on a `Waiter`, which is as much of a future as Task needs,
and the completion calls the Task's own wake-up, in its context, from inside `select()`. (Compiled, it mostly spares
even that: see `driver`.)

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
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from shardnet.connection._steps import Awaitable, Stepper, call_in
from shardnet.connection.states import CANCELLED, IDLE, PARKED, WOKEN
from shardnet.watcher.engine import Engine
from shardnet.watcher.hooks import HookEndpoint

WakeUp = Callable[[Any], object]


class Waiter:
    """What a parked task waits on: one for each connection, used again and again."""

    __slots__ = (
        "_asyncio_future_blocking",
        "_context",
        "_driver",
        "_endpoint",
        "_error",
        "_loop",
        "_wake_up",
        "size",
        "state",
        "task",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: HookEndpoint) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._endpoint: HookEndpoint | None = endpoint
        self._wake_up: WakeUp | None = None
        self._context: Context | None = None
        self._driver: Stepper | None = None  # Of the coroutine that is parked, if it has one.
        self._error: BaseException | None = None
        self.state = IDLE
        self.size = 0  # What the parked reader wants.
        self.task: asyncio.Task[Any] | None = None  # The handler's.

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
        return self.state != PARKED

    def cancelled(self) -> bool:
        return self.state == CANCELLED

    def exception(self) -> BaseException | None:
        return None

    def result(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def cancel(self, msg: Any = None) -> bool:
        """Called by `Task.cancel`. False when nobody is parked: Task then throws by itself at its next step."""
        if self.state != PARKED:
            if self._driver is not None:
                self._driver.cancel_asked = True
            return False
        self.state = CANCELLED
        self._withdraw()
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

    # The reader's side.

    def park(self, size: int) -> None:
        """Somebody is about to yield this, and wants `size` bytes."""
        self.state = PARKED
        self.size = size
        self._asyncio_future_blocking = True

    def leave(self) -> None:
        """Whoever was parked goes on, or never will."""
        if self.state == PARKED:
            self._withdraw()
        self.state = IDLE

    def _withdraw(self) -> None:
        if self._endpoint is not None:
            self._endpoint.withdraw_read()

    # The connection's side.

    def retire(self) -> None:
        """Nobody parks here any more. Lets go of the connection, so that it needs no garbage collector."""
        self._endpoint = None

    def wake_inline(self, finished: asyncio.Future[None]) -> None:
        """Run the parked task now. Only from a hook of the engine, where no task is running."""
        context = self._context
        if self._wake_up is None or context is None:
            return  # Stepped by hand, not by a Task.
        self.state = WOKEN
        # Not ours while the task runs: an eager task that it starts may park here.
        wake_up, self._wake_up = self._wake_up, None
        driver = self._driver
        if driver is not None and driver.resume(self, context):
            self._wake_up, self._context = wake_up, context  # Parked again.
            return
        try:
            call_in(context, wake_up, finished)
        finally:
            del wake_up  # If the task has raised, its traceback refers to this frame, and must not to the task.

    def wake_deferred(self, engine: Engine, finished: asyncio.Future[None]) -> None:
        """Run the parked task at the top of the next turn. From anywhere; nothing when nobody is parked."""
        if self.state == PARKED and self._wake_up is not None:
            self.state = WOKEN
            engine.defer(self.wake_inline, finished)


class Done(Awaitable):
    """The awaitable that is over. It knows nothing of who awaits it, so that one serves for all."""

    __slots__ = ()

    def advance(self) -> None:
        self.over = True


DONE: Final = Done()
