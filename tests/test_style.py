"""What the source promises about itself, as far as a program can see it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# Where sleeping, or the passing of time, is what is tested.
MAY_SLEEP = {
    "tests/harness/passing.py",
    "tests/process/apps.py",
    "tests/process/ecosystem.py",
    "tests/process/slow_import.py",
}


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", _sources("shardnet", "examples"), ids=_name)
def test_source_file_is_short_enough_to_read(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what lives in it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", _sources("tests"), ids=_name)
def test_tests_never_sleep(path: Path) -> None:
    """A test that sleeps is slow on a fast machine and flaky on a slow one: it has to wait for what it waits for.

    `asyncio.sleep` is allowed as `asyncio.sleep(0)`.
    """
    if _name(path) in MAY_SLEEP:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "sleep":
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        where = f"{_name(path)}:{node.lineno}: {owner}.sleep"
        assert owner != "time", where
        assert owner != "asyncio" or ast.unparse(node.args[0]) == "0", where
