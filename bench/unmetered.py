"""Echo on a worker that does not measure its turns: what metering costs is what the same handlers cost less here.

Only for this comparison: there is no such setting. What is left are plain counts, an addition to a cell of memory each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from bench import handlers
from shardnet import App, Shard

__all__ = ["on_data", "read_send"]


@contextlib.asynccontextmanager
async def without_meter(_: Shard) -> AsyncIterator[None]:
    loop: Any = asyncio.get_running_loop()
    loop._selector._engine.meter = None
    yield


on_data = App(handlers.on_data, lifespan=without_meter)
read_send = App(handlers.read_send, lifespan=without_meter)
