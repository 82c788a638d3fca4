"""What handlers may do and may get wrong, in real workers."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tests.harness.client import Client
from tests.harness.server import TRACEBACK, ShardedServer

pytestmark = pytest.mark.process


@pytest.mark.fault("F64")
@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt", "SystemExit"])
@pytest.mark.parametrize("app", ["tests.process.apps:raising", "tests.process.apps:raising_on_data"])
def test_handler_that_raises_hurts_its_own_connection_only(app: str, error: str) -> None:
    """Its connection ends, one traceback is logged with shard and peer, it is counted, the neighbours live on."""
    with ShardedServer(app, workers=2, expect_tracebacks=1) as server, ExitStack() as stack:
        workers = server.wait_serving()
        neighbours: dict[bytes, list[Client]] = {b"0": [], b"1": []}
        while not all(len(clients) >= 2 for clients in neighbours.values()):
            client = stack.enter_context(Client(server.address))
            neighbours[client.ask(b"hello").partition(b" ")[0]].append(client)
        victim, *others = neighbours[b"1"]
        peer = f"127.0.0.1:{victim.port}"
        victim.send(error.encode() + b"\n")
        assert victim.rest() == b""
        for client in [*others, *neighbours[b"0"]]:
            assert client.ask(b"and you?").endswith(b" and you?")
        victim.close()
        samples = server.wait_metrics(lambda now: now.total("connections_closed_total") > 0)
        assert samples.by("shard", "connections_closed_total", reason="error") == {"0": 0, "1": 1}
        assert samples.by("shard", "handler_exceptions_total") == {"0": 0, "1": 1}
        assert server.worker_pids() == workers
        server.output.wait(f"{error}: it was named", 10.0)
        logged = [line for line in server.output.lines("stderr") if "shard=1" in line and peer in line]
        assert len(logged) == 1, server.output.tail()
        assert any(TRACEBACK in line for line in server.output.lines("stderr"))


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ("sleep", b"slept"),
        ("timeout", b"timed out"),
        ("wait_for", b"timed out"),
        ("task_group", b"90"),
        ("create_task", b"from a task"),
        ("executor", b"another thread"),
        ("subprocess", b"abab 0"),
    ],
)
def test_handler_may_use_asyncio(check: str, answer: bytes) -> None:
    with ShardedServer("tests.process.ecosystem:handler", workers=1) as server, Client(server.address) as client:
        # Twice on one connection: the first use of a thing often sets something up that the second relies on.
        assert client.ask(check.encode()) == answer
        assert client.ask(check.encode()) == answer


def test_handler_may_give_up_a_read_and_read_again() -> None:
    with ShardedServer("tests.process.ecosystem:handler", workers=1) as server, Client(server.address) as client:
        for word in (b"first", b"second"):
            assert client.ask(b"read_with_timeout") == b"go on"
            assert client.ask(word) == word


def test_handler_may_connect_elsewhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, ShardedServer(
        "tests.process.ecosystem:handler", workers=1
    ) as server, Client(server.address) as client:  # fmt: skip
        elsewhere.settimeout(10.0)
        client.send(b"connect %d\n" % elsewhere.getsockname()[1])
        accepted, _ = elsewhere.accept()
        with accepted, accepted.makefile("rb") as lines:
            assert lines.readline() == b"ping\n"
            accepted.sendall(b"pong\n")
            assert client.line() == b"pong"


def test_handler_may_use_a_third_party_client() -> None:
    """httpx, from a handler of each worker at once, asks the server itself how it is."""
    with ShardedServer("tests.process.ecosystem:handler", workers=2) as server, ExitStack() as stack:
        url = "http://{}:{}/healthz".format(*server.metrics_address)
        clients = [stack.enter_context(Client(server.address)) for _ in range(8)]
        for client in clients:
            client.send(f"http {url}\n".encode())
        for client in clients:
            said = client.line()
            assert said.startswith(b"200 200 "), said
            assert b"'shards'" in said


def test_worker_survives_an_error_out_of_its_own_loop() -> None:
    """It is logged, and neither the one that met it nor its neighbour loses the connection."""
    with (
        ShardedServer("tests.process.apps:breaking", workers=1, expect_tracebacks=1) as server,
        Client(server.address) as client,
        Client(server.address) as neighbour,
    ):
        workers = server.wait_serving()
        assert neighbour.ask(b"hello") == b"hello"
        assert client.ask(b"break") == b"break"
        server.output.wait(r'error worker event="internal error" shard=0', 10.0)
        assert client.ask(b"still there") == b"still there"
        assert neighbour.ask(b"and you") == b"and you"
        assert server.worker_pids() == workers
