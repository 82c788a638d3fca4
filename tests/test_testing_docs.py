"""Every example of docs/testing.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.process

PAGE: Final = Path(__file__).parents[1] / "docs" / "testing.md"
BLOCK: Final = re.compile(r"^```python\n(?P<code># (?P<name>\w+\.py)\n.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: Final = {block["name"]: block["code"] for block in BLOCK.finditer(PAGE.read_text())}


def test_page_has_no_example_that_is_not_run() -> None:
    assert PAGE.read_text().count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("name", sorted(BLOCKS.keys() - {"chat.py"}))
def test_example_passes(name: str, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    for file in ("chat.py", name):
        (pytester.path / file).write_text(BLOCKS[file])
    outcomes = pytester.runpytest_subprocess().parseoutcomes()
    assert outcomes.keys() == {"passed"}
    assert outcomes["passed"] == BLOCKS[name].count("def test_") + ('parametrize("chunk_bytes"' in BLOCKS[name])
