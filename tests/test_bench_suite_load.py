"""The load generator in C: its histogram, its conversation, and the servers that it must not be content with."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from bench.building import compile_c
from bench.errors import BenchError
from bench.load import run_load

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler: install gcc")

ANSWER_S: Final = 20.0
BUCKET: Final = 1 / 128  # How much too large a percentile may be.
FEW: Final = ("--connections", "4")

Answer = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def program() -> Path:
    return compile_c("load")


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """A server that answers each chunk with what `answer` makes of it, and ends the connection at b""; its port."""

    def serve(sock: socket.socket) -> None:
        # The generator resets its connections when it has seen enough.
        with sock, contextlib.suppress(OSError):
            while (data := sock.recv(65536)) and (said := answer(data)):
                sock.sendall(said)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.settimeout(ANSWER_S)
                threads.append(threading.Thread(target=serve, args=(sock,)))
                threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(ANSWER_S)
            for thread in threads:
                thread.join(ANSWER_S)


def echo(data: bytes) -> bytes:
    return data


class Nth:
    """Echoes all chunks but one, counted over all connections, and answers that with what it is told."""

    def __init__(self, number: int, spoil: Answer) -> None:
        self._left = number
        self._spoil = spoil
        self._lock = threading.Lock()

    def __call__(self, data: bytes) -> bytes:
        with self._lock:
            self._left -= 1
            return self._spoil(data) if self._left == 0 else data


def percentiles(program: Path, values: list[int]) -> dict[str, int]:
    text = "\n".join(map(str, values))
    said = subprocess.run([program, "percentiles"], input=text, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(said.stdout)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_the_sorted_values_but_for_a_bucket(program: Path, seed: int) -> None:
    rng = random.Random(seed)
    values = [int(rng.lognormvariate(10, 2.5)) for _ in range(rng.randint(1, 5000))]
    found = percentiles(program, values)
    values.sort()
    assert found["count"] == len(values)
    assert found["max"] == values[-1]
    for name, per_mille in (("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)):
        exact = values[-(-len(values) * per_mille // 1000) - 1]
        assert exact <= found[name] <= exact * (1 + BUCKET), name


def test_percentiles_of_small_values_are_exact(program: Path) -> None:
    found = percentiles(program, list(range(200, 0, -1)))
    assert found == {"count": 200, "p50": 100, "p90": 180, "p99": 198, "p999": 200, "max": 200}


def test_percentiles_take_any_64_bit_value(program: Path) -> None:
    assert percentiles(program, [0, 2**64 - 1]) == {
        "count": 2, "p50": 0, "p90": 2**64 - 1, "p99": 2**64 - 1, "p999": 2**64 - 1, "max": 2**64 - 1,
    }  # fmt: skip


def test_percentiles_of_nothing_are_nothing(program: Path) -> None:
    assert set(percentiles(program, []).values()) == {0}


def test_ping_counts_every_echo(program: Path) -> None:
    counted: list[int] = []

    def count(data: bytes) -> bytes:
        counted.append(len(data))
        return data

    with serving(count) as port, run_load(program, "ping", port, [*FEW, "--messages", "25", "--warmup", "3"]) as load:
        load.expect("ready")
        assert sum(counted) == 4 * 3 * 64
        load.go()
        result = load.expect("result")
        assert (result["messages"], result["connections"], result["size_bytes"]) == (4 * 25, 4, 64)
        assert sum(counted) == 4 * (3 + 25) * 64
        assert 0 < result["p50_us"] <= result["p99_us"] <= result["p999_us"] <= result["max_us"]
        assert result["cpu_s"] > 0
        assert result["seconds"] > 0


def test_ping_for_a_time_ends_when_the_last_echo_is_back(program: Path) -> None:
    with serving(echo) as port, run_load(program, "ping", port, [*FEW, "--seconds", "0.05"]) as load:
        load.expect("ready")
        load.go()
        result = load.expect("result")
        assert result["messages"] > 0
        assert result["seconds"] >= 0.05


def test_ping_puts_messages_together_that_come_in_pieces(program: Path) -> None:
    """Larger than any buffer on the way, so that sends and echoes are partial."""
    options = ["--connections", "2", "--size", "5000000", "--messages", "2", "--warmup", "1"]
    with serving(echo) as port, run_load(program, "ping", port, options) as load:
        load.expect("ready")
        load.go()
        assert load.expect("result")["messages"] == 4


def test_storm_opens_all_and_has_each_echoed_once(program: Path) -> None:
    peers: list[int] = []

    def count(data: bytes) -> bytes:
        peers.append(len(data))
        return data

    options = ["--connections", "150", "--size", "100", "--in-flight", "20"]
    with serving(count) as port, run_load(program, "storm", port, options) as load:
        load.expect("ready")
        assert not peers
        load.go()
        assert load.expect("result")["messages"] == 150
        assert sum(peers) == 150 * 100


def test_idle_goes_step_by_step_and_holds(program: Path) -> None:
    received: list[bytes] = []

    def count(data: bytes) -> bytes:
        received.append(data)
        return data

    with serving(count) as port, run_load(program, "idle", port, ["--steps", "3,10"]) as load:
        load.expect("ready")
        for step in (3, 10):
            load.go()
            assert load.expect("step")["connections"] == step
            assert len(received) == step
    assert len(set(received)) == 10, "each connection says something else"


def run(program: Path, port: int, mode: str, options: Sequence[str]) -> None:
    with run_load(program, mode, port, options) as load:
        load.expect("ready")
        load.go()
        load.expect("result")


@pytest.mark.parametrize("which", [1, 4, 30])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes(reversed(data)),
        lambda data: data + b"x",
        lambda data: bytes(len(data)),
    ],
    ids=["last-bit", "reversed", "too-much", "zeros"],
)
def test_a_server_that_echoes_something_else_is_an_error(program: Path, which: int, spoil: Answer) -> None:
    with serving(Nth(which, spoil)) as port, pytest.raises(BenchError, match="wrong-bytes: connection"):
        run(program, port, "ping", [*FEW, "--messages", "100", "--warmup", "1"])


def test_a_server_that_echoes_an_earlier_message_is_an_error(program: Path) -> None:
    first: list[bytes] = []

    def stale(data: bytes) -> bytes:
        first.append(data)
        return first[0]

    with serving(stale) as port, pytest.raises(BenchError, match="wrong-bytes"):
        run(program, port, "ping", ["--connections", "1", "--messages", "5", "--warmup", "1"])


@pytest.mark.parametrize("mode", ["ping", "storm"])
def test_a_server_that_closes_is_an_error(program: Path, mode: str) -> None:
    closed = r"closed: the server closed connection \d+ after 0 of 64 bytes"
    with serving(Nth(3, lambda _: b"")) as port, pytest.raises(BenchError, match=closed):
        run(program, port, mode, [*FEW, "--size", "64"])


def test_a_server_that_says_nothing_is_an_error_after_the_timeout(program: Path) -> None:
    released = threading.Event()

    def hold(data: bytes) -> bytes:
        released.wait(ANSWER_S)
        return data

    waiting = r"timeout: nothing came for 0\.2 s, and 4 connections wait"
    with serving(hold) as port:
        try:
            with pytest.raises(BenchError, match=waiting):
                run(program, port, "ping", [*FEW, "--timeout", "0.2"])
        finally:
            released.set()


def test_a_port_that_nobody_listens_on_is_an_error(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BenchError, match="refused: connection 0"):
        run(program, port, "ping", FEW)


def test_a_generator_that_nobody_listens_to_any_more_ends(program: Path) -> None:
    with serving(echo) as port:
        process = subprocess.Popen(
            [program, "ping", "--port", str(port), *FEW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        process.stdin.close()
        assert process.wait(ANSWER_S) == 0
        process.stdout.close()


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nap"], ["ping"], ["ping", "--port", "0"], ["ping", "--port", "9x"], ["idle", "--port", "9"],
        ["idle", "--port", "9", "--steps", "10,3"], ["ping", "--port", "9", "--sizes", "3"],
    ],
)  # fmt: skip
def test_a_command_line_that_is_wrong_is_refused(program: Path, arguments: list[str]) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=ANSWER_S)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "load: " in done.stderr
