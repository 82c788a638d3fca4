"""Which descriptors each process of a server holds: exactly its own.

One inherited descriptor too many is no small leak. A listener that nobody reads takes its share of all clients and
lets them wait for ever, and a control socket held open by a sibling never reports its end.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.harness.procs import Descriptor, descriptors
from tests.harness.server import ShardedServer, wait_until

pytestmark = pytest.mark.process

SHARDS: Final = 4
STANDARD: Final = ["file", "pipe", "pipe"]  # 0: /dev/null; 1 and 2: the harness's pipes.

# Besides 0-2 and its listeners. The rest is its own, made after the fork: the epoll of its loop, and what wakes that;
# the pipe is for its fault handler.
CHILD: Final = Counter({"unix-seqpacket": 1, "memfd": 1, "eventpoll": 1, "eventfd": 1, "unix-stream": 2, "pipe": 1})


@pytest.mark.fault("F69")
def test_every_process_holds_exactly_its_own_descriptors_also_after_a_crash() -> None:
    with ShardedServer("examples.echo:handler", workers=SHARDS, binds=["127.0.0.1:0", "127.0.0.1:0"]) as server:
        ports = [port for _, port in server.addresses]
        before = server.wait_serving()
        listeners = audit(server, before, ports)
        for shard in (1, 3):
            os.kill(before[shard], signal.SIGKILL)
        server.wait_metrics(lambda now: now.total("shard_restarts_total") == 2)
        after = server.wait_serving()
        assert {shard for shard in after if after[shard] != before[shard]} == {1, 3}
        assert audit(server, after, ports) == listeners


def test_standard_streams_that_are_closed_are_nothing_else_instead() -> None:
    """Started with stdin and stderr closed, the server used 0 and 2 for what it opened first. Each worker's log then
    went to its own epoll, or, with one more closed, to an eventfd or a listener; it could have been a client."""
    closing = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh"]
    with ShardedServer("examples.echo:handler", workers=2, prefix=closing) as server:
        pids = [server.pid, server.exporter_pid(), *server.wait_serving().values()]
        for pid in pids:
            streams = [fd for fd in descriptors(pid) if fd.fd <= 2]
            assert [(fd.fd, fd.identity) for fd in streams if fd.kind == "file"] == [(0, os.devnull), (2, os.devnull)]
            assert [fd.kind for fd in streams] == ["file", "pipe", "file"]


def audit(server: ShardedServer, workers: dict[int, int], ports: list[int]) -> dict[int, list[str]]:
    """Check every process of the server; the inodes of each shard's listeners, in order of the addresses."""
    held = {shard: descriptors(pid) for shard, pid in workers.items()}
    exporter_pid = server.exporter_pid()
    # The connection that asked for `/healthz` a moment ago may be open at the exporter's end still.
    wait_until(lambda: "tcp" not in kinds(descriptors(exporter_pid)))
    exporter = descriptors(exporter_pid)
    assert_standard(exporter, exporter_pid)
    assert kinds(exporter) == CHILD + Counter({"tcp-listen": 1})
    assert [fd.port for fd in exporter if fd.kind == "tcp-listen"] == [server.metrics_address[1]]
    for shard, pid in workers.items():
        assert_standard(held[shard], pid)
        assert kinds(held[shard]) == CHILD + Counter({"tcp-listen": len(ports)})
        assert [fd.port for fd in listening(held[shard])] == ports
    assert_none_shared([*held.values(), exporter])
    listeners = {shard: [fd.identity for fd in listening(fds)] for shard, fds in held.items()}
    everybodys = [inode for inodes in listeners.values() for inode in inodes]
    assert len(everybodys) == len(set(everybodys)) == SHARDS * len(ports)
    supervisor = {fd.identity for fd in descriptors(server.pid)}
    assert supervisor >= set(everybodys), "the supervisor has closed a listener"
    return listeners


def listening(fds: list[Descriptor]) -> list[Descriptor]:
    return sorted((fd for fd in fds if fd.kind == "tcp-listen"), key=lambda fd: fd.fd)


def kinds(fds: list[Descriptor]) -> Counter[str]:
    """How many of each kind, without 0, 1 and 2."""
    return Counter(fd.kind for fd in fds if fd.fd > 2)


def assert_standard(fds: list[Descriptor], pid: int) -> None:
    assert [fd.kind for fd in fds if fd.fd <= 2] == STANDARD, pid
    # What its epoll watches are its own descriptors: an epoll inherited by fork would watch the supervisor's.
    epolls = [fd.fd for fd in fds if fd.kind == "eventpoll"]
    watched = {int(line.split()[1]) for epoll in epolls for line in fdinfo(pid, epoll) if line.startswith("tfd:")}
    assert watched
    assert watched <= {fd.fd for fd in fds if fd.fd > 2}


def fdinfo(pid: int, fd: int) -> list[str]:
    return Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()


def assert_none_shared(processes: list[list[Descriptor]]) -> None:
    """No socket and no eventfd is in two of these; the board's memfd is in all, and is one."""
    seen: Counter[tuple[str, str]] = Counter(
        (fd.kind, fd.identity) for fds in processes for fd in fds if fd.fd > 2 and fd.identity and fd.kind != "memfd"
    )
    assert [key for key, times in seen.items() if times > 1] == []
    assert len({fd.identity for fds in processes for fd in fds if fd.kind == "memfd"}) == 1
