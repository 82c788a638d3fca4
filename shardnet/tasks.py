"""Where the tasks of an event loop stand: what `shardnet stacks` shows of a worker besides its threads."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from typing import Final

__all__ = ["tasks_text"]

KINDS_MAX: Final = 50  # Thousands of handlers wait in the same line: that is said once, with their number.


def tasks_text(loop: asyncio.AbstractEventLoop) -> str:
    """The stacks of the loop's tasks, the most frequent first, each with the number of tasks that stand there."""
    stacks = Counter(map(_stack, asyncio.all_tasks(loop)))
    parts = [f"{count} x {stack}" for stack, count in stacks.most_common(KINDS_MAX)]
    if len(stacks) > KINDS_MAX:
        parts.append(f"and {len(stacks) - KINDS_MAX} stacks more\n")
    return f"{stacks.total()} tasks\n" + "".join(parts)


def _stack(task: asyncio.Task[object]) -> str:
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", None) or repr(coroutine)
    text = io.StringIO()
    task.print_stack(file=text)
    return f"{name}\n{''.join(text.getvalue().splitlines(keepends=True)[1:])}"
