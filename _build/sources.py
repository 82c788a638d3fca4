"""What is compiled, from what, and whether what lies in a tree was compiled from it.

**A module is compiled when a `.pxd` lies beside its `.py`**; from the `.pyx` where there is one, which is a twin of the
`.py`. A `.pxd` with neither declares things for others.

Clocks tell nothing of what a file was built from: git writes them anew, and wheels carry them away. So a compiled
module is recorded with a digest of all that it depends on.

Lives here: files and digests, with the standard library alone, because the tests ask as well. Must not live here:
compilers.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SUFFIX: Final[str] = sysconfig.get_config_var("EXT_SUFFIX")

# For every module, and here alone: Cython's comments at the head of a file would be forgotten in the next one. The
# engine checks its own bounds, and what its annotations say is for readers: types come from the `.pxd` files.
DIRECTIVES: Final = {
    "language_level": "3",
    "annotation_typing": "False",
    "binding": "True",  # Methods are to be what they are in Python: `inspect` and coroutine checks look at them.
    "boundscheck": "False",
    "cdivision": "True",
    "initializedcheck": "False",
    "nonecheck": "False",
    "wraparound": "False",
}

# Behind those of Python's own build, which they override. -g0: what debuggers want is several times what runs.
C_FLAGS: Final = ("-O2", "-g0")


@dataclass(frozen=True, slots=True)
class Module:
    """A module that is compiled."""

    name: str
    source: Path  # Its `.pyx` or `.py`, from the root of the tree.
    digest: str  # Of everything that it is compiled from.

    @property
    def target(self) -> Path:
        """Where its compiled form belongs, from the root of the tree."""
        return self.source.with_name(self.name.rpartition(".")[2] + SUFFIX)


def modules(root: Path) -> list[Module]:
    """Those of the tree at `root`, in the order of their names."""
    headers = {path.relative_to(root): path.read_bytes() for path in sorted(root.glob("shardnet/**/*.pxd"))}
    words = {path: set(re.findall(rb"\w+", text)) for path, text in headers.items()}
    found = []
    for header in headers:
        candidates = (header.with_suffix(suffix) for suffix in (".pyx", ".py"))
        source = next((path for path in candidates if (root / path).exists()), None)
        if source is None or header.stem == "__init__":
            continue
        content = (root / source).read_bytes()
        mentioned = set(words[header])
        if source.suffix == ".pyx":
            mentioned |= set(re.findall(rb"\w+", content))
        needed = _closure(header, mentioned, words)
        digest = hashlib.sha256(repr((DIRECTIVES, C_FLAGS, source.name, content)).encode())
        for path in sorted(needed):
            digest.update(repr((path.as_posix(), headers[path])).encode())
        found.append(Module(".".join(header.with_suffix("").parts), source, digest.hexdigest()[:32]))
    return found


def _closure(header: Path, mentioned: set[bytes], words: dict[Path, set[bytes]]) -> set[Path]:
    """The headers that one depends on, itself included.

    Every header that is mentioned counts, wherever, because a `cimport` has many forms. To take one too many costs a
    compilation; one too few would leave a module that reads another's old struct.
    """
    needed = {header}
    while True:
        found = {path for path in words if path.stem.encode() in mentioned} - needed
        if not found:
            return needed
        needed |= found
        mentioned = mentioned.union(*(words[path] for path in found))


def record(root: Path) -> Path:
    """The file that says which modules were compiled, for this interpreter, and from what. `shardnet.compiled` reads
    the names in it."""
    return root / "shardnet" / f"_compiled{SUFFIX.removesuffix('.so')}.txt"


def compiled_files(root: Path) -> list[Path]:
    """Every compiled module that lies in the tree for this interpreter, whatever it was built from."""
    return sorted((root / "shardnet").rglob(f"*{SUFFIX}"))


def complaint(root: Path) -> str | None:
    """What is wrong with the compiled modules in a tree, in one line: None when they are whole and built from these
    very sources, or when there are none."""
    wanted = modules(root)
    path = record(root)
    try:
        lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    except FileNotFoundError:
        lines = []
    built = {line[0]: line[1] for line in lines}
    there = set(compiled_files(root))
    if not built and not there:
        return None
    cure = "run make engine"
    for module in wanted:
        if module.name not in built or root / module.target not in there:
            return f"the compiled engine in {root} is half built, it lacks {module.name}: {cure}"
        if built[module.name] != module.digest:
            return f"the compiled engine in {root} is stale, {module.source} or a .pxd has changed: {cure}"
    surplus = there - {root / module.target for module in wanted}
    if surplus:
        return f"the compiled engine in {root} has a module too many, {min(surplus).relative_to(root)}: {cure}"
    return None
