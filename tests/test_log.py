"""The log: the shape of its lines, its files, and that it never hurts whoever logs."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import ExitCode, UsageError
from shardnet.log import LogHandler, LogOptions, get_logger, reopen, set_level, set_up


@pytest.fixture(autouse=True)
def clean_root() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LogHandler):
            root.removeHandler(handler)
            handler.close()
    logging.getLogger("shardnet").setLevel(logging.NOTSET)


class Pipe:
    """A log's reader; what is written is whole as soon as the write returns."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def options(self, level: str = "info", *, shape: str = "text") -> LogOptions:
        return LogOptions(level, shape, file=Path(f"/dev/fd/{self.writer}"))

    def read(self) -> str:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        text = b""
        while any(mask & select.POLLIN for _, mask in poll.poll(0)):
            text += os.read(self.reader, 65536)
        return text.decode()

    def read_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(self.read())
        return entry

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for fd in (pipe.reader, pipe.writer):
        try:
            os.close(fd)
        except OSError:
            assert fd == pipe.reader  # The test was about a reader that is gone.


def test_event_is_one_line(pipe: Pipe) -> None:
    set_up(pipe.options())
    get_logger("supervisor").info("worker ready", shard=3, pid=123)
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info supervisor event="worker ready" shard=3 pid=123\n',
        pipe.read(),
    )


def test_bound_fields_stand_in_each_line(pipe: Pipe) -> None:
    set_up(pipe.options())
    log = get_logger("worker", shard=3)
    log.warning("one", x=1)
    log.warning("two")
    first, second = pipe.read().splitlines()
    assert first.endswith(' warning worker event="one" shard=3 x=1')
    assert second.endswith(' warning worker event="two" shard=3')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, "1"),
        (0.12345, "0.123"),
        ("plain", "plain"),
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("line\nbreak", '"line\\nbreak"'),
        ("back\\slash", '"back\\\\slash"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("\udc80", '"\\udc80"'),
        ("größe", "größe"),
        (None, "None"),
    ],
)
def test_value_is_quoted_when_it_would_be_ambiguous(pipe: Pipe, value: object, shown: str) -> None:
    set_up(pipe.options())
    get_logger("worker").info("event", value=value)
    assert pipe.read().rstrip("\n").endswith(f" value={shown}")


def test_traceback_follows_its_line(pipe: Pipe) -> None:
    set_up(pipe.options())
    try:
        raise KeyError("missing")
    except KeyError as exc:
        get_logger("worker").error("handler raised", exc, shard=1)
    first, *rest = pipe.read().splitlines()
    assert first.endswith(' error worker event="handler raised" shard=1')
    assert rest[0] == "  | Traceback (most recent call last):"
    assert rest[-1] == "  | KeyError: 'missing'"


def test_level_decides_what_is_said(pipe: Pipe) -> None:
    set_up(pipe.options("warning"))
    get_logger("worker").info("not this")
    get_logger("worker").warning("this")
    set_level("debug")
    get_logger("worker").debug("and this")
    assert [re.sub(r".*event=", "", line) for line in pipe.read().splitlines()] == ['"this"', '"and this"']


def test_others_loggers_come_out_in_the_same_shape(pipe: Pipe) -> None:
    set_up(pipe.options())
    logging.getLogger("asyncio").warning("slow callback: %d ms", 120)
    assert pipe.read().endswith('Z warning asyncio event="slow callback: 120 ms"\n')


def test_set_up_again_replaces_the_first(pipe: Pipe) -> None:
    set_up(pipe.options())
    set_up(pipe.options())
    get_logger("worker").info("once")
    assert pipe.read().count("once") == 1


def test_line_is_dropped_and_counted_when_the_reader_sleeps(pipe: Pipe) -> None:
    handler = set_up(pipe.options())
    log = get_logger("worker")
    pipe.fill()
    log.info("lost")
    log.info("lost too")
    assert handler.dropped == 2
    pipe.read()
    log.info("kept")
    report, kept = pipe.read().splitlines()
    assert report.endswith('warning log event="lines dropped" count=2')
    assert kept.endswith('event="kept"')


def test_nothing_is_raised_when_the_reader_is_gone(pipe: Pipe) -> None:
    handler = set_up(pipe.options())
    os.close(pipe.reader)
    get_logger("worker").info("lost")
    assert handler.dropped == 1


def test_nothing_is_raised_when_the_disk_is_full() -> None:
    handler = set_up(LogOptions(file=Path("/dev/full")))
    get_logger("worker").info("lost")
    assert handler.dropped == 1


def test_nothing_is_raised_after_the_close(tmp_path: Path) -> None:
    handler = set_up(LogOptions(file=tmp_path / "log"))
    handler.close()
    get_logger("worker").info("lost")
    assert handler.dropped == 1


def test_line_after_a_torn_one_stands_on_its_own(pipe: Pipe) -> None:
    """A pipe takes the first piece of a long line and no more: the next line was glued to it."""
    handler = set_up(pipe.options())
    log = get_logger("worker")
    log.info("long", text="x" * 200_000)
    assert handler.dropped == 1
    torn = pipe.read()
    assert torn
    assert not torn.endswith("\n")
    log.info("next")
    empty, report, line = pipe.read().split("\n", 2)
    assert empty == ""
    assert report.endswith('event="lines dropped" count=1')
    assert line.endswith('info worker event="next"\n')


def test_nothing_is_raised_when_a_value_cannot_be_shown(pipe: Pipe) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    set_up(pipe.options())
    get_logger("worker").info("event", value=Broken())
    assert 'event="unprintable record"' in pipe.read()


def test_long_line_is_written_whole(pipe: Pipe) -> None:
    set_up(pipe.options())
    get_logger("worker").info("long", text="x" * 20_000)
    assert len(pipe.read()) > 20_000


# JSON.


def test_json_event_is_one_object_on_one_line(pipe: Pipe) -> None:
    set_up(pipe.options(shape="json"))
    get_logger("worker", shard=3).warning("two\nlines", pid=7, rate=0.1234567, path=Path("/x"), ok=True, none=None)
    text = pipe.read()
    assert text.count("\n") == 1
    entry = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {
        "level": "warning",
        "who": "worker",
        "event": "two\nlines",
        "shard": 3,
        "pid": 7,
        "rate": 0.123457,
        "path": "/x",
        "ok": True,
        "none": None,
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ("\x1b[31m\x85\u2028", "\x1b[31m\x85\u2028"),
        ("\udc80", "\udc80"),
        ("größe", "größe"),
        (stat.S_IFREG, 0o100000),
        (ExitCode.APP, "4"),
        (2**80, 2**80),
        (["a"], "['a']"),
    ],
)
def test_json_line_is_ascii_and_can_be_read_whatever_the_value(pipe: Pipe, value: object, shown: object) -> None:
    set_up(pipe.options(shape="json"))
    get_logger("worker").info("event", value=value)
    text = pipe.read()
    assert text.isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["value"] == shown


def test_json_field_of_a_name_that_is_taken_is_renamed(pipe: Pipe) -> None:
    set_up(pipe.options(shape="json"))
    get_logger("worker").info("real", event="fake", level="fake", time=1)
    entry = pipe.read_json()
    assert (entry["event"], entry["level"]) == ("real", "info")
    assert (entry["event_"], entry["level_"], entry["time_"]) == ("fake", "fake", 1)


def test_json_event_carries_its_traceback(pipe: Pipe) -> None:
    set_up(pipe.options(shape="json"))
    try:
        raise KeyError("missing")
    except KeyError as exc:
        get_logger("worker").error("handler raised", exc)
    traceback = pipe.read_json()["traceback"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert traceback.endswith("\nKeyError: 'missing'")


def test_json_says_what_was_dropped_and_what_cannot_be_shown(pipe: Pipe) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    set_up(pipe.options(shape="json"))
    pipe.fill()
    get_logger("worker").info("lost")
    pipe.read()
    get_logger("worker").info("event", value=Broken())
    report, unprintable = map(json.loads, pipe.read().splitlines())
    assert (report["event"], report["count"]) == ("lines dropped", 1)
    assert (unprintable["event"], unprintable["logger"]) == ("unprintable record", "shardnet.worker")


# Options.


@pytest.mark.parametrize("options", [LogOptions(level="loud"), LogOptions(level="INFO"), LogOptions(format="xml")])
def test_wrong_option_is_refused(options: LogOptions) -> None:
    with pytest.raises(UsageError, match="is none of"):
        set_up(options)


def test_standard_error_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogOptions())
    reopen()
    get_logger("worker").info("here")
    assert 'event="here"' in capfd.readouterr().err
