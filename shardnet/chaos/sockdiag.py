"""Whether a server has accepted a connection, as the kernel knows it.

A connection waits in its listener's queue with no socket of its own. Until it is accepted, its inode, which the kernel
tells anybody through sock_diag, is 0. (sock_diag(7); `inet_diag_req_v2` in linux/inet_diag.h.)

Lives here: asking the kernel. Must not live here: what follows from the answer.
"""

from __future__ import annotations

import errno
import socket
import struct
from types import TracebackType
from typing import Final, Self

from shardnet.errors import SystemFault

__all__ = ["SockDiag"]

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
ALL_STATES: Final = 0xFFFFFFFF
NO_COOKIE: Final = 0xFFFFFFFF
ANSWER_MAX_BYTES: Final = 4096

HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port.
# inet_diag_req_v2: family, protocol, extensions, padding, states; its inet_diag_sockid: ports and addresses as they are
# in packets, interface, cookie.
REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sIII")
STATE_AT: Final = HEADER.size + 1  # inet_diag_msg: family, state, timer, retransmissions, the sockid of 48 bytes,
INODE_AT: Final = HEADER.size + 4 + 48 + 16  # expiry, bytes to read and to send, user, inode.
WAITING_STATES: Final = {1, 3, 8, 12}  # TCP_ESTABLISHED, SYN_RECV, CLOSE_WAIT, NEW_SYN_RECV.


class SockDiag:
    """The kernel's answers about TCP connections of this network namespace, to be used in a `with`.

    Raises `SystemFault` where the kernel does not give any.
    """

    def __init__(self) -> None:
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
        except OSError as exc:
            raise _no_answers(exc.strerror or str(exc)) from exc
        try:
            self._prove()
        except BaseException:
            self._netlink.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._netlink.close()

    def is_accepted(self, server: tuple[str, int], client: tuple[str, int]) -> bool:
        """Whether the server's end of this connection has left the queue: it has been accepted, or is gone.

        Both are IP address and port, of one family.
        """
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        ends = [struct.pack("!H", port) for _, port in (server, client)]
        ends += [socket.inet_pton(family, address) for address, _ in (server, client)]
        body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, ALL_STATES, *ends, 0, NO_COOKIE, NO_COOKIE)
        header = HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
        self._netlink.send(header + body)
        answer = self._netlink.recv(ANSWER_MAX_BYTES)
        kind = HEADER.unpack_from(answer)[1]
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", answer, HEADER.size)[0]
            if number == errno.ENOENT:
                return True
            raise _no_answers(errno.errorcode.get(number, str(number)))
        inode: int = struct.unpack_from("=I", answer, INODE_AT)[0]
        return inode != 0 or answer[STATE_AT] not in WAITING_STATES

    def _prove(self) -> None:
        """See the answer change when a connection of our own is accepted."""
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            client.connect(listener.getsockname())
            ends = listener.getsockname(), client.getsockname()
            before = self.is_accepted(*ends)
            accepted, _ = listener.accept()
            with accepted:
                if before or not self.is_accepted(*ends):
                    raise _no_answers("it does not tell accepted connections from others")


def _no_answers(why: str) -> SystemFault:
    return SystemFault(f"the kernel says nothing about connections (sock_diag: {why}): try modprobe tcp_diag")
