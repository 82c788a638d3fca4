"""Logging: one event, one line, for people and for grep.

    2026-11-23T06:40:12.123Z info supervisor event="worker ready" shard=3 pid=123

The standard library's `logging` underneath, so that an app's own loggers come out in the same shape. A traceback
follows its line, indented by a bar.

A log that cannot be written never hurts the service: a line that the descriptor does not take at once (disk full,
reader gone, reader asleep) is dropped and counted, and the count is logged when writing works again.

Lives here: the shape of a line, and writing it. Must not live here: what is worth logging.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import Any, Final

__all__ = ["Log", "LogHandler", "get_logger", "set_up"]

ROOT: Final = "shardnet"
# What POSIX promises to write whole to a pipe that polls writable: written in such pieces, a line never blocks.
PIECE_BYTES: Final = select.PIPE_BUF
STDERR: Final = 2
# Characters that would make a bare value ambiguous or unreadable.
QUOTE_IF: Final = frozenset(' "=\\')
LEVELS: Final = {"CRITICAL": "critical", "ERROR": "error", "WARNING": "warning", "INFO": "info", "DEBUG": "debug"}


class Log:
    """Says events on behalf of one part of the program, with fields that are the same in each of its lines."""

    def __init__(self, logger: logging.Logger, fields: dict[str, object]) -> None:
        self._logger = logger
        self._fields = fields

    def debug(self, event: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields, None)

    def info(self, event: str, /, **fields: object) -> None:
        self._log(logging.INFO, event, fields, None)

    def warning(self, event: str, /, **fields: object) -> None:
        self._log(logging.WARNING, event, fields, None)

    def error(self, event: str, exception: BaseException | None = None, /, **fields: object) -> None:
        """Log an error; the exception's traceback, if one is given, follows the line."""
        self._log(logging.ERROR, event, fields, exception)

    def _log(self, level: int, event: str, fields: dict[str, object], exception: BaseException | None) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"shardnet_fields": self._fields | fields}
            self._logger.log(level, "%s", event, exc_info=exception, extra=extra)


def get_logger(who: str, **fields: object) -> Log:
    """The log of `who` ("supervisor", "worker"…); the fields, for instance `shard=3`, stand in each of its lines."""
    return Log(logging.getLogger(f"{ROOT}.{who}"), fields)


def set_up(level: str = "info", *, fd: int = STDERR) -> LogHandler:
    """Send this process's log, and that of the processes it will fork, to a descriptor in the shape of this module.

    May be called again, also in a forked child: the last call counts.

    Args:
        level: `debug`, `info`, `warning` or `error`: what shardnet itself says. Others' loggers: warnings and up.
        fd: Where to; it stays the caller's.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
    handler = LogHandler(fd)
    root.addHandler(handler)
    logging.getLogger(ROOT).setLevel(level.upper())
    return handler


class LogHandler(logging.Handler):
    """Writes records to a descriptor, without ever blocking or raising."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._unreported = 0
        self.dropped = 0  # Lines lost since the beginning, whole or in part.

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = format_record(record)
        except Exception:
            # A value whose __str__ raises, or a format string that does not fit its arguments: the caller's bug,
            # but not a reason to fail the caller.
            text = f'{_timestamp(record.created)} error log event="unprintable record" logger={record.name}\n'
        if self._unreported:
            report = f'{_timestamp(record.created)} warning log event="lines dropped" count={self._unreported}\n'
            if not self._write(report):
                self._drop()
                return
            self._unreported = 0
        if not self._write(text):
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _write(self, text: str) -> bool:
        data = text.encode("utf-8", "backslashreplace")
        poll = select.poll()
        try:
            poll.register(self._fd, select.POLLOUT)
            while data:
                if not any(mask & select.POLLOUT for _, mask in poll.poll(0)):
                    return False
                data = data[os.write(self._fd, data[:PIECE_BYTES]) :]
        except OSError:
            return False  # ENOSPC, EPIPE, EAGAIN, EBADF…: counted by the caller; there is nowhere left to say why.
        return True


def format_record(record: logging.LogRecord) -> str:
    """A record as its line, newline included, and the lines of its traceback."""
    who = record.name.removeprefix(f"{ROOT}.")
    level = LEVELS.get(record.levelname, record.levelname.lower())
    fields: dict[str, Any] = getattr(record, "shardnet_fields", {})
    words = [_timestamp(record.created), level, _value(who), f"event={_quote(record.getMessage())}"]
    words.extend(f"{name}={_value(value)}" for name, value in fields.items())
    line = " ".join(words) + "\n"
    if record.exc_info and record.exc_info[1] is not None:
        traceback = logging.Formatter().formatException(record.exc_info)
        line += "".join(f"  | {row}\n" for row in traceback.splitlines())
    return line


def _timestamp(unix_s: float) -> str:
    whole_s, ms = divmod(int(unix_s * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s)) + f".{ms:03d}Z"


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    bare = text and text.isprintable() and QUOTE_IF.isdisjoint(text)
    return text if bare else _quote(text)


def _quote(text: str) -> str:
    """In double quotes, on one line, with nothing in it that a terminal would obey."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    return f'"{escaped}"'
