"""Which signals a supervisor takes, and what for. What nginx and gunicorn mean by them, where the two agree."""

from __future__ import annotations

import signal
from typing import Final

STOP_GRACEFULLY: Final = frozenset({signal.SIGTERM, signal.SIGINT})
STOP_AT_ONCE: Final = frozenset({signal.SIGQUIT})
RELOAD: Final = frozenset({signal.SIGHUP})
UPGRADE: Final = frozenset({signal.SIGUSR2})
REOPEN_LOGS: Final = frozenset({signal.SIGUSR1})
LAME_DUCK: Final = frozenset({signal.SIGWINCH})  # Where there is no terminal: it tells of its window's size with that.
STACKS: Final = signal.SIGUSR2  # To a worker: see `shardnet.worker`.
SCALE: Final[dict[int, int]] = {signal.SIGTTIN: 1, signal.SIGTTOU: -1}  # By so many shards.
# Everything that somebody may send to the supervisor.
ASKED: Final = STOP_GRACEFULLY | STOP_AT_ONCE | RELOAD | UPGRADE | REOPEN_LOGS | SCALE.keys()
HANDLED: Final = ASKED | {signal.SIGCHLD}
# Ctrl-C and a hang-up reach the whole foreground process group, and who renames log files tells all processes of that
# name: what a child is to do about it, the supervisor says.
IGNORED_BY_CHILDREN: Final = frozenset({signal.SIGINT, *RELOAD, *UPGRADE, *REOPEN_LOGS})
