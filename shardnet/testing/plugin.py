"""Fixtures for pytest, which loads this module by itself wherever shardnet is installed.

It must cost nothing to those who test something else: nothing of shardnet is imported before a fixture is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shardnet.testing.serving import Serving
    from shardnet.testing.sharded import ShardedServer

__all__ = ["pytest_runtest_makereport", "sharded_server", "shardnet_serve"]

_SERVERS = pytest.StashKey[list["ShardedServer"]]()
_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def shardnet_serve() -> Callable[..., AbstractAsyncContextManager[Serving]]:
    """`shardnet.testing.serve`, for async tests on asyncio's loop, whichever plugin runs them."""
    from shardnet.testing.serving import serve

    return serve


@pytest.fixture
def sharded_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., ShardedServer]]:
    """Starts real servers: `server = sharded_server("app:handler", workers=4)`, with `ShardedServer`'s arguments.

    They are stopped, and checked, when the test is over. If it failed, they are killed, and what they printed is in its
    report.
    """
    from shardnet.testing.sharded import ShardedServer

    servers = request.node.stash.setdefault(_SERVERS, [])
    with contextlib.ExitStack() as running:

        def start(app: str, **options: Any) -> ShardedServer:
            server = ShardedServer(app, **options)
            server.__enter__()
            running.callback(lambda: server.__exit__(*_ending(request.node)))
            servers.append(server)
            return server

        yield start


class _TestFailed(Exception):
    """Tells a server that is left that it need not end well any more."""


def _ending(item: pytest.Item) -> tuple[Any, Any, Any]:
    """How to leave a server, as `with` would say it."""
    return (_TestFailed, _TestFailed(), None) if item.stash.get(_FAILED, False) else (None, None, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (servers := item.stash.get(_SERVERS, None)):
        item.stash[_FAILED] = True
        if report.when == "call":
            for server in servers:
                report.sections.append((f"Output of the server {server.app}", server.output.tail()))
    return report
