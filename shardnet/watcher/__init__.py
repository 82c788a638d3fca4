"""The watcher: a proactor for stream sockets, usable alone.

It knows neither asyncio nor anything else of shardnet but its errors. What a user needs is here: `Watcher` and what it
hands out. The parts below, from `engine` on, are what shardnet's workers run on.
"""

from shardnet.compiled import ENGINE, require_engine
from shardnet.errors import (
    ConnectionBroken,
    ConnectionFreed,
    DeadlineExceeded,
    InternalError,
    PeerError,
    ShardnetError,
    SystemFault,
    UsageError,
    WatcherClosed,
)
from shardnet.watcher.channel import Channel
from shardnet.watcher.counters import Op
from shardnet.watcher.operations import Completion
from shardnet.watcher.statistics import Statistics
from shardnet.watcher.watcher import Watcher

require_engine()

__all__ = [
    "ENGINE",
    "Channel",
    "Completion",
    "ConnectionBroken",
    "ConnectionFreed",
    "DeadlineExceeded",
    "InternalError",
    "Op",
    "PeerError",
    "ShardnetError",
    "Statistics",
    "SystemFault",
    "UsageError",
    "Watcher",
    "WatcherClosed",
]
