"""One process of clients: session after session, each told to the parent when it has ended, until stdin is closed.

`python -m shardnet.chaos.clients` reads a JSON object, one line, and then writes packed `Session`s to stdout.

Lives here: the pace of many clients. Must not live here: what a session is, and what is made of all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from typing import Any, Final

from shardnet.chaos.session import LEFT_QUEUE, PAUSE, Place, Session, Visit
from shardnet.chaos.sockdiag import SockDiag

__all__ = ["main"]

BEAT_S: Final = 0.01  # How often the process looks how late it is itself.
AGAIN_S: Final = 0.1  # After a refusal, or a fault of this machine: a closed port is not hammered.
TELL_PAUSE_S: Final = 0.5
STDIN, STDOUT = 0, 1


class Clients:
    """All clients of this process, on one event loop."""

    def __init__(self, place: Place, clients: int, rate: float, seed: int) -> None:
        """`rate`: sessions a second, of all of them."""
        self._place = place
        self._clients = clients
        self._period_s = clients / rate
        self._random = random.Random(seed).random
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until stdin is closed; sessions under way come to their ends."""
        loop = asyncio.get_running_loop()
        loop.add_reader(STDIN, self._over.set)
        beat = asyncio.create_task(self._beat())
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._go_on())
        beat.cancel()

    async def _go_on(self) -> None:
        await self._pause(self._random() * self._period_s)
        while not self._over.is_set():
            session = await Visit(self._place).run()
            _write(session.pack())
            wait_s = self._period_s * (0.5 + self._random()) - (time.monotonic() - session.started_s)
            if session.outcome not in LEFT_QUEUE:
                wait_s = max(wait_s, AGAIN_S)
            await self._pause(wait_s)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0 and not self._over.is_set():
            await asyncio.sleep(seconds)

    async def _beat(self) -> None:
        """See how late this process is: what it makes a server's client wait is not the server's."""
        worst = told_s = due_s = time.monotonic()
        worst = 0.0
        while True:
            due_s += BEAT_S
            await asyncio.sleep(due_s - time.monotonic())
            now_s = time.monotonic()
            worst = max(worst, now_s - due_s)
            due_s = max(due_s, now_s)
            if now_s - told_s > TELL_PAUSE_S:
                _write(Session.FORM.pack(now_s, now_s + worst, 0.0, PAUSE))
                told_s, worst = now_s, 0.0


def _write(data: bytes) -> None:
    try:
        os.write(STDOUT, data)
    except BrokenPipeError:  # Nobody listens any more.
        os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes stdin.
    line = bytearray()
    while not line.endswith(b"\n"):  # Byte by byte: what follows is for the event loop.
        line += os.read(STDIN, 1) or sys.exit(1)
    settings: dict[str, Any] = json.loads(line)
    with SockDiag() as diag:
        place = Place(
            (settings["host"], settings["port"]), bytes.fromhex(settings["request"]), settings["timeout_s"], diag
        )
        clients = Clients(place, settings["clients"], settings["rate"], settings["seed"])
        asyncio.run(clients.run())


if __name__ == "__main__":
    main()
