"""How awaits step, and calls in a context: what a compiled build replaces above the watcher.

`_steps.pyx` is the same in C, name for name. An await of a compiled `Awaitable` takes its next step through a slot of
the type instead of a generator, and gives its result without an exception.
"""

from __future__ import annotations

import asyncio
from asyncio import tasks
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Final

# Whether stepping a handler past its Task saves anything: see `driver`. Interpreted, Task's own step is the faster one.
DRIVES: Final = False


class Awaitable:
    """What is awaited in steps; to be subclassed.

    It is a coroutine as far as asyncio asks (`asyncio.iscoroutine`), so that everything which takes an awaitable takes
    it, `create_task` included.
    """

    __slots__ = ("over",)

    over: bool  # Set by each `advance`.

    def advance(self) -> Any:
        """The next step: what to yield, or with `over` set, the result."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Whoever awaited does so no longer. Also called at the end."""

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            while True:
                value = self.advance()
                if self.over:
                    return value
                yield value
        finally:
            self.abandon()

    def send(self, _value: object) -> Any:
        value = self.advance()
        if self.over:
            raise StopIteration(value)
        return value

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        self.abandon()
        raise thrown(kind, value, traceback)

    def close(self) -> None:
        self.abandon()


class Stepper(Awaitable):
    """What can step the coroutine of a Task in its place. See `driver`, which is the one there is."""

    __slots__ = ("cancel_asked",)

    cancel_asked: bool  # The Task was cancelled while its coroutine ran.

    def resume(self, waiter: Any, context: Context) -> bool:
        """Step, where no task is running: True when the coroutine has parked on `waiter` again."""
        raise NotImplementedError

    def run(self) -> Any:
        """The step itself, in the Task's context."""
        raise NotImplementedError


def step(stepper: Stepper, coro: Coroutine[Any, Any, Any]) -> Any:
    """A step of `coro`: what it yields, or with `stepper.over` set, its result."""
    try:
        value = coro.send(None)
    except StopIteration as stop:
        stepper.over = True
        return stop.value
    stepper.over = False
    return value


def thrown(kind: Any, value: Any, traceback: Any) -> BaseException:
    """The exception that the arguments of a coroutine's `throw` mean."""
    error: BaseException = kind if isinstance(kind, BaseException) else value
    if not isinstance(error, BaseException):
        error = kind() if value is None else kind(value)
    return error if traceback is None else error.with_traceback(traceback)


def run_in(context: Context, stepper: Stepper) -> Any:
    """`stepper.run()` in `context`."""
    return context.run(stepper.run)


def enter_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Make `task` the current one of `loop`, which has none. Task itself calls this around a step."""
    tasks._enter_task(loop, task)  # Documented for who implements Tasks, from 3.7 on.


def leave_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Undo `enter_task`."""
    tasks._leave_task(loop, task)


def call_in(context: Context, function: Callable[[Any], object], argument: Any) -> Any:
    """`function(argument)` in `context`."""
    return context.run(function, argument)


def try_in(context: Context, function: Callable[[Any], object], argument: Any) -> BaseException | None:
    """`function(argument)` in `context`: what it has raised."""
    try:
        context.run(function, argument)
    except BaseException as error:
        return error
    return None


def try_in_with(
    context: Context, function: Callable[[Any, Any], object], first: Any, second: Any
) -> BaseException | None:
    """`function(first, second)` in `context`: what it has raised."""
    try:
        context.run(function, first, second)
    except BaseException as error:
        return error
    return None
