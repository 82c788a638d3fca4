"""The access log: one line for each connection that has ended.

    2026-11-23T06:40:12.123Z info access peer=192.0.2.1:5000 listener=0.0.0.0:9000 connection=17 received_bytes=10
    sent_bytes=2048 duration_s=1.250 reason=eof shard=3 generation=1

(on one line). It stands in the log, or in a file of its own. The log's level does not concern it.
"""

from __future__ import annotations

import time

from shardnet.errors import InternalError
from shardnet.log.formats import Format
from shardnet.log.logger import LogOptions, current_handler
from shardnet.log.sink import Sink


class AccessLog:
    """Writes the lines of one process; `fields` stand in each of them."""

    def __init__(self, sink: Sink, shape: Format, fields: dict[str, object]) -> None:
        self._sink = sink
        self._shape = shape
        self._fields = fields

    def closed(
        self,
        peer: str,
        listener: str,
        connection: int,
        received_bytes: int,
        sent_bytes: int,
        duration_s: float,
        reason: str,
    ) -> None:
        """Say that a connection has ended. Never blocks, never raises for what the disk or the reader does."""
        now_s = time.time()
        fields = {
            "peer": peer,
            "listener": listener,
            "connection": connection,
            "received_bytes": received_bytes,
            "sent_bytes": sent_bytes,
            "duration_s": duration_s,
            "reason": reason,
            **self._fields,
        }
        self._sink.write(self._shape(now_s, "info", "access", None, fields, ""), now_s)


def access_log(options: LogOptions, **fields: object) -> AccessLog | None:
    """The access log, if there is to be one; the fields, for instance `shard=3`, stand in each of its lines.

    `set_up(options)` must have been called, in this process or before its fork.
    """
    if not options.access:
        return None
    handler = current_handler()
    if handler is None or handler.access_sink is None:
        raise InternalError("the access log was asked for before the log was set up with it")
    return AccessLog(handler.access_sink, handler.shape, fields)
