"""The control channel between the supervisor and one child: whole messages over a SOCK_SEQPACKET pair.

One JSON object per packet, so that a packet is a message or is thrown away; nothing can be half read. Every
message has an id of its sender's own counting; an answer carries the id it answers as `re`. A message may bring
descriptors, which its receiver owns from then on.

Lives here: packing, unpacking, and never waiting for the peer. Must not live here: what any message means.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["FDS_MAX", "PACKET_MAX_BYTES", "ControlEndpoint", "Message", "pair"]

PACKET_MAX_BYTES: Final = 65536  # Well below the socket's send buffer (208 KiB): an empty one takes any packet.
RECEIVE_MAX: Final = 64  # Packets per call: a babbling peer gets its turn, not the whole loop.
# A text of an over-long packet is cut to this. A character costs at most 12 bytes in JSON (two escaped
# surrogates), so that two such texts, a failure's message and traceback, always fit.
TEXT_MAX_CHARS: Final = 2500
RESERVED: Final = frozenset({"id", "type", "re", "fds"})
# The peer's buffer is full, the kernel has no memory for the packet, or this user has more descriptors under way in
# packets than it may have open.
FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
FD_BYTES: Final = array.array("i").itemsize
FDS_MAX: Final = 253  # Descriptors that one packet may bring: SCM_MAX_FD of Linux.
# The peer has closed its end, or died with our packets unread.
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


@dataclass(frozen=True, slots=True)
class Message:
    """One message as received. `fields` is whatever the peer wrote: the reader checks it."""

    id: int
    type: str
    fields: dict[str, Any] = field(default_factory=dict)
    re: int | None = None
    fds: tuple[int, ...] = ()  # Descriptors that came with it: the receiver's to close.

    def close_fds(self) -> None:
        """Let go of the descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)


class ControlEndpoint:
    """One end of a control channel. It never blocks, and never raises for what the peer does or fails to do."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._last_id = 0
        self.eof = False  # True once the peer is gone; what it sent before may still be waiting.
        self.corrupt = 0  # Packets that were no message.

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, type: str, /, fds: Collection[int] = (), **fields: Any) -> int | None:  # noqa: A002  # of the wire
        """Send one message.

        Args:
            type: What kind of message.
            fds: Descriptors that the receiver gets its own of, at most FDS_MAX.
            fields: Anything JSON can say, but not named `id`, `type`, `re` or `fds`. If the packet would be longer than
                PACKET_MAX_BYTES, the middle of every long text is left out.

        Returns:
            Its id; None if the peer is gone or does not read, and then nothing was sent.

        Raises:
            ValueError: The fields make no packet: a reserved name, or too much even with its texts cut; or more
                descriptors than a packet may bring.
            TypeError: JSON cannot say one of the fields.
        """
        return self._send(type, None, fields, fds)

    def answer(self, message: Message, /, **fields: Any) -> int | None:
        """Send `ack` for a message that was received; otherwise like `send`."""
        return self.answer_to(message.id, **fields)

    def answer_to(self, id_: int, /, fds: Collection[int] = (), **fields: Any) -> int | None:
        """As `answer`, for the message that had this id."""
        return self._send("ack", id_, fields, fds)

    def receive(self, *, fds_max: int = 0) -> list[Message]:
        """Every message that is waiting, oldest first, at most RECEIVE_MAX of them.

        A packet that is no message is skipped and counted in `corrupt`. Sets `eof` when the peer is gone. With a
        message come at most `fds_max` descriptors; when this process may not have so many more, fewer come, or none.
        """
        messages: list[Message] = []
        for _ in range(RECEIVE_MAX):
            try:
                packet, fds = self._receive_packet(fds_max)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno not in GONE:
                    raise
                self.eof = True
                break
            if not packet:
                self.eof = True
                break
            message = _decode(packet, fds)
            if message is None:
                self.corrupt += 1
                Message(0, "", fds=fds).close_fds()
            else:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Close this end; the peer reads to its end, then sees `eof`. May be called again."""
        self._sock.close()

    def _receive_packet(self, fds_max: int) -> tuple[bytes, tuple[int, ...]]:
        if not fds_max:
            return self._sock.recv(PACKET_MAX_BYTES + 1), ()
        # By hand: `socket.recv_fds` forgets its flags (3.11 to 3.13), and so what we execute would inherit them.
        space = socket.CMSG_SPACE(fds_max * FD_BYTES)
        packet, rights, _, _ = self._sock.recvmsg(PACKET_MAX_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, type_, data in rights:
            if (level, type_) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % FD_BYTES])
        return packet, tuple(fds)

    def _send(self, type_: str, re: int | None, fields: dict[str, Any], fds: Collection[int]) -> int | None:
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"a message's fields may not be named {', '.join(sorted(RESERVED))}")
        header: dict[str, Any] = {"id": self._last_id + 1, "type": type_}
        if re is not None:
            header["re"] = re
        if len(fds) > FDS_MAX:
            raise ValueError(f"a control message with {len(fds)} descriptors: at most {FDS_MAX} fit")
        packet = _encode(header, fields)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
        except OSError as exc:
            if exc.errno in GONE:
                self.eof = True
            elif exc.errno not in FULL:
                raise
            return None
        self._last_id += 1
        return self._last_id


def pair() -> tuple[ControlEndpoint, ControlEndpoint]:
    """Both ends of a new channel. Neither survives an exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ControlEndpoint(ours), ControlEndpoint(theirs)


def _encode(header: dict[str, Any], fields: dict[str, Any]) -> bytes:
    # ASCII with escapes, because a traceback may hold lone surrogates, which UTF-8 cannot say.
    packet = json.dumps(header | fields, separators=(",", ":")).encode("ascii")
    if len(packet) > PACKET_MAX_BYTES:
        cut = {name: _cut(value) if isinstance(value, str) else value for name, value in fields.items()}
        packet = json.dumps(header | cut, separators=(",", ":")).encode("ascii")
    if len(packet) > PACKET_MAX_BYTES:
        raise ValueError(f"a control message of {len(packet)} bytes: at most {PACKET_MAX_BYTES} fit")
    return packet


def _cut(text: str) -> str:
    """The beginning and the end of a long text: a traceback says where at one end and what at the other."""
    half = TEXT_MAX_CHARS // 2
    return text if len(text) <= TEXT_MAX_CHARS else f"{text[:half]}\n[...]\n{text[-half:]}"


def _decode(packet: bytes, fds: tuple[int, ...]) -> Message | None:
    if len(packet) > PACKET_MAX_BYTES:
        return None
    try:
        fields = json.loads(packet)
    except (ValueError, RecursionError):  # Not UTF-8, not JSON, or nested to break the parser.
        return None
    if not isinstance(fields, dict):
        return None
    id_, type_, re = fields.pop("id", None), fields.pop("type", None), fields.pop("re", None)
    if type(id_) is not int or type(type_) is not str or not (re is None or type(re) is int):
        return None
    return Message(id=id_, type=type_, fields=fields, re=re, fds=fds)
