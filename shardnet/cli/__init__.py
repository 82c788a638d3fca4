"""The command line: `shardnet run`, `check` and `config`.

Lives here: flags, help, and saying in one line what went wrong. Must not live here: what a start does (see `serve`).
"""

from shardnet.cli.commands import check, cli, run
from shardnet.cli.main import main

__all__ = ["check", "cli", "main", "run"]
