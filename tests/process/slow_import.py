"""An echo whose import takes longer than SLOW_IMPORT_S seconds, loaded as `tests.process.slow_import:handler`."""

from __future__ import annotations

import os
import time

from shardnet.connection import Connection

time.sleep(float(os.environ["SLOW_IMPORT_S"]))


async def handler(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)
