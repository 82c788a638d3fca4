"""No test runs on a compiled engine that was built from other sources than those that lie there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shardnet
from _build import sources
from shardnet.compiled import ENGINE


def pytest_report_header() -> str:
    return f"engine: {ENGINE}"


def pytest_sessionstart() -> None:
    if os.environ.get("SHARDNET_ENGINE") == "python":
        return
    text = sources.complaint(Path(shardnet.__file__).resolve().parents[1])
    if text is not None:
        raise pytest.UsageError(f"{text} (or set SHARDNET_ENGINE=python)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ENGINE == "compiled":
        reason = pytest.mark.skip(reason="replaces parts of the engine, which only works while it is Python")
        for item in items:
            if item.get_closest_marker("interpreted") is not None:
                item.add_marker(reason)
