"""Cancelling and timeouts: a handler sees what it would see on asyncio's own streams.

See `parity_kit`. What a cancelled read keeps, and that it is never resumed inline, is in `test_resume_cancel`.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.parity_kit import PLAYS, Face, Play, Scene
from tests.serving import this_task, until

pytestmark = pytest.mark.parametrize("play", PLAYS, ids=str)


async def arrived() -> None:
    """Passes of the loop enough for everything to get as far as it would."""
    for _ in range(5):
        await asyncio.sleep(0)


# Timeouts.


def test_timeout_around_a_read_that_comes_in_time_leaves_no_trace(play: Play) -> None:
    async def handler(face: Face) -> None:
        async with asyncio.timeout(60) as timeout:
            face.note(await face.read(10))
        face.note((timeout.expired(), this_task().cancelling()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"a")
        await scene.noted(2)
        client.put(b"b")
        await scene.noted(3)

    assert play(handler, main) == [b"a", (False, 0), b"b"]


@pytest.mark.parametrize("outer_s", [0.01, 60])
def test_of_nested_timeouts_the_one_that_is_due_ends_its_block(play: Play, outer_s: float) -> None:
    inner_s = 60 if outer_s < 1 else 0.01

    async def handler(face: Face) -> None:
        try:
            async with asyncio.timeout(outer_s) as outer:
                try:
                    async with asyncio.timeout(inner_s) as inner:
                        await face.read(10)
                except TimeoutError:
                    face.note("inner")
                except asyncio.CancelledError:
                    face.note("through the inner")
                    raise
                face.note(await face.read(10))
        except TimeoutError:
            face.note("outer")
        face.note((inner.expired(), outer.expired(), this_task().cancelling()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        await scene.noted(1)
        if scene.journal == ["inner"]:
            client.put(b"a")
        await scene.noted(3)
        client.put(b"b")
        await scene.noted(4)

    if outer_s < 1:
        assert play(handler, main) == ["through the inner", "outer", (False, True, 0), b"b"]
    else:
        assert play(handler, main) == ["inner", b"a", (True, False, 0), b"b"]


def test_nested_timeouts_that_are_due_together_end_both_blocks(play: Play) -> None:
    async def handler(face: Face) -> None:
        when_s = asyncio.get_running_loop().time() + 0.01
        try:
            async with asyncio.timeout_at(when_s) as outer:
                try:
                    async with asyncio.timeout_at(when_s) as inner:
                        await face.read(10)
                except BaseException as error:
                    face.note((type(error).__name__, inner.expired()))
                    raise
        except TimeoutError:
            face.note(("outer", outer.expired(), this_task().cancelling()))
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        await scene.noted(2)
        client.put(b"b")
        await scene.noted(3)

    assert play(handler, main)[2] == b"b"


@pytest.mark.parametrize("delay_s", [0, -1])
def test_timeout_that_is_due_at_once_lets_no_read_wait_and_loses_no_byte(play: Play, delay_s: float) -> None:
    async def handler(face: Face) -> None:
        face.note(await face.read(1))
        try:
            async with asyncio.timeout(delay_s):
                face.note(await face.read_exactly(3))
        except TimeoutError:
            face.note("timeout")
        face.note(await face.read_exactly(3))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"1")
        await scene.noted(2)
        client.put(b"234")
        await scene.noted(3)

    assert play(handler, main) == [b"1", "timeout", b"234"]


def test_timeout_may_be_moved_while_its_read_waits(play: Play) -> None:
    timeouts: list[asyncio.Timeout] = []

    async def handler(face: Face) -> None:
        try:
            async with asyncio.timeout(None) as timeout:
                timeouts.append(timeout)
                await face.read(10)
        except TimeoutError:
            face.note("timeout")
        face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        timeouts[-1].reschedule(scene.loop.time() - 1)
        await scene.noted(1)
        client.put(b"b")
        await scene.noted(2)

    assert play(handler, main) == ["timeout", b"b"]


@pytest.mark.parametrize("order", ["bytes, deadline", "deadline, bytes", "deadline, a pass of the loop, bytes"])
def test_timeout_that_expires_as_the_bytes_come_loses_none(play: Play, order: str) -> None:
    """Whichever a loop deals with first: every byte is read once, and each block ends in one way."""
    entered: list[asyncio.Timeout] = []
    got = bytearray()

    async def handler(face: Face) -> None:
        entered.clear()
        got.clear()
        while len(got) < 20:
            begun = len(got)
            try:
                async with asyncio.timeout(None) as timeout:
                    entered.append(timeout)
                    got.extend(await face.read(1))
            except TimeoutError:
                assert timeout.expired()
                assert len(got) == begun
            else:
                assert len(got) == begun + 1
            assert this_task().cancelling() == 0
        face.note(bytes(got))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        for number in range(20):
            for step in order.split(", "):
                match step:
                    case "bytes":
                        client.put(bytes([number]))
                    case "deadline":
                        entered[-1].reschedule(scene.loop.time() - 1)
                    case _:
                        await asyncio.sleep(0)
            await until(lambda number=number: len(got) > number)  # type: ignore[misc]
            await arrived()
        if "pass" in order:
            assert len(entered) == 40  # Each was too late for its block.

    assert play(handler, main) == [bytes(range(20))]


# Cancelling.


def test_cancel_while_running_is_thrown_at_the_next_wait(play: Play) -> None:
    """And not by a read that need not wait: there asyncio's throws nothing either."""

    async def handler(face: Face) -> None:
        await face.read_exactly(1)
        face.note((this_task().cancel("self"), this_task().cancelling()))
        face.note(await face.read_exactly(0))
        try:
            await face.read_exactly(3)
        except asyncio.CancelledError as error:
            face.note(error.args)
        face.note((this_task().cancelling(), this_task().uncancel()))
        face.note(await face.read_exactly(3))

    async def main(scene: Scene) -> None:
        client, _ = await scene.open()
        client.put(b"1")
        await scene.noted(4)
        client.put(b"234")
        await scene.noted(5)

    assert play(handler, main) == [(True, 1), b"", ("self",), (1, 0), b"234"]


def test_cancel_without_uncancel_is_remembered(play: Play) -> None:
    async def handler(face: Face) -> str:
        for _ in range(2):
            try:
                await face.read(10)
            except asyncio.CancelledError:
                face.note(this_task().cancelling())
        face.note(await face.read(10))
        return "done"

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        for count in (1, 2):
            assert task.cancel()
            await scene.noted(count)
        client.put(b"b")
        scene.note(await task)
        scene.note((task.cancelled(), task.cancelling(), task.cancel(), task.uncancel()))

    assert play(handler, main) == [1, 2, b"b", "done", (False, 2, False, 1)]


def test_cancel_half_way_through_a_record_loses_nothing(play: Play) -> None:
    async def handler(face: Face) -> None:
        for _ in range(3):
            try:
                face.note(await face.read_exactly(6))
            except asyncio.CancelledError:
                face.note("cancelled")
        face.note(await face.read_until(b"\n"))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        for number, part in enumerate((b"ab", b"cd")):
            client.put(part)
            await arrived()
            task.cancel()
            await scene.noted(number + 1)
        client.put(b"efline\n")
        await scene.noted(4)

    assert play(handler, main) == ["cancelled", "cancelled", b"abcdef", b"line\n"]


def test_cancel_reaches_whoever_awaits_the_task(play: Play) -> None:
    messages: list[object] = []

    async def handler(face: Face) -> None:
        await face.read(10)

    async def main(scene: Scene) -> None:
        _, face = await scene.open()
        task = face.task
        task.cancel("enough")
        try:
            await task
        except asyncio.CancelledError as error:
            messages[:] = error.args
            scene.note("cancelled")
        scene.note((task.done(), task.cancelled()))

    assert play(handler, main) == ["cancelled", (True, True)]
    assert messages == ["enough"]  # With ours; asyncio's own server, up to 3.12, asks the task first and takes it.


def test_cleanup_of_a_cancelled_handler_may_read_and_write(play: Play) -> None:
    async def handler(face: Face) -> None:
        try:
            await face.read(10)
        finally:
            face.write(b"bye")
            face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        task = face.task
        task.cancel()
        assert await client.receive() == b"bye"
        client.put(b"ack")
        await asyncio.wait([task])
        scene.note(task.cancelled())

    assert play(handler, main) == [b"ack", True]


def test_cancel_from_another_thread_goes_through_the_loop(play: Play) -> None:
    async def handler(face: Face) -> None:
        await face.read(10)

    async def main(scene: Scene) -> None:
        _, face = await scene.open()
        task = face.task
        await asyncio.to_thread(lambda: scene.loop.call_soon_threadsafe(task.cancel))
        await asyncio.wait([task])
        scene.note(task.cancelled())

    assert play(handler, main) == [True]


def test_cancelled_task_that_holds_a_lock_lets_go_of_it(play: Play) -> None:
    locks: list[asyncio.Lock] = []

    async def handler(face: Face) -> None:
        if face is face.scene.faces[0]:
            locks[:] = [asyncio.Lock()]
            face.note("first")
        async with locks[0]:
            face.note(await face.read(10))

    async def main(scene: Scene) -> None:
        _, first = await scene.open()
        client, _ = await scene.open()
        client.put(b"b")
        first.task.cancel()
        await scene.noted(2)

    assert play(handler, main) == ["first", b"b"]


def test_read_that_raises_in_the_middle_of_a_cancel_raises_the_cancel(play: Play) -> None:
    """The peer resets while the cancellation is on its way."""

    async def handler(face: Face) -> None:
        try:
            await face.read(10)
        except asyncio.CancelledError:
            face.note("cancelled")
        try:
            await face.read(10)
        except ConnectionResetError:
            face.note("reset")

    async def main(scene: Scene) -> None:
        client, face = await scene.open()
        face.task.cancel()
        client.reset()
        await scene.noted(2)

    assert play(handler, main) == ["cancelled", "reset"]
