"""From `.py`, `.pyx` and `.pxd` to compiled modules: Cython, then the C compiler, several modules at a time.

What is compiled stays in `build/engine`, with a key of everything that made it, and only what has changed is compiled
anew. Nothing is put anywhere else before every module is there.

Lives here: compiling. Must not live here: what becomes of it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

from _build import sources
from _build.sources import Module

CFLAGS_ENV: Final = "SHARDNET_CFLAGS"  # For the compiler, and for the linker, behind everything else.

# What the compiler and the linker are told besides, and by whom.
OUTER_ENV: Final = ("CC", "CPPFLAGS", "CFLAGS", "LDFLAGS", "LDSHARED", CFLAGS_ENV)

PROBE: Final = "#include <Python.h>\nint shardnet_probe(void) { return PY_VERSION_HEX; }\n"


class CannotBuildError(Exception):
    """The engine does not compile here. The text is one line."""

    def __init__(self, line: str, output: str = "", *, tools: bool = False) -> None:
        super().__init__(line)
        self.output = output  # Of what has failed, when that says more than the line.
        self.tools = tools  # For want of a tool, not because of the sources.


@dataclass(frozen=True, slots=True)
class Built:
    """A compiled module in the build folder."""

    module: Module
    path: Path
    key: str  # Of sources, tools and flags.


@dataclass(frozen=True, slots=True)
class Toolchain:
    """How this Python's extension modules are compiled and linked: the beginnings of two commands."""

    compile: tuple[str, ...]
    link: tuple[str, ...]


def compile_engine(root: Path) -> list[Built]:
    """Compile what has changed since the last time.

    Raises:
        CannotBuildError: A tool is missing, or one of the modules does not translate or compile.
    """
    modules = sources.modules(root)
    if not modules:
        return []
    folder = root / "build" / "engine" / sources.SUFFIX.split(".")[1]
    settings = _settings()
    built = [Built(module, folder / module.target, f"{module.digest}-{settings}") for module in modules]
    changed = [each for each in built if _key(each.path) != each.key]
    if changed:
        tools = _toolchain()
        _probe(folder, tools)
        print(f"Compiling {len(changed)} of {len(built)} modules of the engine", file=sys.stderr, flush=True)
        _compile(root, changed, tools)
    return built


def _settings() -> str:
    """A digest of what a module is made with."""
    try:
        cython = metadata.version("Cython")
    except metadata.PackageNotFoundError as exc:
        raise CannotBuildError("Cython is not installed", tools=True) from exc
    outer = {name: os.environ.get(name) for name in OUTER_ENV}
    inner = sysconfig.get_config_vars("CC", "CFLAGS", "LDSHARED", "INCLUDEPY")
    how = Path(__file__).read_bytes()
    return hashlib.sha256(repr((cython, outer, inner, sys.version, how)).encode()).hexdigest()[:16]


def _key(path: Path) -> str | None:
    """What a compiled module was made from, if it is there."""
    try:
        return path.with_suffix(".key").read_text() if path.exists() else None
    except FileNotFoundError:
        return None


def _toolchain() -> Toolchain:
    """As setuptools knows it, environment variables and all.

    Only the commands are taken from it. It does not keep the outputs of several compilers apart, and would not compile
    the first module before the last one is translated.
    """
    found: list[Toolchain] = []

    class Asking(build_ext):
        def build_extensions(self) -> None:
            includes = [f"-I{folder}" for folder in self.include_dirs]
            found.append(Toolchain((*self.compiler.compiler_so, *includes), tuple(self.compiler.linker_so)))

    command = Asking(Distribution({"name": "shardnet", "ext_modules": [Extension("shardnet", [])]}))
    command.ensure_finalized()
    command.run()
    return found[0]


def _probe(folder: Path, tools: Toolchain) -> None:
    """See whether there is a compiler, and Python's headers, before a minute is spent on translating."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe.c"
    probe.write_text(PROBE)
    output = _run([*tools.compile, "-c", str(probe), "-o", str(probe.with_suffix(".o"))], folder)
    if output is not None:
        raise CannotBuildError(f"no working C compiler: {_error_in(output)}", output, tools=True)


def _compile(root: Path, changed: Sequence[Built], tools: Toolchain) -> None:
    pool = ThreadPoolExecutor(_cpus())
    try:
        # The longest first, or one CPU works on it alone in the end.
        ordered = sorted(changed, key=lambda each: (root / each.module.source).stat().st_size, reverse=True)
        for made in [pool.submit(_make, root, each, tools) for each in ordered]:
            made.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make(root: Path, each: Built, tools: Toolchain) -> None:
    """Translate, compile and link one module."""
    each.path.parent.mkdir(parents=True, exist_ok=True)
    key, c_file, object_file = (each.path.with_suffix(suffix) for suffix in (".key", ".c", ".o"))
    key.unlink(missing_ok=True)
    translate(root, each.module, c_file)
    flags = shlex.split(os.environ.get(CFLAGS_ENV, ""))
    for command in (
        [*tools.compile, "-c", str(c_file.relative_to(root)), "-o", str(object_file), *sources.C_FLAGS, *flags],
        [*tools.link, str(object_file), "-o", str(each.path), *flags],
    ):
        output = _run(command, root)
        if output is not None:
            raise CannotBuildError(f"{each.module.source} does not compile: {_error_in(output)}", output)
    key.write_text(each.key)


def translate(root: Path, module: Module, target: Path) -> None:
    """Have Cython write the C of one module. In a process of its own, because Cython uses one CPU.

    Raises:
        CannotBuildError: It does not translate.
    """
    command = [sys.executable, "-m", "cython", "--module-name", module.name, "-I", ".", "-o", str(target)]
    for name, value in sources.DIRECTIVES.items():
        command += ["-X", f"{name}={value}"]
    output = _run([*command, str(module.source)], root)  # Its name, which ends up in tracebacks, is from the root.
    if output is not None:
        raise CannotBuildError(f"{module.source} does not translate: {_error_in(output)}", output)


def _run(command: Sequence[str], folder: Path) -> str | None:
    """Run a tool: what it said when it failed, None when it did not."""
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except OSError as exc:
        return f"{command[0]}: {exc.strerror}"
    if not ran.returncode:
        return None
    return (ran.stdout + ran.stderr).strip() or f"{command[0]}: exit status {ran.returncode}"


def _error_in(output: str) -> str:
    """The line that says most: of compilers, the first that speaks of an error; of Cython, the first with a place."""
    lines = output.splitlines()
    telling = (line for line in lines if " error: " in line or line.startswith("shardnet/"))
    return next(telling, lines[-1]).strip()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
