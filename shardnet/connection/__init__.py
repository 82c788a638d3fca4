"""Connections: what a handler is given.

`stream` is sending and ending, `connection` adds reading and the handler's task, `callback` the kind without a task,
and `resume` is how a parked task goes on inside the poll that found its bytes.
"""

from shardnet.connection.callback import CallbackConnection
from shardnet.connection.connection import LINE_MAX_BYTES, Connection, Shard
from shardnet.connection.stream import CloseReason, Host, Limits, Stage
from shardnet.connection.timed import timed

__all__ = [
    "LINE_MAX_BYTES",
    "CallbackConnection",
    "CloseReason",
    "Connection",
    "Host",
    "Limits",
    "Shard",
    "Stage",
    "timed",
]
