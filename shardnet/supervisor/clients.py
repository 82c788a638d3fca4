"""The operators who talk to a supervisor: their connections to its control socket.

Lives here: accepting, bounding and forgetting them. Must not live here: what they ask (`requests`).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, Final

from shardnet.control import ControlEndpoint
from shardnet.supervisor.happenings import ClientAsked, Happening

__all__ = ["Clients"]

CLIENTS_MAX: Final = 16
CORRUPT_MAX: Final = 3  # Packets that are no messages: whoever sends so many is no client.


class Clients:
    """Everybody who is connected to one listener, in one epoll. Clients go by numbers, never used twice."""

    def __init__(
        self, epoll: select.epoll, listener: socket.socket | None, may: Callable[[socket.socket], bool]
    ) -> None:
        """`may` decides about an accepted connection. Without a listener there is nobody."""
        self._epoll = epoll
        self._listener = listener
        self._may = may
        self._last = 0
        self._clients: dict[int, ControlEndpoint] = {}  # By number.
        self._numbers: dict[int, int] = {}  # By descriptor.
        if listener is not None:
            epoll.register(listener, select.EPOLLIN)

    def hear(self, fd: int) -> list[Happening]:
        """What there is at this descriptor, if it is one of ours."""
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
            return []
        number = self._numbers.get(fd)
        if number is None:
            return []
        client = self._clients[number]
        asked: list[Happening] = [ClientAsked(number, message) for message in client.receive()]
        if client.eof or client.corrupt >= CORRUPT_MAX:
            self.drop(number)
        return asked

    def answer(self, number: int, re: int, fields: dict[str, Any]) -> None:
        """Answer the client's message of this id; one that has gone, or does not read, is forgotten."""
        client = self._clients.get(number)
        if client is None:
            return
        try:
            sent = client.answer_to(re, **fields)
        except ValueError:
            sent = client.answer_to(re, error="the answer is longer than a packet can be")
        if sent is None:
            self.drop(number)

    def drop(self, number: int) -> None:
        client = self._clients.pop(number, None)
        if client is not None:
            self._epoll.unregister(client.fileno())
            del self._numbers[client.fileno()]
            client.close()

    def close(self) -> None:
        """Forget everybody. The listener is its owner's to close."""
        for number in list(self._clients):
            self.drop(number)
        self._listener = None

    def close_in_child(self) -> None:
        """As `close`, where the epoll is the parent's."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # Gone already, or no descriptor left: it may come again.
            return
        if len(self._clients) >= CLIENTS_MAX or not self._may(sock):
            sock.close()
            return
        client = ControlEndpoint(sock)
        try:
            self._epoll.register(client.fileno(), select.EPOLLIN)
        except OSError:
            client.close()
            return
        self._last += 1
        self._clients[self._last] = client
        self._numbers[client.fileno()] = self._last
