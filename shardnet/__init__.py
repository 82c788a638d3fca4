"""shardnet: a multiprocess, sharded network server framework for Python.

The names below are looked up when they are first used, so that `import shardnet.watcher` costs the watcher alone.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from shardnet.app import App
    from shardnet.connection import Connection, Shard
    from shardnet.watcher import Op

__version__: Final = "0.1.0"

__all__ = ["App", "Connection", "Op", "Shard", "__version__"]

_HOMES: Final = {
    "App": "shardnet.app",
    "Connection": "shardnet.connection",
    "Op": "shardnet.watcher",
    "Shard": "shardnet.connection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shardnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
