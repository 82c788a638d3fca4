"""A real terminal: tmux, with one program in it; what it shows is read off its screen, and keys are pressed.

Lives here: the terminal. Must not live here: what should be on the screen.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.harness.server import PROJECT, wait_until

__all__ = ["Terminal"]

UNPACKED: Final = PROJECT / ".tools"
SOON_S: Final = 15.0
OVER: Final = "the program has ended: "


class Terminal:
    """`command` in a terminal of this size, to be used in a `with`; leaving it ends both.

    Skips the test where there is no tmux.
    """

    def __init__(self, command: Sequence[str], *, columns: int = 80, lines: int = 24) -> None:
        tmux = shutil.which("tmux") or shutil.which("tmux", path=UNPACKED)
        if tmux is None:
            pytest.skip("no tmux on PATH or in .tools; tools/fetch-tmux.sh fetches it on Debian and Ubuntu")
        self._tmux = tmux
        self._folder = tempfile.mkdtemp(prefix="tmux")
        self._size = (columns, lines)
        # The shell stays, so that what the program leaves on the screen can be read.
        self._command = f"cd {PROJECT}; {shlex.join(command)}; echo '{OVER}'$?; exec cat"

    def __enter__(self) -> Self:
        columns, lines = self._size
        self._run("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(lines), self._command)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            error.add_note("the screen:\n" + "\n".join(self.screen()))
        self._run("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)

    def screen(self) -> list[str]:
        """What is on it, line by line, without what is empty on the right."""
        return [line.rstrip() for line in self._run("capture-pane", "-p").splitlines()]

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names: `q`, `Down`, `C-c`."""
        self._run("send-keys", *keys)

    def program_pid(self, words: str) -> int:
        """The pid of the program in it, which has these words in its command line."""
        shell = int(self._run("list-panes", "-F", "#{pane_pid}"))
        for child in Path(f"/proc/{shell}/task/{shell}/children").read_text().split():
            if words in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                return int(child)
        raise AssertionError(f"no child of the shell is {words}")

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def wait(self, wanted: Callable[[list[str]], object], timeout_s: float = SOON_S) -> list[str]:
        """The screen, as soon as it is as wanted."""
        wait_until(lambda: bool(wanted(self.screen())), timeout_s)
        return self.screen()

    def wait_text(self, text: str) -> list[str]:
        """The screen, as soon as this is on it."""
        return self.wait(lambda screen: any(text in line for line in screen))

    def wait_over(self) -> int:
        """The program's exit status, when it has ended."""
        screen = self.wait_text(OVER)
        # Where a terminal has no second screen, what was drawn stays behind it.
        said = re.search(rf"{OVER}(\d+)", "\n".join(screen))
        assert said is not None
        return int(said[1])

    def _run(self, *arguments: str) -> str:
        environment = {**os.environ, "TMUX_TMPDIR": self._folder, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
        environment.pop("TMUX", None)
        socket = str(Path(self._folder) / "socket")
        done = subprocess.run(
            [self._tmux, "-u", "-S", socket, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout
