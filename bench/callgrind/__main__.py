"""`python -m bench.callgrind`, or `make callgrind`: count, and compare with what is recorded."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from bench.building import PROJECT
from bench.callgrind.serve import KINDS
from bench.environment import compiler_version
from bench.errors import BenchError
from shardnet.watcher import ENGINE

RECORDED: Final = Path(__file__).with_name("recorded.json")
FEW: Final = 1000
MANY: Final = 3000  # What both have in common, the start and the end, falls out.
RISE_MAX: Final = 0.03
RUN_MAX_S: Final = 300.0

EPILOG: Final = """
\b
Exit status: 0 counted, and no count has risen by more than 3 %; 1 one has, or counting failed; 2 usage.
Counts are recorded for each engine, Python, compiler and libc, and compared with those of the same alone.
"""

Counts = dict[str, int]


def environment() -> str:
    """What counts may depend on."""
    python = f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})"
    engine = f"{ENGINE} by {compiler_version()}" if ENGINE == "compiled" else ENGINE
    return f"{engine}, {python}, {' '.join(platform.libc_ver())}, {platform.machine()}"


def find_valgrind() -> str:
    found = shutil.which("valgrind") or shutil.which("valgrind", path=PROJECT / ".tools")
    if found is None:
        raise BenchError("there is no valgrind on PATH, nor in .tools: install it, or run tools/fetch-valgrind.sh")
    return found


def count(valgrind: str, kind: str, messages: int) -> int:
    """The instructions of a process that serves so many messages."""
    command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    try:
        done = subprocess.run(
            [*command, "-m", "bench.callgrind.serve", kind, str(messages)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONHASHSEED": "0", "SHARDNET_ENGINE": ENGINE},
            capture_output=True,
            text=True,
            timeout=RUN_MAX_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{kind}: not over after {RUN_MAX_S:g} s") from None
    collected = re.search(r"Collected *: *(\d+)", done.stderr)
    if done.returncode or collected is None:
        raise BenchError(f"{kind}: exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return int(collected[1])


def compare(counted: Counts, recorded: Counts) -> list[str]:
    """A line for each kind whose count has risen too much."""
    return [
        f"{kind}: {found:,} instructions a message, {found / recorded[kind] - 1:+.1%} over {recorded[kind]:,}"
        for kind, found in counted.items()
        if kind in recorded and found > recorded[kind] * (1 + RISE_MAX)
    ]


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--update", is_flag=True, help="Record what was counted.")
@click.option("--only", type=click.Choice(list(KINDS)), multiple=True, help="These kinds alone; may be repeated.")
def main(update: bool, only: tuple[str, ...]) -> None:
    """Count the user-space instructions of a 64-byte echo for each handler kind, with valgrind's callgrind."""
    key = environment()
    known: dict[str, Counts] = json.loads(RECORDED.read_text())
    recorded = known.get(key, {})
    counted: Counts = {}
    try:
        valgrind = find_valgrind()
        click.echo(f"instructions a message: {key}")
        for kind in only or KINDS:
            counted[kind] = (count(valgrind, kind, MANY) - count(valgrind, kind, FEW)) // (MANY - FEW)
            change = f"{counted[kind] / recorded[kind] - 1:+.1%}" if kind in recorded else "not recorded"
            click.echo(f"  {kind:<9} {counted[kind]:>7,}  {change}")
    except BenchError as exc:
        sys.exit(f"callgrind: {exc}")
    if update:
        known[key] = {**recorded, **counted}
        RECORDED.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        return
    risen = compare(counted, recorded)
    if risen:
        sys.exit("\n".join(["callgrind: risen by more than 3 % (--update accepts that):", *risen]))


if __name__ == "__main__":
    main(prog_name="python -m bench.callgrind")
