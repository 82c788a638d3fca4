"""Compiling what is written in C, into a folder of build results that git ignores.

A program's file name carries a digest of what it is made of, so that it is built anew when that changes and not before.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.errors import BenchError

__all__ = ["BUILD", "PROJECT", "compile_c", "compiler"]

PROJECT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = Path(__file__).resolve().parent
BUILD: Final = PROJECT / ".tools" / "bench"
FLAGS: Final = ("-O2", "-Wall", "-Wextra")
COMPILE_TIMEOUT_S: Final = 120.0


def compiler() -> list[str]:
    """The command of the C compiler: `$CC`, or cc. Raises `BenchError` when there is none."""
    command = shlex.split(os.environ.get("CC", "cc")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise BenchError(f"there is no C compiler {command[0]!r}: install gcc, or name one in CC")
    return command


def compile_c(name: str, folder: Path = BUILD) -> Path:
    """The program made of `NAME.c` and the headers beside it. Raises `BenchError` when it cannot be had."""
    source = SOURCES / f"{name}.c"
    command = [*compiler(), *FLAGS]
    digest = hashlib.sha256(shlex.join(command).encode())
    for path in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    program = folder / f"{name}-{digest.hexdigest()[:12]}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{program.name}.{os.getpid()}"
    command += ["-o", str(unfinished), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
        if done.returncode != 0:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise BenchError(f"{shlex.join(command)} failed: {said}")
        unfinished.replace(program)
    finally:
        unfinished.unlink(missing_ok=True)
    return program
