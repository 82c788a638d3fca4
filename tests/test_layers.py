"""The architecture, as far as imports show it: every arrow points down.

Each part names the parts it may import; a part is a module of `shardnet` or a package with all that is in it. Imports
inside functions count, those for type checking alone do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1] / "shardnet"

MAY_IMPORT: Final[dict[str, set[str]]] = {
    "errors": set(),
    "compiled": {"errors"},
    "watcher": {"compiled", "errors"},
    "board": {"errors"},
    "childhood": set(),
    "control": {"errors"},
    "cpus": {"errors"},
    "config": {"errors"},
    "filelimit": {"errors"},
    "listen": {"errors"},
    "holder": {"errors", "listen"},
    "log": {"errors"},
    "app": {"errors"},
    "check": {"app", "errors"},
    "seats": {"board", "control"},
    "catalogue": {"board", "errors"},
    "metrics": {"board", "errors", "watcher"},
    "ages": set(),
    "garbage": set(),
    "slowturns": {"log", "watcher"},
    "loop": {"watcher"},
    "connection": {"errors", "watcher"},
    "adapters": {"connection", "watcher"},
    "server": {"adapters", "ages", "app", "catalogue", "connection", "errors", "log", "watcher"},
    "operatorsocket": {"errors", "listen"},
    "asking": {"control", "errors", "operatorsocket"},
    "health": {"asking", "config", "errors", "operatorsocket"},
    "chaos": {"asking", "errors", "watcher"},
    "memory": set(),
    "top": {"asking", "board", "catalogue", "control", "errors", "memory"},
    "tasks": set(),
    "loans": {"control", "server", "watcher"},
    "worker": {
        "app", "board", "catalogue", "connection", "control", "errors", "garbage", "loans", "log", "loop", "metrics",
        "seats", "server", "slowturns", "tasks", "watcher",
    },
    "bench": {"childhood", "errors", "filelimit", "listen", "watcher"},
    "exporter": {
        "app", "board", "catalogue", "connection", "control", "errors", "log", "loop", "memory", "seats", "server",
        "watcher",
    },
    "exposing": {"config", "errors", "exporter", "holder", "listen", "log", "seats", "watcher", "__init__"},
    "sources": {"childhood", "errors", "log"},
    "preload": {"app", "childhood", "errors"},
    "supervisor": {
        "board", "catalogue", "childhood", "control", "errors", "listen", "log", "memory", "operatorsocket", "seats",
    },
    "serve": {
        "board", "config", "connection", "cpus", "errors", "exposing", "filelimit", "listen", "log", "loop",
        "operatorsocket", "preload", "seats", "sources", "supervisor", "watcher", "worker", "__init__",
    },
    "cli": {
        "asking", "bench", "chaos", "check", "config", "errors", "health", "holder", "listen", "operatorsocket",
        "serve", "supervisor", "top", "__init__",
    },
    "testing": {
        "app", "catalogue", "connection", "control", "errors", "log", "loop", "server", "supervisor", "watcher",
    },
    "__init__": {"app", "compiled", "connection", "watcher"},
    "__main__": {"cli", "errors", "health"},
}  # fmt: skip

# The modules of the watcher, from the bottom up: each may import those before it.
WATCHER: Final = (
    "_sys", "_sockets", "counters", "timers", "pollers", "endpoint", "hooks", "listener", "meter", "engine",
    "owner", "swap", "operations", "queued", "channel", "connections", "borrowed", "statistics", "watcher", "__init__",
)  # fmt: skip

# Libraries that a worker or the supervisor must not pay for: part by part, who may import them.
HEAVY: Final = {
    "click": {"cli"},
    "curses": {"top"},
    "h11": {"exporter"},
    "msgspec": {"config"},
    "psutil": {"exporter", "holder"},
    "pytest": {"testing"},
    "watchfiles": {"sources"},
}


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports, those for type checking left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _imported_part(module: str) -> str | None:
    package, *rest = module.split(".")
    if package != "shardnet":
        return None
    return rest[0] if rest else "__init__"


def test_every_part_has_a_place_in_the_layers() -> None:
    parts = {_part(path) for path in ROOT.rglob("*.py")}
    assert parts == set(MAY_IMPORT)


def test_the_layers_have_no_cycle() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert order.index("watcher") < order.index("server") < order.index("worker") < order.index("cli")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_lies_below(path: Path) -> None:
    part = _part(path)
    for module in _imports(path):
        below = _imported_part(module)
        assert below in (None, part) or below in MAY_IMPORT[part], f"{part} imports {module}"
        library = module.split(".")[0]
        assert library not in HEAVY or part in HEAVY[library], f"{part} imports {library}"


@pytest.mark.parametrize("path", sorted((ROOT / "watcher").glob("*.py")), ids=lambda path: path.stem)
def test_module_of_the_watcher_imports_only_what_lies_below(path: Path) -> None:
    below = WATCHER[: WATCHER.index(path.stem)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "shardnet.watcher":
            assert {alias.name for alias in node.names} <= set(below), path
    for module in _imports(path):
        package, _, name = module.rpartition(".")
        assert package != "shardnet.watcher" or name in below, f"{path.stem} imports {name}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("shardnet.watcher", {"asyncio", "shardnet.connection", "shardnet.board", *HEAVY}),
        ("shardnet.supervisor.supervisor", {"asyncio", "shardnet.server", *HEAVY}),
        ("shardnet.worker", set(HEAVY)),
        ("shardnet.testing.plugin", {"shardnet.testing.serving", "shardnet.testing.sharded", "shardnet.server"}),
        ("shardnet.testing.serving", set(HEAVY)),
        ("shardnet.testing.sharded", {"asyncio", "shardnet.server", *HEAVY}),
        ("shardnet.health", {"asyncio", "ssl", "shardnet.config", "shardnet.asking", *HEAVY}),
        ("shardnet.top.looking", {"asyncio", "shardnet.supervisor", "shardnet.config", *HEAVY}),
        ("shardnet.bench", {"asyncio", "shardnet.connection", "shardnet.board", *HEAVY}),
        ("shardnet.cli", {"h11", "psutil", "shardnet.bench", "shardnet.chaos", "shardnet.top"}),
    ],
)
def test_importing_a_part_does_not_load(module: str, unwanted: set[str]) -> None:
    """What really happens at run time, whatever the sources look like."""
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not unwanted & set(loaded)
