"""The watcher: a proactor for stream sockets, usable alone.

It knows neither asyncio nor anything else of shardnet but its errors.
"""

from typing import Final

from shardnet.watcher.counters import Op

ENGINE: Final = "python"  # Which build of the engine this is.

__all__ = ["ENGINE", "Op"]
