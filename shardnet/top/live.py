"""The terminal of `shardnet top`: curses, as it is in every Python.

Curses sends only what has changed, which is little over ssh, and knows terminals of all kinds.

Lives here: keys, drawing, confirmation. Must not live here: figures and what is asked of the server.
"""

from __future__ import annotations

import contextlib
import curses
import os
import select
import signal
import sys
import time
from typing import Any, Final, Never

from shardnet.asking import Server
from shardnet.errors import NotRunning, ShardnetError, SystemFault
from shardnet.top.errands import Errand, Steps
from shardnet.top.looking import Looking
from shardnet.top.model import Shard, View
from shardnet.top.text import SORTS, folded, header, lines, printable, state_text

__all__ = ["watch"]

KEYS: Final = "q quit  r restart  d drain  u undrain  t stacks  b bars  s,i sort: "
KEYS_OF_PANE: Final = "up, down, page up, page down; any other key: back to the table"
ACTIONS: Final = {"r": "restart", "d": "drain", "u": "undrain"}
QUITS: Final = ("q", "Q")
TOP_LINES: Final = 4  # Two of the server, an empty one, and the titles.
BELOW: Final = 3  # All together, an empty one, and what the keys do.
ERRAND_S: Final = 0.05  # How often one that is under way is gone on with.
FIND_AGAIN_S: Final = 1.0
ESCAPE_MS: Final = 100  # So long may the bytes of one key take, over ssh.
FAR: Final = 1_000_000


def watch(server: Server, looking: Looking, interval_s: float) -> None:
    """Show the server until somebody wants to leave. A server that goes away is waited for.

    Raises:
        SystemFault: The terminal is of no known kind.
    """
    for name in ("LINES", "COLUMNS"):  # Curses would take them for the size, whatever becomes of it.
        os.environ.pop(name, None)
    old = signal.signal(signal.SIGTERM, _leave)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # As good as any other way to leave.
            curses.setupterm()
            if not curses.tigetstr("cup"):
                raise curses.error("it can only be written to from top to bottom")
            curses.set_escdelay(ESCAPE_MS)
            curses.wrapper(lambda screen: _Live(screen, server, looking, interval_s).run())
    except curses.error as exc:
        kind = os.environ.get("TERM", "")
        raise SystemFault(
            f"no terminal that can be drawn on, TERM is {kind!r}: {exc}; --once prints the table"
        ) from exc
    finally:
        signal.signal(signal.SIGTERM, old)


def _leave(signum: int, _frame: object) -> Never:
    """Not without the terminal being as it was, which is seen to on the way out."""
    sys.exit(128 + signum)


class _Live:
    """One session at a terminal."""

    def __init__(self, screen: Any, server: Server, looking: Looking, interval_s: float) -> None:
        self._screen = screen
        self._server = server
        self._looking = looking
        self._interval_s = interval_s
        self._view: View | None = None
        self._trouble = ""
        self._said = ""  # What came of the last action.
        self._errand: Errand | None = None
        self._finding = False  # That errand looks for the server.
        self._find_at_s = 0.0
        self._asking: tuple[str, int] | None = None  # What is to be confirmed.
        self._sort = 0
        self._upside_down = False
        self._bars = False
        self._selected: int | None = None  # A shard's number.
        self._order: list[int] = []  # As the shards stand on the screen.
        self._pane: list[str] = []  # Stacks, instead of the table.
        self._pane_top = 0
        with contextlib.suppress(curses.error):  # Not every terminal has colours,
            curses.use_default_colors()
        with contextlib.suppress(curses.error):  # or can hide its cursor.
            curses.curs_set(0)

    def run(self) -> None:
        look_at_s = time.monotonic()
        while True:
            if time.monotonic() >= look_at_s:
                self._look()
                look_at_s = time.monotonic() + self._interval_s
            self._go_on()
            self._draw()
            wait_s = look_at_s - time.monotonic()
            self._screen.timeout(max(1, int(1000 * (min(wait_s, ERRAND_S) if self._errand else wait_s))))
            try:
                key = self._screen.get_wch()
            except curses.error:
                if _hung_up():
                    return
                continue  # Nobody has pressed one.
            if key != curses.KEY_RESIZE and not self._press(key):
                return

    def _look(self) -> None:
        try:
            self._view = self._looking.look()
        except NotRunning:
            doubts = True
        except ShardnetError as error:
            self._trouble, doubts = str(error), True
        else:
            doubts = self._looking.has_doubts(self._view)
            if not doubts:
                self._trouble = ""
        if doubts and self._errand is None and time.monotonic() >= self._find_at_s:
            self._find_at_s = time.monotonic() + FIND_AGAIN_S
            self._send(self._looking.find(), finding=True)

    # What is asked of the server.

    def _send(self, steps: Steps, *, finding: bool = False) -> None:
        self._finding = finding
        with self._troubles():
            self._errand = Errand(self._server, steps)

    def _go_on(self) -> None:
        if self._errand is not None:
            with self._troubles():
                self._errand.advance()
            if self._errand is not None and self._errand.over:
                self._errand = None

    @contextlib.contextmanager
    def _troubles(self) -> Any:
        """Errors are said. One of finding the server means that it is gone."""
        try:
            yield
        except NotRunning as error:
            self._errand = None
            if self._finding:
                self._view = None
                self._looking.forget()
            self._trouble = f"{error}; waiting for it"
        except ShardnetError as error:
            self._errand = None
            self._trouble = str(error)

    # Keys.

    def _press(self, key: int | str) -> bool:
        """False to leave."""
        if self._asking is not None:
            command, shard = self._asking
            self._asking = None
            if key not in ("y", "Y"):
                self._said = f"{command} {shard}: not done"
            elif self._may_ask(command):
                self._said = f"{command} {shard}: asking"
                self._send(self._looking.act(command, shard, self._say))
            return True
        if self._pane:
            self._press_in_pane(key)
            return True
        if key in QUITS:
            return False
        self._said = ""
        match key:
            case curses.KEY_UP | "k":
                self._move(-1)
            case curses.KEY_DOWN | "j":
                self._move(1)
            case curses.KEY_PPAGE | curses.KEY_NPAGE:
                page = max(1, self._screen.getmaxyx()[0] - TOP_LINES - BELOW)
                self._move(page if key == curses.KEY_NPAGE else -page)
            case curses.KEY_HOME | curses.KEY_END:
                self._move(FAR if key == curses.KEY_END else -FAR)
            case "s" | "S":
                self._sort = (self._sort + (1 if key == "s" else -1)) % len(SORTS)
                self._upside_down = False
            case "i":
                self._upside_down = not self._upside_down
            case "b":
                self._bars = not self._bars
            case "t" if self._selected is not None and self._may_ask("stacks"):
                self._said = f"stacks {self._selected}: asking"
                self._send(self._looking.stacks(self._selected, self._show_pane))
            case str() if key in ACTIONS and self._selected is not None:
                self._asking = (ACTIONS[key], self._selected)
        return True

    def _may_ask(self, what: str) -> bool:
        if self._errand is None:
            return True
        self._said = f"{what}: not yet, the server has not answered what was asked before"
        return False

    def _say(self, text: str) -> None:
        self._said = text

    def _show_pane(self, text: list[str]) -> None:
        self._pane, self._pane_top, self._said = text, 0, ""

    def _press_in_pane(self, key: int | str) -> None:
        page = max(1, self._screen.getmaxyx()[0] - 2)
        by = {
            curses.KEY_UP: -1, "k": -1, curses.KEY_DOWN: 1, "j": 1, curses.KEY_PPAGE: -page, curses.KEY_NPAGE: page,
            " ": page, curses.KEY_HOME: -FAR, curses.KEY_END: FAR,
        }.get(key)  # fmt: skip
        if by is None:
            self._pane = []
        else:
            self._pane_top = max(0, min(len(self._pane_lines()) - page, self._pane_top + by))

    def _pane_lines(self) -> list[str]:
        return folded(self._pane, self._screen.getmaxyx()[1] - 1)

    def _move(self, by: int) -> None:
        if self._order:
            at = self._order.index(self._selected) if self._selected in self._order else 0
            self._selected = self._order[max(0, min(len(self._order) - 1, at + by))]

    # Drawing.

    def _draw(self) -> None:
        self._screen.erase()
        height, width = self._screen.getmaxyx()
        if self._pane:
            text = self._pane_lines()
            for number, line in enumerate(text[self._pane_top : self._pane_top + height - 1]):
                self._put(number, line)
            self._put(height - 1, KEYS_OF_PANE, curses.A_REVERSE)
        elif self._view is None:
            self._put(0, self._trouble or "looking for the server")
            self._put(height - 1, "q quit", curses.A_REVERSE)
        else:
            self._draw_table(self._view, height, width)
        self._screen.refresh()

    def _draw_table(self, view: View, height: int, width: int) -> None:
        for number, line in enumerate(header(view, self._looking.about, width)):
            self._put(number, line, curses.A_BOLD if number == 0 else 0)
        sort = SORTS[self._sort]
        titles, rows, total = lines(view, width - 1, sort, upside_down=self._upside_down, bars=self._bars)
        self._put(TOP_LINES - 1, titles, curses.A_UNDERLINE)
        self._order = [shard.shard for shard, _ in rows]
        if self._selected not in self._order:
            self._selected = self._order[0] if self._order else None
        room = max(1, height - TOP_LINES - BELOW)
        at = self._order.index(self._selected) if self._selected is not None else 0
        first = max(0, min(at - room // 2, len(rows) - room))
        for number, (shard, row) in enumerate(rows[first : first + room]):
            self._put(TOP_LINES + number, row, self._look_of(shard))
        self._put(TOP_LINES + min(room, len(rows)), total, curses.A_BOLD)
        self._put(height - 1, self._bottom(), curses.A_REVERSE)

    def _look_of(self, shard: Shard) -> int:
        if shard.shard == self._selected:
            return curses.A_REVERSE
        return 0 if state_text(shard) == "serving" else curses.A_BOLD

    def _bottom(self) -> str:
        if self._asking is not None:
            command, shard = self._asking
            return f"{command} shard {shard}? y: yes, any other key: no"
        if self._trouble or self._said:
            return printable(self._trouble or self._said)
        return f"{KEYS}{SORTS[self._sort]}{' inverted' if self._upside_down else ''}"

    def _put(self, line: int, text: str, look: int = 0) -> None:
        height, width = self._screen.getmaxyx()
        if 0 <= line < height:
            with contextlib.suppress(curses.error):  # A character that is wider than one cell, at the edge.
                text = text.ljust(width - 1) if look & curses.A_REVERSE else text
                self._screen.addnstr(line, 0, text, width - 1, look)


def _hung_up() -> bool:
    """Whether the terminal is gone, and nobody will ever press a key again."""
    poll = select.poll()
    poll.register(sys.stdin, 0)
    return bool(poll.poll(0))
