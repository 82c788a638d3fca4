"""Looking at a running server through its board, and what is asked of the server beside that.

The board is asked for once, and again when the supervisor seems to be gone: a look is then a few copies of memory that
nobody else has a part in, also while the supervisor is stopped.

Lives here: what is asked of the server, and when. Must not live here: figures, terminals.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, Final

from shardnet.asking import Server, board_of
from shardnet.board import Board
from shardnet.errors import NotRunning, ShardnetError, SystemFault
from shardnet.memory import proportional_bytes
from shardnet.top.errands import Ask, Steps
from shardnet.top.model import View, Watch

__all__ = ["Looking"]

SUPERVISOR_STALE_S: Final = 3.0  # It beats every second.
STACKS_S: Final = 2.0  # A worker that hangs answers from its fault handler alone.
STACKS_AGAIN_S: Final = 0.05


class Looking:
    """One server, looked at again and again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.about: dict[str, Any] = {}  # Name, app, addresses, version, engine: as the server says it itself.
        self._board: Board | None = None
        self._identity: tuple[int, int] | None = None
        self._generation: int | None = None  # That served when the server was asked about itself.
        self._watch = Watch(proportional_bytes)

    def look(self) -> View:
        """What the server is at now.

        Raises:
            NotRunning: There is none that `find` has found.
            SystemFault: Its board cannot be read.
        """
        if self._board is None:
            raise NotRunning("no server")
        view = self._watch.look(self._board.snapshot(), time.monotonic(), time.time(), _minimum(self.about))
        if self._generation is None:
            self._generation = view.generation
        return view

    def has_doubts(self, view: View) -> bool:
        """Whether the server might be none by now, or say something else of itself, as after an upgrade."""
        return (
            view.supervisor_silent_s > SUPERVISOR_STALE_S
            or not _lives(view.supervisor_pid)
            or view.generation != self._generation
        )

    def forget(self) -> None:
        """The server has gone."""
        if self._board is not None:
            self._board.close()
        self._board = self._identity = None

    # Errands.

    def find(self) -> Steps:
        """Find the server, or make sure of it. Lets through `NotRunning`, and `SystemFault` when it does not answer."""
        status = yield Ask("status")
        assert status is not None
        answer = yield Ask("board", fds_max=1)
        assert answer is not None
        self.about, self._generation = status.fields, None
        self._server.stay_with(self.about["name"])
        fd = board_of(answer)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) == self._identity:
            os.close(fd)
            return
        self.forget()
        try:
            self._board = Board.attach(fd, readonly=True)
        except SystemFault as exc:
            said = f"the server runs shardnet {self.about.get('version')}, whose board this one cannot read"
            raise SystemFault(f"{said}: use its own shardnet top, or shardnet upgrade") from exc
        self._identity = (found.st_dev, found.st_ino)
        self._watch = Watch(proportional_bytes)

    def act(self, command: str, shard: int, say: Callable[[str], object]) -> Steps:
        """Have a command carried out on a shard; `say` gets a line of what came of it."""
        try:
            yield Ask(command, fields={"shard": shard})
        except ShardnetError as error:
            say(f"{command} {shard}: {error}")
        else:
            say(f"{command} {shard}: asked for")

    def stacks(self, shard: int, show: Callable[[list[str]], object]) -> Steps:
        """`show` gets where the shard's worker stands, in lines."""
        about = Ask("stacks_said", fields={"shard": shard})
        try:
            asked = yield Ask("stacks", fields={"shard": shard})
            said = yield about
            assert asked is not None
            assert said is not None
            until_s = time.monotonic() + STACKS_S
            while not (said.fields["threads"] and said.fields["tasks"]) and time.monotonic() < until_s:
                yield STACKS_AGAIN_S
                said = yield about
                assert said is not None
        except ShardnetError as error:
            show([f"stacks {shard}: {error}"])
            return
        threads = said.fields["threads"] or "nothing heard: it is stopped"
        tasks = said.fields["tasks"] or "not known: its event loop does not turn"
        head = f"shard {shard}, pid {asked.fields['pid']}, threads:"
        show([head, *threads.splitlines(), "", "tasks:", *tasks.splitlines()])


def _minimum(about: dict[str, Any]) -> int | None:
    """How many shards have to serve for the server to be ready; None: all."""
    said = about.get("ready_min_shards")
    return said if isinstance(said, int) else None


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # It does, and is somebody else's.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
