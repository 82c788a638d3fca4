"""A program that hands its listeners over to itself by an exec, run as a process of its own by test_listen_exec.py.

    python -m tests.handing_over ADDRESS …

Opens the addresses, says what they are, and waits for a line on stdin. Then it execs, says so, and answers one
connection on each listener; at the end of stdin it closes everything. Not a test itself.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from shardnet.listen import ListenerBank, parse_address

SHARDS = 2


def say(**facts: object) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def before(texts: list[str]) -> None:
    bank = ListenerBank.open([parse_address(text) for text in texts], SHARDS)
    names = [listener.getsockname() for listener in bank.listeners(0)]
    say(addresses=list(map(str, bank.addresses)), names=names, pid=os.getpid(), fds=open_fds())
    sys.stdin.readline()
    bank.hand_over()
    bank.keep()
    assert not any(os.get_inheritable(fd) for fd in open_fds())
    state = json.dumps(bank.hand_over())
    os.execv(sys.executable, [sys.executable, "-m", "tests.handing_over", "--state", state])


def after(state: dict[str, Any]) -> None:
    bank = ListenerBank.take_over(state)
    listeners = [bank.listeners(shard)[index] for index in range(len(bank.addresses)) for shard in range(SHARDS)]
    say(
        addresses=list(map(str, bank.addresses)),
        shared=bank.shared,
        pid=os.getpid(),
        fds=open_fds(),
        inheritable=[fd for fd in open_fds() if os.get_inheritable(fd)],
        blocking=[listener.fileno() for listener in listeners if listener.getblocking()],
    )
    accepted = 0
    for listener in listeners:
        while True:
            try:
                conn, _ = listener.accept()
            except BlockingIOError:
                break
            conn.sendall(b"served after the exec")
            conn.close()
            accepted += 1
    say(accepted=accepted)
    sys.stdin.readline()
    bank.close()
    say(said="closed", fds=open_fds())
    sys.stdin.readline()


def open_fds() -> list[int]:
    """All but the standard streams, and the one that lists them."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names are wanted
        try:
            os.fstat(int(name))
        except OSError:
            continue
        found.append(int(name))
    return sorted(fd for fd in found if fd > 2)


if __name__ == "__main__":
    if sys.argv[1] == "--state":
        after(json.loads(sys.argv[2]))
    else:
        before(sys.argv[1:])
