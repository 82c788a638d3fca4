"""`python -m shardnet`, and what the `shardnet` command calls."""

import sys
from typing import NoReturn

from shardnet.errors import ConfigError, ExitCode


def main() -> NoReturn:
    """The command line; an engine that cannot be had is said in one line, as everything else that is wrong."""
    if sys.argv[1:2] == ["health"]:  # Runs every few seconds, and needs next to nothing of the rest.
        from shardnet.health import main as check

        sys.exit(check(sys.argv[2:]))
    try:
        from shardnet.cli import main as run
    except ConfigError as error:
        sys.stderr.write(f"shardnet: {error}\n")
        sys.exit(ExitCode.CONFIG)
    run()


if __name__ == "__main__":
    main()
