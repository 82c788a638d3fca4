"""Talking to a running server: one request, one answer, and waiting until what was asked for has come about.

Each question is a connection of its own, so that an upgrade in between, which drops connections, does not matter.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, Final, Self

from shardnet.control import ControlEndpoint, Message
from shardnet.errors import NotRunning, SystemFault, UsageError
from shardnet.operatorsocket import connect

__all__ = ["Question", "Server", "board_of"]

ANSWER_S: Final = 10.0  # The supervisor answers between two turns of its loop; it may be forking, or starting over.
LOOK_AGAIN_S: Final = 0.1


class Question:
    """One request under way. For whoever has something else to do meanwhile: `fileno()` is readable when it is worth
    asking for the answer. To be used in a `with`, or closed."""

    def __init__(self, endpoint: ControlEndpoint, type_: str, fields: dict[str, Any], fds_max: int = 0) -> None:
        """Takes the endpoint over."""
        self._endpoint = endpoint
        self._fds_max = fds_max
        self._asked = endpoint.send(type_, **fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._endpoint.fileno()

    def answer(self) -> Message | None:
        """The answer, with its descriptors; None while there is none.

        Raises:
            UsageError: The server says why it will not.
            NotRunning: It ended before it answered.
        """
        for message in self._endpoint.receive(fds_max=self._fds_max) if self._asked is not None else ():
            if message.re == self._asked:
                if "error" in message.fields:
                    message.close_fds()
                    raise UsageError(str(message.fields["error"]))
                return message
            message.close_fds()
        if self._endpoint.eof or self._asked is None:
            raise NotRunning("the server closed the connection before it answered")
        return None

    def close(self) -> None:
        self._endpoint.close()


class Server:
    """A running server, by its name; None: the only one there is. `tell` gets what there is to say while it waits."""

    def __init__(self, name: str | None, tell: Callable[[str], object] | None = None) -> None:
        self._name = name
        self._tell = tell

    def stay_with(self, name: str) -> None:
        """From now on it is the server of this name, whoever else comes."""
        self._name = name

    def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            NotRunning: There is no such server, or it ended before it answered.
            UsageError: The server says why it will not.
            SystemFault: It does not answer.
        """
        return self._ask(type_, fields).fields

    def board(self) -> int:
        """A descriptor of the server's board, to be read from; the caller's to close. Raises as `ask`, and
        `SystemFault` when there is no descriptor left, here or there."""
        return board_of(self._ask("board", {}, fds_max=1))

    def question(self, type_: str, *, fds_max: int = 0, **fields: Any) -> Question:
        """Ask, and do not wait. With the answer come at most `fds_max` descriptors. The caller closes it.

        Raises:
            NotRunning: There is no such server.
            SystemFault: It lets nobody in.
        """
        return Question(ControlEndpoint(connect(self._name)), type_, fields, fds_max)

    def _ask(self, type_: str, fields: dict[str, Any], fds_max: int = 0) -> Message:
        with self.question(type_, fds_max=fds_max, **fields) as question:
            deadline_s = time.monotonic() + ANSWER_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                select.select([question.fileno()], [], [], left_s)
                if (message := question.answer()) is not None:
                    return message
        raise SystemFault(f"the server did not answer within {ANSWER_S:.0f} s: its supervisor may be stopped")

    def status(self) -> dict[str, Any]:
        """The whole status, whose `shards` come in several answers when there are many."""
        status = self.ask("status")
        self.stay_with(status["name"])
        while status["next"] is not None:
            more = self.ask("status", **{"from": status["next"]})
            status["shards"] += more["shards"]
            status["next"] = more["next"]
        return status

    def wait(
        self, until: Callable[[dict[str, Any]], bool], timeout_s: float, said: Callable[[dict[str, Any]], str]
    ) -> dict[str, Any]:
        """Look until it is so, and tell how far it is whenever that changes.

        Raises:
            SystemFault: It was not so in time.
            NotRunning: The server has ended meanwhile.
        """
        deadline_s = time.monotonic() + timeout_s
        last = ""
        while True:
            try:
                status = self.status()
            except NotRunning:
                # In the moment of an upgrade nobody accepts; a server that has ended stays away.
                if time.monotonic() >= deadline_s or not self._comes_back():
                    raise
                continue
            if until(status):
                return status
            if (now := said(status)) != last:
                last = now
                if self._tell is not None:
                    self._tell(now)
            if time.monotonic() >= deadline_s:
                raise SystemFault(f"not so within {timeout_s:.0f} s: {now}")
            time.sleep(LOOK_AGAIN_S)

    def _comes_back(self) -> bool:
        deadline_s = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline_s:
            try:
                connect(self._name).close()
            except NotRunning:
                time.sleep(LOOK_AGAIN_S)
            else:
                return True
        return False


def board_of(answer: Message) -> int:
    """The descriptor of the board that came with this answer; the caller's to close.

    Raises:
        SystemFault: There is none.
    """
    if not answer.fds:
        raise SystemFault("the board could not be had: no descriptor is left in this process, or in the server")
    return answer.fds[0]
