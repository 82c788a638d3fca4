"""Connections: what a handler is given.

`stream` is sending and ending, `reading` adds reading, `connection` the handler's task, `callback` is the kind that has
none; `host` is what they share. `resume` is how a parked task goes on inside the poll that found its bytes, and
`driver` how it does so without its Task.
"""

from shardnet.connection.callback import CallbackConnection
from shardnet.connection.connection import Connection, Shard
from shardnet.connection.host import Host, Limits
from shardnet.connection.reading import LINE_MAX_BYTES
from shardnet.connection.stages import CloseReason
from shardnet.connection.timed import timed

__all__ = [
    "LINE_MAX_BYTES",
    "CallbackConnection",
    "CloseReason",
    "Connection",
    "Host",
    "Limits",
    "Shard",
    "timed",
]
