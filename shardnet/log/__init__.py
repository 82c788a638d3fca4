"""Logging: one event, one line, for people and for grep; or one JSON object, for programs.

    2026-11-23T06:40:12.123Z info supervisor event="worker ready" shard=3 pid=123

The standard library's `logging` underneath, so that an app's own loggers come out in the same shape. The access log is
a line for each connection that has ended.

Lives here: the shape of a line, writing it, files and their rotation. Must not live here: what is worth logging.
"""

from shardnet.log.access import AccessLog, access_log
from shardnet.log.logger import Log, LogHandler, LogOptions, get_logger, level, reopen, set_level, set_up
from shardnet.log.ratelimit import RateLimit

__all__ = [
    "AccessLog",
    "Log",
    "LogHandler",
    "LogOptions",
    "RateLimit",
    "access_log",
    "get_logger",
    "level",
    "reopen",
    "set_level",
    "set_up",
]
