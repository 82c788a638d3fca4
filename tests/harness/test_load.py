"""The load generator is believed when it says that nothing was lost, so here things are lost, and it says so.

The server is a few lines of blocking sockets in the test; the clients run in their own process as always.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.harness.loading import RunningLoad
from tests.harness.report import Outcome, Report

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10.0)
        yield listening


def loading(listener: socket.socket, connections: int = 1, messages: int = 1, hang_s: float = 10.0) -> RunningLoad:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    return RunningLoad(
        [address], connections=connections, messages=messages, max_size_bytes=1000, greeting="hi\n", hang_s=hang_s
    )


def wait_readable(sock: socket.socket) -> None:
    assert select.select([sock], [], [], 10.0)[0]


def assert_only(report: Report, *outcomes: Outcome) -> None:
    assert {name: n for name, n in report.outcomes.items() if n} == {
        outcome: outcomes.count(outcome) for outcome in outcomes
    }


def test_load_completes_a_session_with_a_faithful_server(listener: socket.socket) -> None:
    with loading(listener, messages=3) as running:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hi\n")
            while data := accepted.recv(100):
                accepted.sendall(data)
        report = running.wait()
    assert_only(report, Outcome.COMPLETED)
    assert report.messages == 3
    assert report.received_bytes == report.sent_bytes + len(b"hi\n")


def test_load_counts_a_connection_refused_when_nobody_listens(listener: socket.socket) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    with RunningLoad([address], connections=2, messages=1) as running:
        report = running.wait()
    assert_only(report, Outcome.REFUSED, Outcome.REFUSED)
    assert report.established == 0


def test_load_counts_a_connection_reset_in_the_queue_as_unserved(listener: socket.socket) -> None:
    """The loss that the listener bank exists to prevent: the listener closes with a connection in its queue."""
    with loading(listener, connections=2) as running:
        accepted, _ = listener.accept()
        with accepted:
            wait_readable(listener)
            listener.close()
            accepted.sendall(b"hi\n")
            while data := accepted.recv(100):
                accepted.sendall(data)
        report = running.wait()
    assert_only(report, Outcome.COMPLETED, Outcome.UNSERVED_RESET)
    assert report.established == 2


def test_load_counts_a_reset_after_the_first_byte_as_served(listener: socket.socket) -> None:
    with loading(listener) as running:
        accepted, _ = listener.accept()
        accepted.sendall(b"hi\n")
        wait_readable(accepted)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        accepted.close()
        report = running.wait()
    assert_only(report, Outcome.SERVED_RESET)


def test_load_counts_an_early_end_of_stream(listener: socket.socket) -> None:
    with loading(listener, connections=2) as running:
        silent, _ = listener.accept()
        silent.close()
        greeting, _ = listener.accept()
        greeting.sendall(b"hi\n")
        assert greeting.recv(1)
        greeting.shutdown(socket.SHUT_WR)
        report = running.wait()
        greeting.close()
    assert_only(report, Outcome.UNSERVED_EOF, Outcome.SERVED_EOF)


def test_load_counts_silence_as_hung(listener: socket.socket) -> None:
    with loading(listener, connections=2, hang_s=0.5) as running:
        silent, _ = listener.accept()
        greeting, _ = listener.accept()
        greeting.sendall(b"hi\n")
        report = running.wait()
        silent.close()
        greeting.close()
    assert_only(report, Outcome.UNSERVED_HUNG, Outcome.SERVED_HUNG)


@pytest.mark.parametrize("answer", [b"ho\n", b"hi\nX"], ids=["wrong", "too-much"])
def test_load_counts_bytes_that_it_did_not_send_as_mismatched(listener: socket.socket, answer: bytes) -> None:
    with loading(listener) as running:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(answer)
            report = running.wait()
    assert_only(report, Outcome.MISMATCHED)


def test_load_notices_one_byte_of_an_echo_changed(listener: socket.socket) -> None:
    with loading(listener) as running:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hi\n")
            data = accepted.recv(2000)
            accepted.sendall(data[:-1] + bytes([data[-1] ^ 1]))
            report = running.wait()
    assert_only(report, Outcome.MISMATCHED)


def test_load_begins_again_after_a_cut_until_it_is_told_to_finish(listener: socket.socket) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with RunningLoad([address], connections=1, messages=1, max_size_bytes=10, repeat=True) as running:
        first, _ = listener.accept()
        assert first.recv(10)
        first.close()
        second, _ = listener.accept()
        second.sendall(second.recv(10))
        running.wait_running()
        assert second.recv(10) == b""
        second.close()
        third, _ = listener.accept()
        third.sendall(third.recv(10))
        assert third.recv(10) == b""
        third.close()
        listener.close()
        report = running.finish()
    assert report.completed == 2
    assert report.count(Outcome.UNSERVED_EOF) == 1
