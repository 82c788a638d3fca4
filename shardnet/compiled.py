"""Which build of the engine runs: the compiled one, or the Python that it was compiled from.

Some modules of shardnet are compiled when it is built: those with a `.pxd` beside their `.py`. They know each other's
structs, so one that is interpreted among compiled ones would break in ways that nobody could explain. Therefore it is
all or none: the compiled ones run when each that the build recorded is here, for this interpreter; otherwise a finder
hides what there is of them. SHARDNET_ENGINE=python does so too, and SHARDNET_ENGINE=compiled does not put up with it.

`shardnet/__init__.py` imports this module first, so that it is settled before any other of ours is looked for. Whoever
needs an engine then asks `require_engine`: an error already in `import shardnet` would come before the command line
could say it in one line.

Lives here: the choice. Must not live here: how it is built, and whether it is built from these sources (`_build/`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Final

VARIABLE: Final = "SHARDNET_ENGINE"
PACKAGE: Final = os.path.dirname(os.path.abspath(__file__))
SUFFIX: Final = EXTENSION_SUFFIXES[0]  # Names interpreter and platform: `.cpython-311-x86_64-linux-gnu.so`.

# One line for each compiled module, its name first. Written by the build, last of all.
RECORD: Final = os.path.join(PACKAGE, f"_compiled{os.path.splitext(SUFFIX)[0]}.txt")


class PythonOnly:
    """A meta path finder that finds our modules as Python, though a compiled one may lie beside."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith("shardnet."):
            return None
        file = name.rpartition(".")[2] + ".py"
        for folder in path:
            source = os.path.join(folder, file)
            if os.path.exists(source):
                spec = ModuleSpec(name, SourceFileLoader(name, source), origin=source)
                spec.has_location = True
                return spec
        return None  # A package, which nobody compiles, or what lies in an archive, where nobody can.


def require_engine() -> None:
    """To be called before an engine is used.

    Raises:
        ConfigError: SHARDNET_ENGINE asks for what does not exist, or is not here.
    """
    if _problem is not None:
        from shardnet.errors import ConfigError

        raise ConfigError(_problem)


def _recorded() -> list[str]:
    try:
        with open(RECORD, encoding="utf-8") as record:
            return [line.split()[0] for line in record if not line.startswith("#")]
    except FileNotFoundError:
        return []


def _missing(modules: list[str]) -> Iterator[str]:
    above = os.path.dirname(PACKAGE)
    for module in modules:
        if not os.path.exists(os.path.join(above, *module.split(".")) + SUFFIX):
            yield module


def _choose(wanted: str) -> tuple[str, str | None]:
    """The engine that runs, and what is wrong with that."""
    if wanted == "python":
        return "python", None
    if wanted not in ("", "compiled"):
        return "python", f"{VARIABLE}: expected python or compiled, found {wanted[:100]!r}"
    modules = _recorded()
    missing = next(_missing(modules), None)
    if modules and missing is None:
        return "compiled", None
    if wanted == "":
        return "python", None
    lack = f"lacks the compiled {missing}" if missing else "was built without a compiled engine"
    return "python", (
        f"{VARIABLE}=compiled: shardnet in {PACKAGE} {lack} for this Python: reinstall it where there is a C compiler, "
        f"with SHARDNET_BUILD=compiled set to see what fails; or unset {VARIABLE}"
    )


_chosen: Final = _choose(os.environ.get(VARIABLE, "").strip())
ENGINE: Final = _chosen[0]
_problem: Final = _chosen[1]
if ENGINE == "python":
    sys.meta_path.insert(0, PythonOnly)
