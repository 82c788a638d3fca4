"""An engine for a loop that runs already: how connections are served in a test's own event loop.

A worker's loop is made on a `EngineSelector`. The loop of a test was made by somebody else, who knows nothing of
engines, so while anybody serves in it its selector is exchanged for one of ours, with all that was registered, and
exchanged back in the end. Between the two the loop runs exactly as a worker's does: handlers are resumed from inside
`select()`. All servers of one loop share one engine, because a loop waits in one place only.

Lives here: exchanging selectors. Must not live here: what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import selectors
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shardnet.catalogue.cells import WorkerCells
from shardnet.errors import UsageError
from shardnet.loop import EngineSelector
from shardnet.server import private_cells
from shardnet.watcher.engine import Engine

SERVERS_MAX: Final = 64  # In one loop at the same time; each has cells of its own to count in.
SWAP_SIZE_BYTES: Final = 65536


class LentSelector(EngineSelector):
    """The stand-in for a loop's selector, and the engine that its servers share."""

    def __init__(self, own: selectors.BaseSelector) -> None:
        counts, self._cells = private_cells(SERVERS_MAX)
        self.engine = Engine(SWAP_SIZE_BYTES, counts)
        super().__init__(self.engine)
        self.own = own
        self.places = set(range(SERVERS_MAX))  # Those that are free.

    def cells_of(self, place: int) -> WorkerCells:
        return dataclasses.replace(self._cells, traffic=(self._cells.traffic[place],))


@contextlib.contextmanager
def lent_engine(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Engine, WorkerCells]]:
    """An engine that the running `loop` turns, and cells of it to count the connections of one listener in.

    To be left by code that the loop has called, not by a handler that was resumed from inside `select()`. Raises
    `UsageError` when the loop has no selector that could be exchanged.
    """
    selector = _lent_selector(loop)
    if not selector.places:
        raise UsageError(f"serve: {SERVERS_MAX} servers run in this event loop already, which is the most")
    place = min(selector.places)
    selector.places.remove(place)
    try:
        yield selector.engine, selector.cells_of(place)
    finally:
        selector.places.add(place)
        if len(selector.places) == SERVERS_MAX:
            _give_back(loop, selector)


def _lent_selector(loop: asyncio.AbstractEventLoop) -> LentSelector:
    own: Any = getattr(loop, "_selector", None)
    if isinstance(own, LentSelector):
        return own
    if not isinstance(own, selectors.BaseSelector) or isinstance(own, EngineSelector):
        name = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise UsageError(
            f"serve: {name} has no selector of asyncio's that could be exchanged: "
            "run the test on asyncio's own event loop, as asyncio.run makes it"
        )
    lent = LentSelector(own)
    try:
        _move(own, lent)
    except BaseException:
        lent.engine.close()
        raise
    loop._selector = lent  # type: ignore[attr-defined]  # where every selector loop of asyncio keeps it
    return lent


def _give_back(loop: asyncio.AbstractEventLoop, lent: LentSelector) -> None:
    loop._selector = lent.own  # type: ignore[attr-defined]
    _move(lent, lent.own)
    lent.close()
    lent.engine.close()


def _move(source: selectors.BaseSelector, target: selectors.BaseSelector) -> None:
    keys: Mapping[Any, selectors.SelectorKey] = source.get_map()
    polled = _polled(source)
    for key in list(keys.values()):
        source.unregister(key.fileobj)
        # Who closes a descriptor and forgets to unregister it has no more to do with its number.
        if polled is None or key.fd in polled:
            with contextlib.suppress(OSError, ValueError):
                target.register(key.fileobj, key.events, key.data)


def _polled(selector: selectors.BaseSelector) -> set[int] | None:
    """What an epoll selector really polls; None for other selectors."""
    if not isinstance(selector, selectors.EpollSelector):
        return None
    lines = Path(f"/proc/self/fdinfo/{selector.fileno()}").read_text().splitlines()
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
