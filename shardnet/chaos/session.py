"""One client's session with a server that is being hurt, and what came of it.

A client is silent until its connection is accepted. So a connection that is reset before was in a queue that the
server lost: one that had been accepted ends with the end of the stream when its worker dies, for nothing of it was
unread. What this cannot tell apart nobody can, and it does not have to be told apart.

Lives here: one connection, from its first packet to its last. Must not live here: how many there are, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import socket
import struct
import time
from dataclasses import dataclass
from typing import ClassVar, Final

from shardnet.chaos.sockdiag import SockDiag

__all__ = ["LEFT_QUEUE", "PAUSE", "Outcome", "Place", "Session", "Visit"]

LOOK_S: Final = 0.0005  # How soon after a look whether a connection is accepted the next one comes,
LOOK_PART: Final = 0.1  # or after so much of the time that it has waited already.
END_S: Final = 1.0  # For the server to end a connection whose client has. That it answered counts, not this.
ANSWER_MAX_BYTES: Final = 65536
# What the kernel says when this machine, not the server, ran out of something.
OWN_FAULTS: Final = frozenset(
    {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE}
)


class Outcome(enum.IntEnum):
    """How a session ended. The names are those of the report."""

    ANSWERED = 0
    REFUSED = 1
    RESET = 2  # After the handshake, and before it was accepted.
    HUNG = 3  # Not accepted in time.
    CUT = 4  # Accepted, and ended before it was answered, or in the midst of the answer.
    STALLED = 5  # Accepted, and not answered in time.
    OWN_FAULT = 6  # The machine of the clients failed them; nothing is said about the server.


# In the place of an outcome, a record of how late a process of clients was itself: its second time less its first.
PAUSE: Final = 255
LEFT_QUEUE: Final = {Outcome.ANSWERED, Outcome.CUT, Outcome.STALLED}  # It was accepted.


@dataclass(frozen=True, slots=True)
class Session:
    """What a client saw. Times are on the monotonic clock, which all processes of a machine share."""

    FORM: ClassVar = struct.Struct("=dddB")

    started_s: float
    ended_s: float  # With the first byte of the answer, if it came to that.
    accept_wait_s: float  # From connect() until it was seen accepted; where that did not happen, until its end.
    outcome: Outcome

    def pack(self) -> bytes:
        return self.FORM.pack(self.started_s, self.ended_s, self.accept_wait_s, self.outcome)

    @classmethod
    def unpack(cls, data: bytes) -> Session:
        started_s, ended_s, accept_wait_s, outcome = cls.FORM.unpack(data)
        return cls(started_s, ended_s, accept_wait_s, Outcome(outcome))

    @property
    def wait_s(self) -> float:
        return self.ended_s - self.started_s


@dataclass(frozen=True, slots=True)
class Place:
    """Where sessions take place."""

    address: tuple[str, int]  # IP address and port.
    request: bytes  # What is sent once the connection is accepted; any answer will do.
    timeout_s: float
    diag: SockDiag


class Visit:
    """One session under way."""

    __slots__ = ("_accepted_s", "_ended_s", "_place", "_sock", "_started_s")

    def __init__(self, place: Place) -> None:
        self._place = place
        self._accepted_s = 0.0
        self._ended_s = 0.0

    async def run(self) -> Session:
        """From connect() to the end."""
        self._started_s = time.monotonic()
        try:
            outcome = await self._outcome()
        except OSError as exc:  # Not even a socket.
            if exc.errno not in OWN_FAULTS:
                raise
            outcome = Outcome.OWN_FAULT
        now_s = time.monotonic()
        ended_s = self._ended_s or now_s
        return Session(self._started_s, ended_s, (self._accepted_s or ended_s) - self._started_s, outcome)

    async def _outcome(self) -> Outcome:
        family = socket.AF_INET6 if ":" in self._place.address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            self._sock = sock
            try:
                async with asyncio.timeout(self._place.timeout_s):
                    return await self._talk()
            except ConnectionRefusedError:
                return Outcome.REFUSED
            except ConnectionError:
                return Outcome.CUT if self._accepted_s else Outcome.RESET
            except TimeoutError:
                return Outcome.STALLED if self._accepted_s else Outcome.HUNG

    async def _talk(self) -> Outcome:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._sock, self._place.address)
        if not await self._see_accepted():
            return Outcome.CUT
        await loop.sock_sendall(self._sock, self._place.request)
        if not await loop.sock_recv(self._sock, ANSWER_MAX_BYTES):
            return Outcome.CUT
        self._ended_s = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                self._sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(self._sock, ANSWER_MAX_BYTES):
                    pass
        return Outcome.ANSWERED

    async def _see_accepted(self) -> bool:
        """Wait until it is. False if it is ended, without a reset: so it was accepted."""
        client = self._sock.getsockname()[:2]
        while True:
            # In this order: a connection that leaves the queue by a reset is gone before we ask whether it is in there.
            is_accepted = self._place.diag.is_accepted(self._place.address, client)
            try:
                is_open = bool(self._sock.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                is_open = True
            else:
                is_accepted = True  # It has spoken, or ended.
            now_s = time.monotonic()
            if is_accepted:
                self._accepted_s = now_s
                return is_open
            await asyncio.sleep(max(LOOK_S, (now_s - self._started_s) * LOOK_PART))
