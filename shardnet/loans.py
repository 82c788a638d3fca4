"""Loans: the listeners of siblings that a worker accepts on, until it is told to give them back.

Lives here: a worker's side of lending. Must not live here: who is lent what (see `supervisor.lending`).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardnet.control import Message
from shardnet.server import Server
from shardnet.watcher.listener import Listener

__all__ = ["Loans"]


@dataclass(slots=True)
class _Loan:
    sockets: list[socket.socket]
    listeners: list[Listener]


class Loans:
    """What a worker has been lent. `addresses` are those of its own listeners, of which every shard has one each."""

    def __init__(self, server: Server, addresses: Sequence[str]) -> None:
        self._server = server
        self._addresses = addresses
        self._loans: dict[int, _Loan] = {}

    def take(self, message: Message) -> tuple[str, dict[str, Any]]:
        """Accept on what came with the message, which is to have descriptors for `addresses`, numbers of addresses:
        the type and the fields of the answer."""
        number = message.fields.get("loan")
        try:
            self._take(message)
        except (OSError, ValueError) as error:
            return "loan_refused", {"loan": number, "why": str(error)}
        return "borrowed", {"loan": number}

    def give_back(self, number: object) -> None:
        """Accept no more on what came with this loan. What is queued is the lender's; one that is unknown is no
        longer ours."""
        loan = self._loans.pop(number, None) if isinstance(number, int) else None
        if loan is not None:
            for listener in loan.listeners:
                self._server.unlisten(listener)
            for sock in loan.sockets:
                sock.close()

    def close(self) -> None:
        """Close everything; nobody must be accepting on it any more."""
        for loan in self._loans.values():
            for sock in loan.sockets:
                sock.close()
        self._loans.clear()

    def _take(self, message: Message) -> None:
        number, indexes = message.fields.get("loan"), message.fields.get("addresses")
        fds = list(message.fds)
        with contextlib.ExitStack() as undo:
            undo.callback(_close_all, fds)
            if not isinstance(number, int) or number in self._loans or not isinstance(indexes, list):
                raise ValueError("a loan that cannot be understood")
            if len(indexes) != len(fds):  # Cut by the kernel, which could not give us so many.
                raise ValueError(f"{len(fds)} of {len(indexes)} listeners arrived: too many open files")
            if any(index not in range(len(self._addresses)) for index in indexes):
                raise ValueError("a loan for an address that is not known")
            loan = _Loan([], [])
            for index in indexes:
                sock = undo.enter_context(socket.socket(fileno=fds[0]))  # Raises for what is no socket.
                del fds[0]
                loan.sockets.append(sock)
                loan.listeners.append(self._server.listen(sock, index, self._addresses[index]))
                undo.callback(self._server.unlisten, loan.listeners[-1])
            undo.pop_all()
        self._loans[number] = loan


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
