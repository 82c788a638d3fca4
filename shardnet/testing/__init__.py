"""The test kit: what a test of an app, or of shardnet itself, needs.

`serve` runs a real server in the test's own event loop, `ShardedServer` the whole of it as a subprocess, `Pair` makes
two connections without sockets, and `FakeClock` and `FakeSystem` stand in for the kernel below a supervisor. Nothing
in shardnet imports it, and nothing in it needs pytest, but `plugin`, which pytest loads.

The names below are looked up when they are first used: pytest imports this package at every start, for everybody who
has shardnet installed.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from shardnet.testing.clock import FakeClock
    from shardnet.testing.fakesystem import FakeChild, FakeSystem, StoryOver
    from shardnet.testing.pair import Pair
    from shardnet.testing.samples import Samples
    from shardnet.testing.serving import Serving, serve
    from shardnet.testing.sharded import ShardedServer, ShardHealth

__all__ = [
    "FakeChild",
    "FakeClock",
    "FakeSystem",
    "Pair",
    "Samples",
    "Serving",
    "ShardHealth",
    "ShardedServer",
    "StoryOver",
    "serve",
]

_HOMES: Final = {
    "FakeChild": "shardnet.testing.fakesystem",
    "FakeClock": "shardnet.testing.clock",
    "FakeSystem": "shardnet.testing.fakesystem",
    "Pair": "shardnet.testing.pair",
    "Samples": "shardnet.testing.samples",
    "Serving": "shardnet.testing.serving",
    "ShardHealth": "shardnet.testing.sharded",
    "ShardedServer": "shardnet.testing.sharded",
    "StoryOver": "shardnet.testing.fakesystem",
    "serve": "shardnet.testing.serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shardnet.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
