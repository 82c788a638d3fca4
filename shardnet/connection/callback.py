"""Connections whose chunks go to a plain callback."""

from __future__ import annotations

from contextvars import Context, copy_context

from shardnet.connection._steps import try_in_with
from shardnet.connection.connection import Connection
from shardnet.connection.stages import OPEN, CloseReason


class CallbackConnection(Connection):
    """A connection whose chunks go to `on_data(conn, data)`, one after the other, without a task.

    While much is unsent it is not read, so that a peer that asks but does not listen waits.
    """

    __slots__ = ("_context",)

    def start(self) -> None:
        self._context: Context = copy_context()  # What one connection sets, another does not see.
        self._read_on()

    def end_if_idle(self) -> bool:
        if self._stage != OPEN or not self._nothing_pending():
            return False
        self._close(CloseReason.DRAIN)
        return True

    def resume(self) -> None:
        self._paused = False
        if self._leftover is not None:
            self._host.engine.defer(self._deliver_leftover)
        else:
            self._read_on()

    def on_received(self, start: int, size: int) -> None:
        if self._stage != OPEN:
            self._discard(size)
        elif self._paused:  # By an earlier completion of the same batch.
            self._put_behind(self._host.swap.take(start, size))
        else:
            self._deliver(self._host.swap.take(start, size))

    def on_end(self) -> None:
        if self._stage == OPEN and (self._paused or self._ended):
            return  # By an earlier completion of the same batch; the read that `resume` posts meets the end again.
        Connection.on_end(self)
        self._on_peer_ended()

    def _on_peer_ended(self) -> None:
        self._close(CloseReason.EOF)

    def on_progress(self) -> None:
        Connection.on_progress(self)
        if self.unsent_bytes <= self._host.limits.write_low_bytes:
            self._read_on()

    def _deliver_leftover(self) -> None:
        if self._leftover is not None and not self._paused and self._stage == OPEN:
            self._deliver(self._consume(len(self._leftover)))

    def _deliver(self, data: bytes) -> None:
        error = try_in_with(self._context, self._host.handler, self, data)
        if error is not None:  # Also SystemExit: a handler ends its connection, never the worker.
            self.end_after(error)
            del error  # Its frames refer to this one.
        self._read_on()

    def _read_on(self) -> None:
        if self.unsent_bytes and self.unsent_bytes > self._host.limits.write_high_bytes:
            return  # `on_progress` comes back to it.
        if self._wants_more() and not self._wanted:
            self.post_read()

    def _wants_more(self) -> bool:
        # What is left over comes first: `_deliver_leftover` comes back to it.
        return self._stage == OPEN and not (self._paused or self._ended or self._leftover is not None)
