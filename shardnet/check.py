"""`shardnet check`: an app is loaded in a child, because importing it may do anything, even end the process."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from pathlib import Path
from typing import Never

from shardnet.app import FORMS, load, try_factory
from shardnet.errors import AppError


def check_app(name: str, app_dir: Path) -> str:
    """The kind of handler that `module:name` is, in words. Raises `AppError`, with the traceback as a note."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _load_and_report(name, app_dir, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not report:
        code = os.waitstatus_to_exitcode(status)
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        raise AppError(f"{name}: importing it ended the process {how}")
    answer = json.loads(report)
    if "kind" in answer:
        return str(answer["kind"])
    error = AppError(answer["message"])
    if answer["detail"]:
        error.add_note(answer["detail"])
    raise error


def _load_and_report(name: str, app_dir: Path, writer: int) -> Never:
    """Never returns into the parent's stack, whatever the app does."""
    status = 1
    try:
        try:
            handler = load(name, app_dir)
            if handler.lifespan is None:  # Which may have to come first.
                asyncio.run(try_factory(handler))
            answer = {"kind": FORMS[handler.kind]}
        except AppError as error:
            detail = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
            answer = {"message": str(error), "detail": detail}
        os.write(writer, json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)
