from __future__ import annotations

import logging
import os
import re
import select
from collections.abc import Iterator

import pytest

from shardnet.log import LogHandler, get_logger, set_up


@pytest.fixture(autouse=True)
def clean_root() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LogHandler):
            root.removeHandler(handler)
    logging.getLogger("shardnet").setLevel(logging.NOTSET)


class Pipe:
    """A log's reader; what is written is whole as soon as the write returns."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def read(self) -> str:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        text = b""
        while any(mask & select.POLLIN for _, mask in poll.poll(0)):
            text += os.read(self.reader, 65536)
        return text.decode()

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
    set_up(fd=pipe.writer)
    get_logger("supervisor").info("worker ready", shard=3, pid=123)
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info supervisor event="worker ready" shard=3 pid=123\n',
        pipe.read(),
    )


def test_bound_fields_stand_in_each_line(pipe: Pipe) -> None:
    set_up(fd=pipe.writer)
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
    set_up(fd=pipe.writer)
    get_logger("worker").info("event", value=value)
    assert pipe.read().rstrip("\n").endswith(f" value={shown}")


def test_traceback_follows_its_line(pipe: Pipe) -> None:
    set_up(fd=pipe.writer)
    try:
        raise KeyError("missing")
    except KeyError as exc:
        get_logger("worker").error("handler raised", exc, shard=1)
    first, *rest = pipe.read().splitlines()
    assert first.endswith(' error worker event="handler raised" shard=1')
    assert rest[0] == "  | Traceback (most recent call last):"
    assert rest[-1] == "  | KeyError: 'missing'"


def test_level_decides_what_is_said(pipe: Pipe) -> None:
    set_up("warning", fd=pipe.writer)
    get_logger("worker").info("not this")
    get_logger("worker").warning("this")
    set_up("debug", fd=pipe.writer)
    get_logger("worker").debug("and this")
    assert [re.sub(r".*event=", "", line) for line in pipe.read().splitlines()] == ['"this"', '"and this"']


def test_others_loggers_come_out_in_the_same_shape(pipe: Pipe) -> None:
    set_up(fd=pipe.writer)
    logging.getLogger("asyncio").warning("slow callback: %d ms", 120)
    assert pipe.read().endswith('Z warning asyncio event="slow callback: 120 ms"\n')


def test_set_up_again_replaces_the_first(pipe: Pipe) -> None:
    set_up(fd=pipe.writer)
    set_up(fd=pipe.writer)
    get_logger("worker").info("once")
    assert pipe.read().count("once") == 1


def test_line_is_dropped_and_counted_when_the_reader_sleeps(pipe: Pipe) -> None:
    handler = set_up(fd=pipe.writer)
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
    handler = set_up(fd=pipe.writer)
    os.close(pipe.reader)
    get_logger("worker").info("lost")
    assert handler.dropped == 1


def test_nothing_is_raised_when_the_disk_is_full() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        handler = set_up(fd=full)
        get_logger("worker").info("lost")
        assert handler.dropped == 1
    finally:
        os.close(full)


def test_nothing_is_raised_when_a_value_cannot_be_shown(pipe: Pipe) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    set_up(fd=pipe.writer)
    get_logger("worker").info("event", value=Broken())
    assert 'event="unprintable record"' in pipe.read()


def test_long_line_is_written_whole(pipe: Pipe) -> None:
    set_up(fd=pipe.writer)
    get_logger("worker").info("long", text="x" * 20_000)
    assert len(pipe.read()) > 20_000
