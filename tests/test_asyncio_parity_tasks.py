"""What a handler, and whoever looks at its task, see of tasks and contexts: as on asyncio's own streams.

See `parity_kit`.
"""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import io
import re
import sys
import traceback
from typing import Any

import pytest

from tests.parity_kit import PLAYS, Face, Play, Scene, steps
from tests.serving import this_task, until

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)

pytestmark = pytest.mark.parametrize("play", PLAYS, ids=str)


# Contexts.


def test_variable_that_a_handler_sets_is_its_own_and_its_childrens(play: Play) -> None:
    async def child() -> int:
        before = NUMBER.get()
        NUMBER.set(before + 100)
        await asyncio.sleep(0)
        return NUMBER.get()

    async def nested(face: Face) -> None:
        await face.read_exactly(1)
        NUMBER.set(NUMBER.get() + 1)  # No task of its own, so no context of its own.

    async def handler(face: Face) -> None:
        face.note(NUMBER.get())
        NUMBER.set(10)
        await face.read_exactly(1)
        face.note(NUMBER.get())
        face.note(await asyncio.gather(child(), child()))
        face.note(NUMBER.get())
        await nested(face)
        face.note(NUMBER.get())
        face.note(await asyncio.to_thread(NUMBER.get))
        called: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: called.set_result(NUMBER.get()))
        face.note(await called)

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        NUMBER.set(-1)
        client.put(b"ab")
        await task
        assert NUMBER.get() == -1

    assert play(handler, main) == [0, 10, [110, 110], 10, 11, 11, 11]


def test_variables_of_connections_that_take_turns_do_not_mix(play: Play) -> None:
    async def handler(face: Face) -> None:
        NUMBER.set(number := len(face.scene.faces))
        with decimal.localcontext(prec=number + 1):
            for _ in range(3):
                await face.read_exactly(1)
                face.note((NUMBER.get() == number, decimal.getcontext().prec == number + 1, NUMBER.get()))

    async def main(scene: Scene) -> None:
        clients = [(await scene.open())[0] for _ in range(3)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.put(b"x")
                await scene.noted(3 * turn + number + 1)

    assert play(handler, main) == [(True, True, number) for number in (1, 2, 3)] * 3


def test_token_made_before_a_read_undoes_the_variable_after_it(play: Play) -> None:
    async def handler(face: Face) -> None:
        token = NUMBER.set(5)
        await face.read_exactly(1)
        face.note(NUMBER.get())
        NUMBER.reset(token)
        await face.read_exactly(1)
        face.note(NUMBER.get())

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"a")
        await scene.noted(1)
        client.put(b"b")
        await scene.noted(2)

    assert play(handler, main) == [5, 0]


def test_task_that_is_given_a_context_reads_in_it(play: Play) -> None:
    async def read(face: Face) -> int:
        await face.read_exactly(1)
        NUMBER.set(NUMBER.get() + 1)
        return NUMBER.get()

    async def handler(face: Face) -> None:
        context = contextvars.copy_context()
        context.run(NUMBER.set, 7)
        for _ in range(2):
            face.note(await asyncio.create_task(read(face), context=context))
        face.note((NUMBER.get(), context[NUMBER]))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"a")
        await scene.noted(1)
        client.put(b"b")
        await task

    assert play(handler, main) == [8, 9, (0, 9)]


# Which task.


def test_current_task_is_the_one_that_runs(play: Play) -> None:
    async def handler(face: Face) -> None:
        mine = face.task
        face.note(this_task() is mine)
        await face.read_exactly(1)
        face.note(this_task() is mine)
        child = asyncio.create_task(asyncio.sleep(0))
        await child
        await face.read_exactly(1)
        face.note((this_task() is mine, mine in asyncio.all_tasks(), child in asyncio.all_tasks()))
        asyncio.get_running_loop().call_soon(lambda: face.note(asyncio.current_task()))

    async def main(scene: Scene) -> None:
        mine = this_task()
        client, face = await scene.open()
        task = face.task
        await until(lambda: scene.journal and this_task() is mine)
        client.put(b"a")
        await until(lambda: len(scene.journal) == 2 and this_task() is mine)
        client.put(b"b")
        await scene.noted(4)
        scene.note((task.done(), task in asyncio.all_tasks(), this_task() is mine))

    # An eager task is begun before it is anywhere to be found.
    if play.mode == "eager task":
        pytest.skip("`Face.task` is not known to a handler that has not waited yet")
    assert play(handler, main) == [True, True, (True, True, False), None, (True, False, True)]


def test_all_tasks_has_one_for_each_handler_that_waits(play: Play) -> None:
    async def handler(face: Face) -> None:
        await face.read(10)

    async def main(scene: Scene) -> None:
        def count() -> int:
            return sum(steps(task, coro) for task in asyncio.all_tasks() for coro in coros if coro.cr_frame)

        opened = [await scene.open() for _ in range(3)]
        coros = [face.coro for _, face in opened]
        scene.note(count())
        task = opened[0][1].task
        opened[0][0].put(b"x")
        await task
        scene.note(count())

    assert play(handler, main) == [3, 2]


# Looking at a task that waits.


async def outermost(face: Face) -> None:
    await inner(face)


async def inner(face: Face) -> None:
    face.note(await face.read(10))


def test_task_that_waits_shows_where(play: Play) -> None:
    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        [frame] = task.get_stack()
        scene.note((frame.f_code.co_name, frame.f_lineno, steps(task, face.coro)))
        printed = io.StringIO()
        task.print_stack(file=printed)
        scene.note([line for line in printed.getvalue().splitlines() if not line.startswith("Stack for <Task")])
        coro: Any = face.coro
        scene.note((coro.cr_await.cr_code.co_name, coro.cr_running, coro.cr_await.cr_await is None))
        client.put(b"x")
        await scene.noted(4)

    assert play(outermost, main)[0] == ("outermost", outermost.__code__.co_firstlineno + 1, True)


def test_task_that_waits_says_so(play: Play) -> None:
    """Its `repr` is asyncio's, with what it waits for, and its name may be changed meanwhile."""

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        scene.note(bool(re.fullmatch(r"Task-\d+", task.get_name())))
        task.set_name("peer 7")
        shown = re.sub(r"wait_for=<.*", "wait_for=<", repr(task))
        scene.note(re.sub(r" created at \S+", "", shown))
        task.cancel()
        scene.note(re.search(r"<\w+ (\w+)", repr(task)).group(1))  # type: ignore[union-attr]
        await asyncio.wait([task])
        scene.note(re.sub(r"(coro=<\S+).*", r"\1", repr(task)))
        client.close()

    journal = play(outermost, main)
    assert "<" in str(journal[1])
    assert "name='peer 7' coro=<outermost() running at" in str(journal[1])


def test_error_of_a_handler_has_the_traceback_of_its_own_code(play: Play) -> None:
    async def fails(face: Face) -> None:
        await face.read_exactly(1)
        raise LookupError("no")

    async def handler(face: Face) -> None:
        try:
            await fails(face)
        except LookupError as error:
            face.note([frame.name for frame in traceback.extract_tb(error.__traceback__)])
            face.note(error.__context__)
        await face.read_exactly(1)
        face.note(sys.exc_info())  # Nobody else's error is seen after a wait.
        try:
            await face.read_exactly(5)
        except asyncio.IncompleteReadError as error:
            face.note((error.partial, error.expected, type(error.__context__), error.__cause__))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"a")
        await scene.noted(2)
        try:
            raise KeyError
        except KeyError:
            client.put(b"b")
            await scene.noted(3)
        client.put(b"c")
        client.end()
        await task

    assert play(handler, main)[0] == ["handler", "fails"]


def test_done_callback_of_a_handlers_task_comes_in_its_context(play: Play) -> None:
    async def handler(face: Face) -> int:
        await face.read(10)
        return 7

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        context = contextvars.copy_context()
        context.run(NUMBER.set, 3)
        task.add_done_callback(lambda done: scene.note((done.result(), NUMBER.get())), context=context)
        client.put(b"x")
        await scene.noted(1)

    assert play(handler, main) == [(7, 3)]


# How tasks are made.


class OwnTask(asyncio.Task[Any]):
    """As libraries make them, to count or to trace."""

    steps: list[str]


def test_task_factory_makes_the_handlers_tasks_too(play: Play) -> None:
    if play.mode not in ("plain", "debug"):
        pytest.skip("has a factory of its own")

    async def handler(face: Face) -> None:
        face.note(type(this_task()).__name__)
        child = asyncio.create_task(asyncio.sleep(0))
        face.note(type(child).__name__)
        await child
        for _ in range(2):
            face.note(await face.read_exactly(1))
            face.note(type(this_task()).__name__)

    async def main(scene: Scene) -> None:
        scene.loop.set_task_factory(lambda loop, coro, **kwargs: OwnTask(coro, loop=loop, **kwargs))
        client, _ = await scene.open()
        scene.loop.set_task_factory(None)
        client.put(b"ab")
        await scene.noted(6)

    assert play(handler, main)[0] == "OwnTask"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_task_whose_bytes_have_come_is_over_at_once(play: Play) -> None:
    async def read(face: Face, size: int) -> bytes:
        NUMBER.set(9)
        data: bytes = await face.read_exactly(size)
        return data

    def eagerly(coro: Any) -> asyncio.Task[bytes]:
        make: Any = asyncio.Task
        task: asyncio.Task[bytes] = make(coro, loop=asyncio.get_running_loop(), eager_start=True)
        return task

    async def handler(face: Face) -> None:
        face.note(await face.read_exactly(1))
        mine = this_task()
        done = eagerly(read(face, 2))
        face.note((done.done(), done.result(), this_task() is mine, NUMBER.get()))
        waits = eagerly(read(face, 2))
        face.note((waits.done(), this_task() is mine))
        face.note(await waits)

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"abc")
        await scene.noted(3)
        client.put(b"de")
        await task

    assert play(handler, main) == [b"a", (True, b"bc", True, 0), (False, True), b"de"]
