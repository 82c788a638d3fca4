"""What the figures were measured on: versions, machine, command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.building import PROJECT, compiler
from bench.errors import BenchError
from shardnet import __version__
from shardnet.watcher import ENGINE

__all__ = ["compiler_version", "describe"]

ASK_S: Final = 10.0


def describe() -> dict[str, str]:
    """Everything that has to be equal for figures to be compared, and what tells how quiet the machine was."""
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "shardnet": __version__,
        "engine": ENGINE,
        "revision": _first_line("git", "-C", str(PROJECT), "describe", "--always", "--dirty"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python compiler": platform.python_compiler(),
        "uvloop": _version("uvloop"),
        "compiler": compiler_version(),
        "libc": " ".join(platform.libc_ver()),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def compiler_version() -> str:
    """Of the C compiler here, which the servers in C are built with, and the engine if it was built here."""
    try:
        return _first_line(*compiler(), "--version")
    except BenchError as exc:
        return str(exc)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(done.stdout.splitlines()), "unknown")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"
