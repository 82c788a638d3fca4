"""Who says something, and the way from there to the sinks."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shardnet.errors import SystemFault, UsageError
from shardnet.log.formats import FORMATS
from shardnet.log.sink import Sink

ROOT: Final = "shardnet"
LEVELS: Final = {"CRITICAL": "critical", "ERROR": "error", "WARNING": "warning", "INFO": "info", "DEBUG": "debug"}
LEVELS_TO_CHOOSE: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What is logged, how, and where to."""

    level: str = "info"  # debug, info, warning or error: what shardnet itself says. Others' loggers: warnings and up.
    format: str = "text"  # text or json
    file: Path | None = None  # None: standard error.
    access_file: Path | None = None  # None: where the log goes.
    access: bool = False  # Whether there is an access log at all.


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

    def error(self, event: str, trouble: BaseException | str | None = None, /, **fields: object) -> None:
        """Log an error; with it goes the traceback of an exception, or a text that looks like one."""
        self._log(logging.ERROR, event, fields, trouble)

    def _log(self, level: int, event: str, fields: dict[str, object], trouble: BaseException | str | None) -> None:
        if self._logger.isEnabledFor(level):
            extra: dict[str, object] = {"shardnet_fields": self._fields | fields}
            if isinstance(trouble, str):
                extra["shardnet_traceback"] = trouble
                trouble = None
            self._logger.log(level, "%s", event, exc_info=trouble, extra=extra)


def get_logger(who: str, **fields: object) -> Log:
    """The log of `who` ("supervisor", "worker"…); the fields, for instance `shard=3`, stand in each of its lines."""
    return Log(logging.getLogger(f"{ROOT}.{who}"), fields)


def set_up(options: LogOptions) -> LogHandler:
    """Send this process's log, and that of the processes it will fork, where the options say.

    May be called again: the last call counts, and closes the files of the one before. A forked child that has closed
    what it inherited calls `reopen`.

    Raises:
        UsageError: There is no such level or format.
        SystemFault: A file cannot be opened.
    """
    set_level(options.level)
    handler = LogHandler(options)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, LogHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    return handler


def set_level(level: str) -> None:
    """What shardnet says from now on: `debug`, `info`, `warning` or `error`, and what is graver.

    Raises:
        UsageError: It is none of these.
    """
    if level not in LEVELS_TO_CHOOSE:
        raise UsageError(f"log level {level!r} is none of {', '.join(LEVELS_TO_CHOOSE)}")
    logging.getLogger(ROOT).setLevel(level.upper())


def level() -> str:
    """What `set_level` was told last."""
    return logging.getLevelName(logging.getLogger(ROOT).level).lower()


def reopen() -> None:
    """Open the log files anew by their names: after a rotation, and first of all in a forked child.

    A file that cannot be opened is said so once, and the old one stays in use.
    """
    handler = current_handler()
    for sink in handler.sinks if handler else ():
        try:
            sink.reopen()
        except OSError as exc:
            get_logger("log").error("cannot reopen log file", file=sink.path, why=exc.strerror)


def current_handler() -> LogHandler | None:
    """What the last `set_up` made; None before the first."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)), None)


class LogHandler(logging.Handler):
    """Writes records to the log's sink, without ever blocking or raising; keeps the access log's sink."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        if options.format not in FORMATS:
            raise UsageError(f"log format {options.format!r} is none of {', '.join(FORMATS)}")
        self.shape = FORMATS[options.format]
        with contextlib.ExitStack() as undo:
            self._sink = self._open(options.file)
            undo.callback(self._sink.close)
            self.access_sink = self._sink if options.access else None
            if options.access and options.access_file not in (None, options.file):
                self.access_sink = self._open(options.access_file)
            undo.pop_all()

    @property
    def dropped(self) -> int:
        """Lines lost since the beginning, whole or in part; the access log's too."""
        return sum(sink.dropped for sink in self.sinks)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        if self.access_sink is None or self.access_sink is self._sink:
            return (self._sink,)
        return (self._sink, self.access_sink)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:
            # A value whose __str__ raises, or a format string that does not fit its arguments: the caller's bug,
            # but not a reason to fail the caller.
            fields = {"logger": record.name}
            line = self.shape(record.created, "error", "log", "unprintable record", fields, "")
        self._sink.write(line, record.created)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> str:
        who = record.name.removeprefix(f"{ROOT}.")
        level = LEVELS.get(record.levelname, record.levelname.lower())
        fields: dict[str, Any] = getattr(record, "shardnet_fields", {})
        traceback: str = getattr(record, "shardnet_traceback", "")
        if record.exc_info and record.exc_info[1] is not None:
            traceback = logging.Formatter().formatException(record.exc_info)
        return self.shape(record.created, level, who, record.getMessage(), fields, traceback)

    def _open(self, path: Path | None) -> Sink:
        if path is None:
            return Sink(None, self.shape)
        try:
            # By its full name: later the current directory may be another one, or gone.
            return Sink(path.absolute(), self.shape)
        except OSError as exc:
            raise SystemFault(
                f"cannot open log file {path}: {exc.strerror or exc}; its folder must exist and be writable"
            ) from exc
