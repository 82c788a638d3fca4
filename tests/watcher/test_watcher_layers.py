"""What the watcher brings along when it is used alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Libraries for other ways of doing what a watcher does, and what costs a program time to load.
UNWANTED = {
    "argparse",
    "asyncio",
    "concurrent",
    "ctypes",
    "dataclasses_json",
    "email",
    "http",
    "json",
    "logging",
    "multiprocessing",
    "ssl",
    "subprocess",
    "tempfile",
    "typing_extensions",
    "unittest",
    "urllib",
}


def loaded_by(program: str) -> set[str]:
    # Isolated: what this machine's `site` loads at the start is not the watcher's doing.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "program",
    [
        "from shardnet.watcher import Watcher",
        "from shardnet import Channel, Completion, Op, Statistics, Watcher",
        "from shardnet.watcher import Watcher; w = Watcher(); w.sleep(0); w.wait_io(); w.close()",
        "from shardnet.watcher import Watcher; w = Watcher(poller='poll'); w.connect('/none'); w.wait_io(); w.close()",
    ],
)
def test_watcher_loads_nothing_of_shardnet_but_itself_and_the_errors(program: str) -> None:
    loaded = loaded_by(program)
    ours = {module for module in loaded if module.split(".")[0] == "shardnet"}
    allowed = {"shardnet", "shardnet.compiled", "shardnet.errors", "shardnet.watcher"}
    assert allowed <= ours
    assert {module for module in ours - allowed if not module.startswith("shardnet.watcher.")} == set()
    assert not UNWANTED & {module.split(".")[0] for module in loaded}


def test_watcher_needs_the_standard_library_alone() -> None:
    others = {module.split(".")[0] for module in loaded_by("from shardnet.watcher import Watcher")}
    others = {module for module in others if "cython" not in module}  # Compiled code makes these up, from no file.
    assert others - set(sys.stdlib_module_names) == {"__main__", "shardnet"}


def test_shardnet_alone_loads_no_part_but_the_choice_of_the_engine() -> None:
    loaded = {module for module in loaded_by("import shardnet") if module.startswith("shardnet.")}
    assert loaded == {"shardnet.compiled"}
