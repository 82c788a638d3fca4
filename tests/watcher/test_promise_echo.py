"""One byte there and back, on every engine."""

from __future__ import annotations

from shardnet.watcher import Op
from tests.watcher.kit import Bench


def test_watcher_echoes_a_byte(bench: Bench) -> None:
    ours, theirs = bench.tcp()
    bench.watcher.read(ours)
    theirs.sendall(b"x")
    assert bench.one()[:4] == (Op.READ, None, ours, b"x")
    bench.watcher.write(ours, b"y")
    assert bench.one()[:4] == (Op.WRITE, None, ours, b"y")
    assert theirs.recv(10) == b"y"
