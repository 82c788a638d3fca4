"""`shardnet health` among the other commands.

The `shardnet` command goes past all of this, to `shardnet.health`, which reads its own flags: a check that runs every
few seconds must not import what the other commands need. This is for those who call `shardnet.cli.cli`, and for the
list of commands.
"""

from __future__ import annotations

import click

__all__ = ["health"]


@click.command(
    short_help="Say whether a server is ready, for container checks.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def health(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Say whether a server is ready."""
    from shardnet.health import main

    ctx.exit(main(arguments))
