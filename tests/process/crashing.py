"""An echo that will not load in the worker that holds a certain listener, loaded as `tests.process.crashing:handler`.

Which listener: its inode stands in the file that CRASHING_SHARD_FILE names; while there is no such file all load. A
shard keeps its listener for life, so the inode says which shard dies at boot, and only a test knows of it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shardnet.connection import Connection


def _holds(inode: int) -> bool:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # The listing's own descriptor is gone by now.
            if os.fstat(int(entry.name)).st_ino == inode:
                return True
    return False


_file = Path(os.environ["CRASHING_SHARD_FILE"])
if _file.exists() and _holds(int(_file.read_text())):
    os._exit(3)


async def handler(conn: Connection) -> None:
    async for data in conn:
        await conn.send(data)
