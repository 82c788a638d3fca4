"""What a server writes of its connections: the access log, and handlers that raise."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from shardnet.app import Kind
from shardnet.log import AccessLog
from shardnet.log.formats import FORMATS
from shardnet.log.sink import Sink
from shardnet.server import RAISED_LOG_BURST
from tests.hook_kit import KINDS, FakeTime, Notes, clock, conn_echo
from tests.serving import Serving, until

__all__ = ["clock"]  # A fixture.


# What is written.


class Lines:
    """An access log that keeps its fields."""

    def __init__(self, kit: Serving) -> None:
        self.fields: list[dict[str, object]] = []
        kit.server._access_log = AccessLog(Sink(None, FORMATS["json"]), self._shape, {"shard": 0})

    def _shape(self, unix_s: float, level: str, who: str, event: Any, fields: Any, traceback: str) -> str:
        assert (level, who, event, traceback) == ("info", "access", None, "")
        self.fields.append(dict(fields))
        return ""


@KINDS
def test_access_log_has_a_line_for_each_connection(kind: Kind) -> None:
    async def main(kit: Serving) -> None:
        lines = Lines(kit)
        client, conn = await kit.open()
        host, port = client.sock.getsockname()
        client.put(b"12345")
        assert await client.receive() == b"12345"
        client.close()
        await until(lambda: lines.fields)
        [fields] = lines.fields
        duration_s = fields.pop("duration_s")
        assert isinstance(duration_s, float)
        assert 0.0 <= duration_s < 60.0
        assert fields == {
            "peer": f"{host}:{port}",
            "listener": "",
            "connection": conn.id,
            "received_bytes": 5,
            "sent_bytes": 5,
            "reason": "eof",
            "shard": 0,
        }

    with Serving(Notes().app(kind)) as kit:
        kit.run(main(kit))


@pytest.mark.parametrize(
    ("end", "why"), [("reset", "reset"), ("close", "local"), ("raise", "error"), ("drain", "drain")]
)
def test_access_log_says_why(end: str, why: str) -> None:
    async def main(kit: Serving) -> None:
        lines = Lines(kit)
        client, conn = await kit.open()
        match end:
            case "reset":
                client.reset()
            case "close":
                conn.close()
            case "raise":
                client.put(b"raise")
            case "drain":
                assert not await kit.server.drain(0.0)
        await until(lambda: conn.is_closing())
        client.close()
        await until(lambda: lines.fields)
        assert [fields["reason"] for fields in lines.fields] == [why]

    with Serving(Notes().app()) as kit:
        kit.run(main(kit))


def test_access_log_has_connections_that_on_connect_refused() -> None:
    async def main(kit: Serving) -> None:
        lines = Lines(kit)
        client = kit.connect()
        assert await client.receive() == b""
        client.close()
        await until(lambda: lines.fields)
        assert lines.fields[0]["reason"] == "local"

    with Serving(Notes().app(on_connect=lambda conn: conn.close())) as kit:
        kit.run(main(kit))


def test_lines_of_handlers_that_raise_are_limited_and_all_are_counted(clock: FakeTime) -> None:
    """A peer that has found out what makes a handler raise must not fill the disk."""
    more = 30

    async def main(kit: Serving) -> None:
        for _ in range(RAISED_LOG_BURST + more):
            client = kit.connect()
            client.put(b"raise")
            assert await client.receive() == b""
            client.close()
        assert kit.handler_exceptions == RAISED_LOG_BURST + more
        assert len(kit.logged) == RAISED_LOG_BURST
        assert all(event == "handler raised" and "suppressed" not in fields for event, fields, _ in kit.logged)
        clock.now_s += 5.0
        client = kit.connect()
        client.put(b"raise")
        assert await client.receive() == b""
        assert kit.logged[-1][1]["suppressed"] == more

    with Serving(conn_echo) as kit:
        kit.run(main(kit))


def test_nothing_is_logged_of_connections_that_end_well(caplog: pytest.LogCaptureFixture) -> None:
    async def main(kit: Serving) -> None:
        for end in ("close", "reset", "end"):
            client, _ = await kit.open()
            getattr(client, end)()
            await until(lambda: not kit.active())
        assert kit.logged == []

    with caplog.at_level(logging.DEBUG), Serving(Notes().app()) as kit:
        kit.run(main(kit))


@KINDS
def test_handler_that_holds_the_loop_is_told_in_debug_mode(kind: Kind) -> None:
    """asyncio sees only what it calls itself: of bytes that resume a handler directly, it warned of nothing."""

    async def main(kit: Serving) -> None:
        kit.loop.slow_callback_duration = 0.0
        client, conn = await kit.open()
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        told = [fields for event, fields, _ in kit.logged if event == "handler held the loop"]
        assert [fields["connection"] for fields in told] == [conn.id]
        assert 0.0 <= told[0]["took_s"] < 60.0
        client.close()
        await until(lambda: kit.closed())

    with Serving(Notes().app(kind), mode="debug") as kit:
        kit.run(main(kit))


@KINDS
def test_nobody_is_timed_outside_of_debug_mode(kind: Kind) -> None:
    async def main(kit: Serving) -> None:
        kit.loop.slow_callback_duration = 0.0
        client, conn = await kit.open()
        assert not type(conn).__name__.startswith("Timed")
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        client.close()
        await until(lambda: kit.closed())
        assert kit.logged == []

    with Serving(Notes().app(kind)) as kit:
        kit.run(main(kit))
