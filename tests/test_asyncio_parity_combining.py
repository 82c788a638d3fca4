"""Waiting for several things at once: a handler sees what it would see on asyncio's own streams. See `parity_kit`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.parity_kit import PLAYS, STREAMS_PLAYS, Face, Play, Scene
from tests.serving import this_task, until

every_kind = pytest.mark.parametrize("play", PLAYS, ids=str)
streams = pytest.mark.parametrize("play", STREAMS_PLAYS, ids=str)


async def later(face: Face, turns: int, what: str) -> str:
    for _ in range(turns):
        await asyncio.sleep(0)
    face.note(what)
    return what


async def read(face: Face, size: int = 10) -> bytes:
    data: bytes = await face.read(size)
    return data


async def feed(scene: Scene, *steps: tuple[int, bytes]) -> None:
    """A client that puts each of these when so much stands in the journal."""
    client, face = await scene.open()
    task = face.task
    for count, data in steps:
        await scene.noted(count)
        client.put(data)
    await task


# Tasks of what `read` returns.


@streams
def test_read_may_become_a_task(play: Play) -> None:
    async def handler(face: Face) -> None:
        task = asyncio.create_task(face.read(10), name="reads")
        face.note((task.get_name(), task.done()))
        face.note(await task)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(face.read(10))
        face.note(task.result())

    async def main(scene: Scene) -> None:
        await feed(scene, (1, b"a"), (2, b"b"))

    assert play(handler, main) == [("reads", False), b"a", b"b"]


@every_kind
def test_read_in_a_task_that_is_given_up_keeps_the_bytes_for_the_next(play: Play) -> None:
    async def handler(face: Face) -> None:
        for turns in range(4):
            task = asyncio.ensure_future(face.read(10))
            await later(face, turns, "given up")
            task.cancel()
            await asyncio.wait([task])
            face.note(task.cancelled())
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        await feed(scene, (8, b"a"))

    assert play(handler, main) == ["given up", True] * 4 + [b"a"]


@every_kind
def test_two_connections_are_read_by_one_task(play: Play) -> None:
    first: list[Face] = []

    async def handler(face: Face) -> None:
        if face is face.scene.faces[0]:
            first[:] = [face]
            face.note(await face.scene.loop.create_future())
            return
        face.note(await asyncio.gather(face.read(10), first[0].read(10)))
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(one.read(10)) for one in (face, first[0])], return_when=asyncio.FIRST_COMPLETED
        )
        face.note([task.result() for task in done])

    async def main(scene: Scene) -> None:
        one, _ = await scene.open()
        other, _ = await scene.open()
        one.put(b"1")
        other.put(b"2")
        await scene.noted(1)
        one.put(b"3")
        await scene.noted(2)

    assert play(handler, main) == [[b"2", b"1"], [b"3"]]


# gather, shield.


@every_kind
def test_gather_gives_results_in_order_and_exceptions_as_asked(play: Play) -> None:
    async def fail() -> None:
        raise LookupError("no")

    async def handler(face: Face) -> None:
        got = await asyncio.gather(later(face, 3, "slow"), read(face), fail(), return_exceptions=True)
        face.note([repr(one) for one in got])
        reading = asyncio.ensure_future(read(face))
        try:
            await asyncio.gather(reading, fail())
        except LookupError as error:
            face.note(str(error))
        face.note(await reading)  # The others go on.

    async def main(scene: Scene) -> None:
        await feed(scene, (1, b"a"), (3, b"b"))

    assert play(handler, main) == ["slow", ["'slow'", "b'a'", "LookupError('no')"], "no", b"b"]


@every_kind
def test_cancel_of_a_gather_cancels_the_read_in_it(play: Play) -> None:
    async def handler(face: Face) -> None:
        gathered = asyncio.gather(read(face), asyncio.Event().wait())
        await asyncio.sleep(0)
        face.note(gathered.cancel())
        try:
            await gathered
        except asyncio.CancelledError:
            face.note(("cancelled", this_task().cancelling()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        await feed(scene, (2, b"a"))

    assert play(handler, main) == [True, ("cancelled", 0), b"a"]


@every_kind
def test_cancel_does_not_reach_a_shielded_read(play: Play) -> None:
    async def handler(face: Face) -> None:
        reading = asyncio.ensure_future(face.read(10))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            face.note((reading.done(), this_task().uncancel()))
        face.note(await reading)

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        await asyncio.sleep(0)
        face.task.cancel()
        await scene.noted(1)
        client.put(b"a")
        await scene.noted(2)

    assert play(handler, main) == [(False, 0), b"a"]


# wait_for.


@every_kind
@pytest.mark.parametrize("timeout_s", [None, 60, 0.01, 0, -1])
@pytest.mark.parametrize("method", ["read", "read_exactly", "read_until"])
def test_wait_for_a_read_times_out_or_not_and_keeps_the_bytes(play: Play, timeout_s: float | None, method: str) -> None:
    async def handler(face: Face) -> None:
        call: Any = {
            "read": lambda: face.read(2),
            "read_exactly": lambda: face.read_exactly(2),
            "read_until": lambda: face.read_until(b"\n"),
        }[method]
        for _ in range(2):
            face.note("asks")
            try:
                face.note(await asyncio.wait_for(call(), timeout_s))
            except TimeoutError:
                face.note(("timeout", this_task().cancelling()))
        face.note("ends")
        face.note(await face.read_exactly(2))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        in_time = timeout_s is None or timeout_s > 1
        for count in (1, 3) if in_time else ():
            await scene.noted(count)
            client.put(b"a\n")
        await scene.noted(5)
        client.put(b"z\n")
        await scene.noted(6)

    if timeout_s is None or timeout_s > 1:
        assert play(handler, main) == ["asks", b"a\n", "asks", b"a\n", "ends", b"z\n"]
    else:
        assert play(handler, main) == ["asks", ("timeout", 0), "asks", ("timeout", 0), "ends", b"z\n"]


@every_kind
def test_cancel_of_a_wait_for_loses_nothing(play: Play) -> None:
    async def handler(face: Face) -> None:
        for _ in range(2):
            try:
                face.note(await asyncio.wait_for(face.read_exactly(4), 60))
            except asyncio.CancelledError as error:
                face.note((error.args, this_task().uncancel()))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"ab")
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await scene.noted(1)
        client.put(b"cd")
        await scene.noted(2)

    assert play(handler, main)[1] == b"abcd"


# wait, as_completed.


@every_kind
def test_wait_tells_reads_that_are_done_from_those_that_are_not(play: Play) -> None:
    async def handler(face: Face) -> None:
        reading, sleeping = (asyncio.ensure_future(one) for one in (face.read(10), asyncio.Event().wait()))
        done, pending = await asyncio.wait([reading, sleeping], timeout=0.01)
        face.note((len(done), len(pending)))
        done, pending = await asyncio.wait([reading, sleeping], return_when=asyncio.FIRST_COMPLETED)
        face.note((done == {reading}, pending == {sleeping}, reading.result()))
        sleeping.cancel()
        await asyncio.wait([reading, sleeping], return_when=asyncio.FIRST_EXCEPTION)
        face.note(sleeping.cancelled())

    async def main(scene: Scene) -> None:
        await feed(scene, (1, b"a"))

    assert play(handler, main) == [(0, 2), (True, True, b"a"), True]


@every_kind
def test_as_completed_gives_whichever_is_first(play: Play) -> None:
    async def handler(face: Face) -> None:
        for number, one in enumerate(asyncio.as_completed([face.read(10), later(face, 1, "slept")])):
            face.note((number, await one))
        try:
            for one in asyncio.as_completed([face.read(10)], timeout=0.01):
                await one
        except TimeoutError:
            face.note("timeout")

    async def main(scene: Scene) -> None:
        await feed(scene, (2, b"a"))

    assert play(handler, main) == ["slept", (0, "slept"), (1, b"a"), "timeout"]


# Task groups.


@every_kind
def test_task_group_reads_and_waits_for_all(play: Play) -> None:
    async def handler(face: Face) -> None:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(face))
            group.create_task(later(face, 2, "other"))
        face.note(reading.result())

    async def main(scene: Scene) -> None:
        await feed(scene, (1, b"a"))

    assert play(handler, main) == ["other", b"a"]


@every_kind
def test_task_group_whose_body_reads_is_ended_by_a_failing_task(play: Play) -> None:
    async def fail(face: Face) -> None:
        await later(face, 2, "fails")
        raise LookupError

    async def handler(face: Face) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(face))
                await face.read(10)
        except* LookupError as failed:
            face.note((len(failed.exceptions), this_task().cancelling()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        await feed(scene, (2, b"a"))

    assert play(handler, main) == ["fails", (1, 0), b"a"]


@every_kind
def test_task_group_that_is_cancelled_from_outside_cancels_its_reads(play: Play) -> None:
    cancelled: list[str] = []

    async def child(name: str, waits: Any) -> None:
        try:
            await waits
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    async def handler(face: Face) -> None:
        cancelled.clear()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child("reads", face.read(10)))
                group.create_task(child("waits", asyncio.Event().wait()))
        except asyncio.CancelledError as error:
            face.note((sorted(cancelled), error.args, this_task().uncancel()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        await asyncio.sleep(0)
        face.task.cancel("enough")
        await scene.noted(1)
        client.put(b"a")
        await scene.noted(2)

    assert play(handler, main) == [(["reads", "waits"], ("enough",), 0), b"a"]


@every_kind
def test_queue_joins_a_reader_and_a_worker(play: Play) -> None:
    """The usual shape of a server that answers in order."""

    async def handler(face: Face) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)

        async def work() -> None:
            while data := await queue.get():
                face.note(data)
                queue.task_done()

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            for _ in range(4):
                await queue.put(await face.read_exactly(1))
            await queue.join()
            await queue.put(b"")

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        client.put(b"abcd")
        await until(task.done)

    assert play(handler, main) == [b"a", b"b", b"c", b"d"]
