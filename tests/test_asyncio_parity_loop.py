"""What surrounds a handler: generators, tracers, the loop's checks, its end. As on asyncio's own; see `parity_kit`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import FrameType
from typing import Any

import pytest

from tests.parity_kit import PLAYS, Face, Play, Scene
from tests.serving import collect_garbage, until

pytestmark = pytest.mark.parametrize("play", PLAYS, ids=str)


async def feed(scene: Scene, *steps: tuple[int, bytes]) -> None:
    """A client that puts each of these when so much stands in the journal."""
    client, face = await scene.open()
    task = face.task
    for count, data in steps:
        await scene.noted(count)
        client.put(data)
    await task


# Other ways to await.


class Forwarded:
    """An awaitable that steps another by hand, and passes on what it yields: as libraries do that run code between."""

    def __init__(self, awaitable: Any, between: Callable[[], object] = lambda: None) -> None:
        self._awaitable = awaitable
        self._between = between

    def __await__(self) -> Generator[Any, Any, Any]:
        stepped = self._awaitable.__await__()
        sent, thrown = None, None
        while True:
            self._between()
            try:
                yielded = stepped.send(sent) if thrown is None else stepped.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            try:
                sent = yield yielded
            except BaseException as error:
                thrown = error


def test_read_may_be_awaited_by_generators(play: Play) -> None:
    class Twice:
        def __init__(self, face: Face) -> None:
            self._face = face

        def __await__(self) -> Generator[Any, Any, bytes]:
            first = yield from self._face.read_exactly(1).__await__()
            yield  # As `sleep(0)` does.
            second = yield from self._face.read_exactly(1).__await__()
            return bytes(second + first)

    async def handler(face: Face) -> None:
        face.note(await Twice(face))
        steps: list[None] = []
        face.note(await Forwarded(face.read(10), lambda: steps.append(None)))
        face.note(len(steps) > 1)
        face.note(await asyncio.wait_for(Forwarded(Forwarded(face.read(10))), 60))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"a")
        client.put(b"b")
        await scene.noted(1)
        client.put(b"c")
        await scene.noted(3)
        client.put(b"d")
        await task

    assert play(handler, main) == [b"ba", b"c", True, b"d"]


def test_read_that_is_stepped_by_hand_is_cancelled_and_loses_nothing(play: Play) -> None:
    async def handler(face: Face) -> None:
        for _ in range(2):
            try:
                face.note(await Forwarded(face.read_exactly(2)))
            except asyncio.CancelledError:
                face.note("cancelled")

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"a")
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await scene.noted(1)
        client.put(b"b")
        await scene.noted(2)

    assert play(handler, main) == ["cancelled", b"ab"]


# Asynchronous generators.


async def records(face: Face) -> AsyncGenerator[bytes, None]:
    try:
        while True:
            yield await face.read_exactly(1)
    finally:
        face.note("closing")
        await asyncio.sleep(0)
        face.note("closed")


def test_generator_that_reads_is_closed_when_its_loop_shuts_down(play: Play) -> None:
    kept: list[AsyncGenerator[bytes, None]] = []

    async def handler(face: Face) -> None:
        kept[:] = [records(face)]
        face.note(await anext(kept[0]))

    async def main(scene: Scene) -> None:
        await feed(scene, (0, b"a"))
        await scene.loop.shutdown_asyncgens()
        await scene.noted(3)

    assert play(handler, main) == [b"a", "closing", "closed"]


def test_generator_that_reads_is_closed_when_it_is_dropped(play: Play) -> None:
    async def handler(face: Face) -> None:
        async for record in records(face):
            face.note(record)
            break
        gc.collect()
        await until(lambda: len(face.scene.journal) == 3)
        async with contextlib.aclosing(records(face)) as closing:
            async for record in closing:
                face.note(record)
                break

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"ab")
        await task

    assert play(handler, main) == [b"a", "closing", "closed", b"b", "closing", "closed"]


def test_generator_that_waits_in_a_read_is_cancelled_with_its_handler(play: Play) -> None:
    async def handler(face: Face) -> None:
        async for record in records(face):
            face.note(record)

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"a")
        await scene.noted(1)
        task.cancel()
        await asyncio.wait([task])
        scene.note(task.cancelled())

    assert play(handler, main) == [b"a", "closing", "closed", True]


# Tracers, debuggers, profilers.


@pytest.mark.parametrize("install", ["settrace", "setprofile"])
def test_tracer_sees_the_steps_of_a_handler(play: Play, install: str) -> None:
    async def step(face: Face) -> bytes:
        data: bytes = await face.read_exactly(1)
        return data

    async def handler(face: Face) -> None:
        while (await step(face)) != b"!":
            pass

    traced = {handler.__code__: "handler", step.__code__: "step"}
    events: list[tuple[str, str, int]] = []

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        if (name := traced.get(frame.f_code)) is not None:
            events.append((name, event, frame.f_lineno - frame.f_code.co_firstlineno))
            return tracer
        return None

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        before = getattr(sys, install.replace("set", "get"))()
        getattr(sys, install)(tracer)
        try:
            for data in (b"a", b"b", b"!"):
                client.put(data)
                count = len(events)
                await until(lambda count=count: len(events) > count)  # type: ignore[misc]
                for _ in range(5):
                    await asyncio.sleep(0)
            await asyncio.wait([task])
        finally:
            getattr(sys, install)(before)
        scene.note(list(events))
        events.clear()

    [noted] = play(handler, main)
    assert isinstance(noted, list)
    assert ("step", "return", 2) in noted


# The loop's own checks and reports.


def test_debug_mode_by_the_environment_reaches_handlers(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")

    async def handler(face: Face) -> None:
        await face.read_exactly(1)
        loop = asyncio.get_running_loop()
        face.note((loop.get_debug(), sys.get_coroutine_origin_tracking_depth() > 0))
        raised: list[str] = []

        def call_from_elsewhere() -> None:
            try:
                loop.call_soon(raised.clear)
            except RuntimeError as error:
                raised.append(str(error))

        elsewhere = threading.Thread(target=call_from_elsewhere)
        elsewhere.start()
        elsewhere.join()
        face.note(raised)

    async def main(scene: Scene) -> None:
        await feed(scene, (0, b"a"))

    assert play(handler, main)[0] == (True, True)


def test_error_of_a_task_that_nobody_asks_reaches_the_loops_exception_handler(play: Play) -> None:
    async def fail(face: Face) -> None:
        await face.read_exactly(1)
        raise LookupError("no")

    async def handler(face: Face) -> None:
        task = asyncio.create_task(fail(face))
        await asyncio.wait([task])
        del task
        collect_garbage()
        [context] = face.scene.loop_errors
        face.note((context["message"], repr(context["exception"])))
        face.scene.loop_errors.clear()
        asyncio.get_running_loop().call_soon(int, "no number")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        [context] = face.scene.loop_errors
        face.note(repr(context["exception"]))
        face.scene.loop_errors.clear()

    async def main(scene: Scene) -> None:
        await feed(scene, (0, b"a"))

    assert play(handler, main)[0] == ("Task exception was never retrieved", "LookupError('no')")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_raised_by_a_task_that_reads_is_kept_by_its_task(play: Play, error: type[BaseException]) -> None:
    """On asyncio's own loop it ends the run as well. Here not, by design: with the loop every other connection would
    end. Apart from that nothing differs, once the loop runs again."""

    async def child(face: Face) -> None:
        await face.read_exactly(1)
        face.note("raises")
        raise error

    async def handler(face: Face) -> None:
        task = asyncio.create_task(child(face))
        await asyncio.wait([task])
        face.note(type(task.exception()).__name__)
        face.note(await face.read_exactly(1))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"ab")
        await scene.noted(3)

    journals = []
    for kind in ("stock", play.kind):
        with Scene(kind, handler, play.mode) as scene:
            task = scene.loop.create_task(main(scene))
            if kind == "stock":
                with pytest.raises(error):
                    scene.loop.run_until_complete(task)
            scene.loop.run_until_complete(task)
            journals.append(scene.journal)
    assert journals == [["raises", error.__name__, b"b"]] * 2


# Runners.


def run_to_its_end(play: Play, handler: Any, main: Callable[[Scene], Coroutine[Any, Any, None]]) -> list[list[object]]:
    """The journals of scenes that an `asyncio.Runner` runs, and ends."""
    journals = []
    for kind in ("stock", play.kind):
        scene = Scene(kind, handler, play.mode)
        try:
            with asyncio.Runner(loop_factory=scene.hand_over) as runner:
                runner.run(main(scene))
                scene.note(runner.run(asyncio.sleep(0, "again")))
        except BaseException as error:
            scene.note(type(error).__name__)
        journals.append(scene.journal)
    return journals


def test_runner_runs_and_ends_what_still_waits(play: Play) -> None:
    kept: list[AsyncGenerator[bytes, None]] = []

    async def handler(face: Face) -> None:
        kept[:] = [records(face)]
        face.note(await anext(kept[0]))
        try:
            await face.read(10)
        except asyncio.CancelledError:
            face.note("cancelled")
            raise

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"a")
        await scene.noted(1)

    assert run_to_its_end(play, handler, main) == [[b"a", "again", "cancelled", "closing", "closed"]] * 2


def test_control_c_cancels_main_and_then_whatever_waits(play: Play) -> None:
    """It comes while a handler runs, resumed from inside the poll."""

    async def handler(face: Face) -> None:
        try:
            face.note(await face.read_exactly(1))
            signal.raise_signal(signal.SIGINT)
            face.note(await face.read_exactly(1))
            await face.read_exactly(1)
        except asyncio.CancelledError:
            face.note("handler cancelled")
            raise

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"ab")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await scene.noted(2)
            scene.note("main cancelled")
            raise

    expected = [b"a", b"b", "main cancelled", "handler cancelled", "KeyboardInterrupt"]
    assert run_to_its_end(play, handler, main) == [expected] * 2
