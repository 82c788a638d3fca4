"""Errands: what takes questions to a server, one after the other, without anybody waiting for it.

A terminal has keys to answer while a server thinks, or is stopped and never answers. So an errand is a generator: it
yields the question that it has, or the seconds that it would rest, and is gone on with from the terminal's loop.

Lives here: going on. Must not live here: what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Final

from shardnet.asking import Question, Server
from shardnet.control import Message
from shardnet.errors import ShardnetError, SystemFault

__all__ = ["Ask", "Errand", "Steps", "run"]

PATIENCE_S: Final = 10.0  # The supervisor answers between two turns of its loop; it may be forking.
PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the server."""

    type: str
    fds_max: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


# What an errand is made of: for a question it gets the answer, or what went wrong is raised in it; for seconds, None.
Steps = Generator[Ask | float, Message | None, None]


class Errand:
    """One errand under way. What it lets through is raised where it is gone on with, and then it is over."""

    def __init__(self, server: Server, steps: Steps) -> None:
        self._server = server
        self._steps = steps
        self._question: Question | None = None
        self._until_s = 0.0
        self.over = False
        self._go_on(None)

    def advance(self) -> None:
        """Go on as far as it goes without waiting."""
        if self.over:
            return
        late = time.monotonic() >= self._until_s
        if self._question is None:
            if late:
                self._go_on(None)
            return
        message: Message | ShardnetError | None
        try:
            message = self._question.answer()
        except ShardnetError as error:
            message = error
        if message is None and late:
            message = SystemFault("the server does not answer: its supervisor may be stopped")
        if message is not None:
            self._question.close()
            self._question = None
            self._go_on(message)

    def _go_on(self, with_: Message | ShardnetError | None) -> None:
        """To the next question that could be asked, or the next rest."""
        self.over = True
        while True:
            try:
                wish = self._steps.throw(with_) if isinstance(with_, ShardnetError) else self._steps.send(with_)
            except StopIteration:
                return
            if not isinstance(wish, Ask):
                self.over, self._until_s = False, time.monotonic() + wish
                return
            try:
                self._question = self._server.question(wish.type, fds_max=wish.fds_max, **wish.fields)
            except ShardnetError as error:
                with_ = error
            else:
                self.over, self._until_s = False, time.monotonic() + PATIENCE_S
                return


def run(server: Server, steps: Steps) -> None:
    """Go through with an errand, where nobody has anything else to do."""
    errand = Errand(server, steps)
    while not errand.over:
        errand.advance()
        time.sleep(PAUSE_S)
