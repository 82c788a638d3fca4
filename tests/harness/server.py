"""A whole shardnet server as the process tests start it: the test kit's, in the project's own directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Final

from shardnet.testing import sharded
from shardnet.testing.output import Finished, Output, run_command
from shardnet.testing.sharded import TRACEBACK
from shardnet.testing.sharded import ShardHealth as Shard

__all__ = ["PROJECT", "TRACEBACK", "Finished", "Output", "Shard", "ShardedServer", "shardnet", "wait_until"]

PROJECT: Final = Path(__file__).resolve().parents[2]


class ShardedServer(sharded.ShardedServer):
    """The kit's, whichever directory pytest was started in."""

    default_cwd: ClassVar[Path | None] = PROJECT

    scrape = sharded.ShardedServer.metrics

    def load_addresses(self) -> list[str]:
        """What the load generator is to be told."""
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses]


def shardnet(
    *arguments: str, timeout_s: float = 30.0, cwd: Path = PROJECT, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a shardnet command that should end by itself; whatever it left running is ended."""
    return run_command(*arguments, timeout_s=timeout_s, cwd=cwd, env=env)


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Look again and again until it is so."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, f"not so within {timeout_s} s"
