"""The watcher: a proactor for stream sockets, usable alone.

It knows neither asyncio nor anything else of shardnet but its errors.
"""

from typing import Final

from shardnet.watcher._sys import EVENT_IN, EVENT_OUT
from shardnet.watcher.channel import CHUNK_MAX_BYTES, RESET_ERRNOS, Agenda, Channel
from shardnet.watcher.counters import Op, Outcome
from shardnet.watcher.engine import Watcher
from shardnet.watcher.listener import Listener
from shardnet.watcher.timers import Timer

ENGINE: Final = "python"  # Which build of the engine this is.

__all__ = [
    "CHUNK_MAX_BYTES",
    "ENGINE",
    "EVENT_IN",
    "EVENT_OUT",
    "RESET_ERRNOS",
    "Agenda",
    "Channel",
    "Listener",
    "Op",
    "Outcome",
    "Timer",
    "Watcher",
]
