"""A copy of the project to build, install and break, with an engine of two small modules in the place of the real one.

The real one would take most of a minute each time. What is built is real all the same: two modules that know each
other's structs, by the project's own build backend, with Cython and the C compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[1]
LEFT_OUT: Final = (
    ".*", "node_modules", "build", "dist", "*.egg-info", "__pycache__", "*.so", "*.pxd", "*.pyx", "_compiled.*",
    "tests",
)  # fmt: skip
TIMEOUT_S: Final = 55

PULSE: Final = '''
"""A module that is compiled."""
class Pulse:
    def __init__(self, beats: int) -> None:
        self.beats = beats
'''
PULSE_PXD: Final = """
cdef class Pulse:
    cdef public int beats
"""
HEART: Final = '''
"""A module that is compiled, and depends on the other."""
from shardnet.pulse import Pulse
class Heart:
    def __init__(self) -> None:
        self.pulse = Pulse(7)
    def beat(self) -> int:
        return self.pulse.beats * 6
'''
HEART_PXD: Final = """
from shardnet.pulse cimport Pulse
cdef class Heart:
    cdef public Pulse pulse
"""
ENGINE_FILES: Final = {"pulse.py": PULSE, "pulse.pxd": PULSE_PXD, "heart.py": HEART, "heart.pxd": HEART_PXD}

# Says what runs: the engine by its own account, and where each of the two modules came from.
TELL: Final = """
import shardnet.heart, shardnet.watcher
assert shardnet.heart.Heart().beat() == 42
kinds = [getattr(module, "__file__").rpartition(".")[2] for module in (shardnet.heart, shardnet.pulse)]
print(shardnet.watcher.ENGINE, *kinds)
"""


class Tree:
    """The copy, in `path`."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        left_out = [pattern for pattern in LEFT_OUT if not whole or pattern not in ("*.pxd", "*.pyx", "tests")]
        shutil.copytree(PROJECT, path, ignore=shutil.ignore_patterns(*left_out), symlinks=True)
        self.path = path
        self.package = path / "shardnet"
        if not whole:
            for name, text in ENGINE_FILES.items():
                (self.package / name).write_text(text)

    def build(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`make engine`, in the copy."""
        return self.run("-m", "_build", *arguments, **env)

    def wheel(
        self, where: Path, source: Path | None = None, *, timeout_s: float = TIMEOUT_S, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Build a wheel of the copy, or of an sdist, into `where`. Nothing comes from the network."""
        pip = ("-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
        arguments = (*pip, "--no-index", "-w", str(where), str(source or self.path))
        return _run(arguments, self.path, env, timeout_s)

    def tell(self, **env: str) -> str:
        """What runs in the copy."""
        return told(self.path, **env)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run_python(*arguments, cwd=self.path, **env)

    def compiled(self) -> list[str]:
        """The names of the compiled modules that lie in it, and of their record."""
        found = [*self.package.rglob("*.so"), *self.package.glob("_compiled*")]
        return sorted(path.name.partition(".")[0] for path in found)


def run_python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this Python where nothing of this test run's own settings counts."""
    return _run(arguments, cwd, env, TIMEOUT_S)


def _run(
    arguments: tuple[str, ...], folder: Path, env: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDNET_", "PYTHON"))}
    environ |= {"PYTHONDONTWRITEBYTECODE": "1", **env}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def told(folder: Path, **env: str) -> str:
    """What runs of the shardnet in `folder`: `compiled so so`, or `python py py`."""
    ran = run_python("-c", TELL, cwd=folder, **env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def unpack(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a folder."""
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    ran = run_python(*pip, "--target", str(folder), str(wheel), cwd=folder.parent)
    assert ran.returncode == 0, ran.stderr
    return folder
