"""Hurting a server in each way there is, and seeing that it recovers.

Lives here: one function for each fault, which returns when the server is whole again. Must not live here: the load, and
what the clients see of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from shardnet.chaos.options import FAULTS, Options
from shardnet.chaos.server import TestServer, workers_of
from shardnet.errors import SystemFault

__all__ = ["Injector"]

RECOVERED_S: Final = 60.0  # Far longer than the longest wait between two attempts to fill a shard.
LOOP_LOOK_S: Final = 0.02
CATCH_UP_S: Final = 0.3  # For a worker that can accept again: whoever waited for it did so for this fault.
REST_LOOK_S: Final = 0.5
BURST: Final = 20
BURST_EVERY_S: Final = 0.1


class Injector:
    """Injects faults into one server. Each raises `SystemFault` when the server does not recover."""

    def __init__(self, server: TestServer, options: Options, random_: random.Random) -> None:
        self._server = server
        self._options = options
        self._random = random_
        self._faults: Mapping[str, Callable[[], None]] = {
            "kill": lambda: self._kill(signal.SIGKILL),
            "segfault": lambda: self._kill(signal.SIGSEGV),
            "stop": self._stop,
            "hang": self._hang,
            "crash-loop": self._crash_loop,
            "files": self._exhaust_files,
            "reload": lambda: self._reload(signal.SIGHUP),
            "reload-burst": self._reload_burst,
            "scale": self._scale,
            "upgrade": lambda: self._reload(signal.SIGUSR2),
        }
        assert self._faults.keys() == FAULTS.keys()

    def inject(self, fault: str) -> None:
        """Do it, and wait until it is over."""
        self._faults[fault]()

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, and see that the server is there."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._server.check_alive()
            time.sleep(min(left_s, REST_LOOK_S))

    def wait_whole(self) -> dict[str, Any]:
        """Until every shard has a worker that serves, and none that drains or boots. The status then."""
        return self._wait(self._is_whole, "waiting for every shard to be served by one worker")

    def _is_whole(self, status: dict[str, Any]) -> bool:
        return (
            status["shards_wanted"] == len(workers_of(status)) == self._options.workers
            and status["reload"] is None
            and all(len(shard["workers"]) == 1 and not shard["lent_to"] for shard in status["shards"])
        )

    def _wait(self, until: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        return self._server.wait(until, what, RECOVERED_S)

    def _victim(self) -> tuple[int, int]:
        """A shard and its worker, while another one serves, too: nobody can answer when nobody is there."""
        status = self._wait(lambda status: len(workers_of(status)) > 1, "waiting for two workers that serve")
        return self._random.choice(sorted(workers_of(status).items()))

    def _wait_succeeded(self, shard: int, pid: int) -> None:
        self._wait(
            lambda status: workers_of(status).get(shard, pid) != pid,
            f"waiting for the successor of {pid} (shard {shard})",
        )

    def _kill(self, signum: int) -> None:
        shard, pid = self._victim()
        self._server.kill(pid, signum)
        self._wait_succeeded(shard, pid)

    def _stop(self) -> None:
        shard, pid = self._victim()
        self._server.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self._options.stop_for_s)
        finally:
            self._server.kill(pid, signal.SIGCONT)
        if self._server.workers().get(shard) != pid:
            raise SystemFault(
                f"worker {pid} of shard {shard} was stopped for {self._options.stop_for_s:g} s, and is gone"
            )
        self.rest(CATCH_UP_S)
        self.wait_whole()

    def _hang(self) -> None:
        shard, pid = self._victim()
        self._server.kill(pid, signal.SIGSTOP)
        self._wait_succeeded(shard, pid)

    def _crash_loop(self) -> None:
        shard, _ = self._victim()
        until_s = time.monotonic() + self._options.loop_for_s
        while time.monotonic() < until_s:
            for worker in self._server.status()["shards"][shard]["workers"]:
                if worker["pid"]:  # It may be about to be forked.
                    self._server.kill(worker["pid"], signal.SIGKILL)
            time.sleep(LOOP_LOOK_S)
        self.wait_whole()

    def _exhaust_files(self) -> None:
        _, pid = self._victim()
        with contextlib.suppress(ProcessLookupError):
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            # The limit is of numbers, and a new file has the lowest that is free.
            used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), hard))
            try:
                time.sleep(self._options.stop_for_s)
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.rest(CATCH_UP_S)
        self.wait_whole()

    def _outcomes(self) -> int:
        status = self._server.status()
        return int(status["reloads_ok"] + status["reloads_failed"])

    def _reload(self, signum: int) -> None:
        before = self._server.status()
        self._server.signal(signum)

        def is_over(now: dict[str, Any]) -> bool:
            return bool(now["reloads_ok"] + now["reloads_failed"] > before["reloads_ok"] + before["reloads_failed"])

        now = self._wait(is_over, "waiting for the reload to be over")
        if now["reloads_failed"] > before["reloads_failed"]:
            raise SystemFault(f"the reload failed: {now['reload_failure']}")
        self.wait_whole()

    def _reload_burst(self) -> None:
        before = self._outcomes()
        for _ in range(BURST):
            self._server.signal(signal.SIGHUP)
            self._server.status()  # Who looks sees how many generations there are.
            time.sleep(BURST_EVERY_S)
        self._wait(lambda _: self._outcomes() > before, "waiting for the reloads to be over")
        self.wait_whole()

    def _scale(self) -> None:
        for shards in (1, self._options.workers):
            self._server.scale(shards)
            self._wait(lambda status, wanted=shards: len(workers_of(status)) == wanted, f"scaling to {shards}")  # type: ignore[misc]
        self.wait_whole()
