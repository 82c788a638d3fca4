"""Channels: the connections that a watcher made itself, as its user holds them.

Lives here: what a user can ask of one. Must not live here: operations, which are the watcher's.
"""

from __future__ import annotations

from typing import Any

from shardnet.errors import ConnectionFreed
from shardnet.watcher.queued import QueuedEndpoint


class Channel:
    """What an ACCEPT or a CONNECT completion carries: a key for further operations.

    It is open until `Watcher.free(channel)`, or until nobody holds it and nothing is pending on it. `peer` is the
    address of the other end, as `socket.accept` gives it.
    """

    __slots__ = ("__weakref__", "_endpoint", "peer")

    def __init__(self, endpoint: QueuedEndpoint, peer: Any) -> None:
        self._endpoint = endpoint
        self.peer = peer

    @property
    def local(self) -> Any:
        """The address of this end. Raises `ConnectionFreed`, or `OSError`."""
        return self._open().local_address()

    def fileno(self) -> int:
        """The descriptor, which stays the watcher's; -1 once freed."""
        return self._endpoint.fd

    def end_output(self) -> None:
        """Tell the peer that nothing more will be written (FIN); reading goes on. Raises `OSError`, `ConnectionFreed`.

        Writes that wait are not waited for: call it when the last of them has completed.
        """
        self._open().end_output()

    def __repr__(self) -> str:
        return f"<Channel {self._endpoint.fd} of {self.peer!r}>"

    def _open(self) -> QueuedEndpoint:
        if self._endpoint.fd < 0:
            raise ConnectionFreed("asked of a connection that was freed")
        return self._endpoint
