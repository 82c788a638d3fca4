"""Compiled modules beside their sources: all of them, or none.

Lives here: putting them into a tree, and removing them from one. Must not live here: compiling.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from _build import sources
from _build.compiling import Built

HEAD = "# The compiled modules of shardnet, each with digests of its sources, and of these and what compiled them.\n"


def place(built: Sequence[Built], root: Path) -> bool:
    """Put compiled modules into the tree at `root`: False when these very ones are there already.

    While that goes on there is no record of them, and so Python is what runs, also when it is never finished.
    """
    text = HEAD + "".join(f"{each.module.name} {each.module.digest} {each.key}\n" for each in built)
    record = sources.record(root)
    targets = {root / each.module.target for each in built}
    with contextlib.suppress(FileNotFoundError):
        there = targets == set(sources.compiled_files(root)) and record.read_text() == text
        if there and all(filecmp.cmp(each.path, root / each.module.target, shallow=False) for each in built):
            return False
    remove(root)
    for each in built:
        _copy(each.path, root / each.module.target)
    if built:
        written = record.with_suffix(".new")
        written.write_text(text)
        written.replace(record)
    return True


def remove(root: Path) -> None:
    """Leave no compiled module in the tree, for this interpreter."""
    sources.record(root).unlink(missing_ok=True)
    for path in sources.compiled_files(root):
        path.unlink()


def _copy(source: Path, target: Path) -> None:
    """Into a file of its own: a process that has the old one loaded keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_suffix(".new")
    shutil.copyfile(source, written)
    os.chmod(written, 0o755)  # noqa: PTH101 (as is)
    written.replace(target)
