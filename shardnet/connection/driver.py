"""Drivers: how a handler goes on without its Task taking part.

A Task steps its coroutine, and for each step that ends in a wait it asks the awaited object seven things. A handler
that reads in a loop waits for the same `Waiter` each time. So its Task is given a `Driver` in place of the coroutine:
when bytes come, the driver steps the coroutine itself, and as long as that parks on the same waiter again, the Task
need not know: for it nothing has happened, and it is still parked. Anything else that a step ends in, another wait, the
end, an exception, is put aside, and the Task is woken and finds it.

While it steps, the driver does what a Task's step does: the coroutine runs in the Task's context, and
`asyncio.current_task()` is the Task. A Task that is cancelled while its coroutine runs notes that, to throw at its next
step. Here it is the driver that has to make that next step come (`cancel_asked`).

Debug mode, and an app with a task factory of its own, do without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any

from shardnet.connection._steps import Stepper, enter_task, leave_task, run_in, step, thrown
from shardnet.connection.resume import Waiter
from shardnet.connection.states import PARKED


class Driver(Stepper):
    """A coroutine to a Task, around the coroutine `coro` of a handler. `task` is to be set as soon as there is one."""

    __slots__ = ("_coro", "_failed", "_loop", "_put_aside", "_value", "task")

    def __init__(self, coro: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self.over = False
        self.task: asyncio.Task[Any] | None = None
        self.cancel_asked = False  # While the coroutine ran: its Task throws at the next step, which is to come soon.
        self._coro = coro
        self._loop = loop
        # What a step that the Task did not take has ended in: a value, or an exception.
        self._put_aside = False
        self._failed = False
        self._value: Any = None

    def __getattr__(self, name: str) -> Any:
        """What asyncio shows of a coroutine: its names, its frame, what it awaits."""
        return getattr(self._coro, name)

    # Task's side.

    def advance(self) -> Any:
        if self._put_aside:
            return self._take()
        self.over = True  # If it raises.
        try:
            return self._step()
        finally:
            if self.over:
                self.task = None  # Which refers to us.

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None) -> Any:
        error = thrown(kind, value, traceback)
        if self._put_aside:
            # A cancellation that was asked for while the coroutine ran. What a Task does with it depends on how the
            # step ended: with an exception, nothing; at its end, it is cancelled; waiting, it cancels what it awaits.
            if self._failed:
                return self._take()
            if self.over:
                self._take()
                raise error
            value = self._take()
            if value is not None and value.cancel(*error.args):
                return value
        self.over = True
        try:
            value = self._coro.throw(error)
            self.over = False
            return self._note(value)
        finally:
            if self.over:
                self.task = None

    def close(self) -> None:
        self._coro.close()

    def _step(self) -> Any:
        value = step(self, self._coro)
        return value if self.over else self._note(value)

    def _note(self, value: Any) -> Any:
        """What a step has yielded."""
        if type(value) is Waiter:
            waiter = value
            waiter._driver = self
        return value

    def _take(self) -> Any:
        value, self._value = self._value, None
        self._put_aside = False
        if self._failed:
            raise value
        return value

    # The waiter's side.

    def resume(self, waiter: Waiter, context: Context) -> bool:
        if self.cancel_asked or self.task is None:
            self._let_go(waiter)
            return False
        try:
            value = run_in(context, self)
        except BaseException as error:
            self.over = True
            self._put_by(error, True)
        else:
            parked = waiter
            if not self.over and value is parked and parked.state == PARKED and not self.cancel_asked:
                parked._asyncio_future_blocking = False  # As a Task does that parks.
                return True
            if self.over or value is not waiter:
                self._put_by(value, False)
        self._let_go(waiter)
        return False

    def run(self) -> Any:
        task = self.task
        assert task is not None
        enter_task(self._loop, task)
        try:
            return self._step()
        finally:
            leave_task(self._loop, task)

    def _put_by(self, value: Any, failed: bool) -> None:
        self._put_aside = True
        self._failed = failed
        self._value = value
        if self.over:
            self.task = None

    def _let_go(self, waiter: Waiter) -> None:
        """The Task takes over: it is about to be woken."""
        self.cancel_asked = False
        waiter._driver = None
