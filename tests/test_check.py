"""`check_app`: importing an app in a child, whatever the app does to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardnet.check import check_app
from shardnet.errors import AppError


def _write(folder: Path, text: str) -> Path:
    (folder / "checked_app.py").write_text(text)
    return folder


def test_check_app_names_the_kind(tmp_path: Path) -> None:
    _write(tmp_path, "async def handler(conn): ...\ndef on_data(conn, data): ...\n")
    assert check_app("checked_app:handler", tmp_path) == "async def handler(conn)"
    assert check_app("checked_app:on_data", tmp_path) == "def on_data(conn, data)"


def test_check_app_keeps_the_traceback_for_debugging(tmp_path: Path) -> None:
    _write(tmp_path, "1 / 0\n")
    with pytest.raises(AppError, match=r"ZeroDivisionError.*checked_app\.py, line 1") as caught:
        check_app("checked_app:handler", tmp_path)
    assert "Traceback" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("import os; os._exit(3)", "ended the process with exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended the process by signal 9"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
    ],
)
def test_check_app_survives_an_app_that_ends_its_process(tmp_path: Path, text: str, how: str) -> None:
    _write(tmp_path, text)
    with pytest.raises(AppError, match=how):
        check_app("checked_app:handler", tmp_path)


def test_check_app_leaves_nothing_open(tmp_path: Path) -> None:
    _write(tmp_path, "async def handler(conn): ...\n")
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the listing's own descriptor is in both
    check_app("checked_app:handler", tmp_path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
