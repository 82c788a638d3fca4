"""The faults of docs/reliability.md: each has a test that carries its id, and no test carries one that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[1]
ROW: Final = re.compile(r"^\| (F\d+) \|", re.MULTILINE)
MARK: Final = re.compile(r'^@pytest\.mark\.fault\("(F\d+)"\)$', re.MULTILINE)


def test_every_fault_has_a_test_and_every_mark_a_fault() -> None:
    documented = ROW.findall((PROJECT / "docs/reliability.md").read_text())
    marked = {mark for path in (PROJECT / "tests").rglob("*.py") for mark in MARK.findall(path.read_text())}
    assert documented == sorted(set(documented))
    assert set(documented) == marked
