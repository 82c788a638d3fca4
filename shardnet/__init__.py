"""shardnet: a multiprocess, sharded network server framework for Python.

The names below are looked up when they are first used, so that `import shardnet.watcher` costs the watcher alone.
"""

from typing import TYPE_CHECKING, Any, Final

from shardnet import compiled  # noqa: F401 (before all others: it settles which of them are found compiled)

if TYPE_CHECKING:
    from shardnet.app import App
    from shardnet.connection import Connection, Shard
    from shardnet.errors import (
        AddressInUse,
        AppError,
        ConfigError,
        ConnectionBroken,
        ConnectionFreed,
        DeadlineExceeded,
        InternalError,
        PeerError,
        ShardnetError,
        SystemFault,
        UsageError,
        WatcherClosed,
        WriteQueueOverflow,
    )
    from shardnet.watcher import Channel, Completion, Op, Statistics, Watcher

__version__: Final = "0.1.0"

__all__ = [
    "AddressInUse",
    "App",
    "AppError",
    "Channel",
    "Completion",
    "ConfigError",
    "Connection",
    "ConnectionBroken",
    "ConnectionFreed",
    "DeadlineExceeded",
    "InternalError",
    "Op",
    "PeerError",
    "Shard",
    "ShardnetError",
    "Statistics",
    "SystemFault",
    "UsageError",
    "Watcher",
    "WatcherClosed",
    "WriteQueueOverflow",
    "__version__",
]

_HOMES: Final = {
    "App": "shardnet.app",
    "Connection": "shardnet.connection",
    "Shard": "shardnet.connection",
    **dict.fromkeys(("Channel", "Completion", "Op", "Statistics", "Watcher"), "shardnet.watcher"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'shardnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "shardnet.errors")), name)
