"""The commands for a running server. Each waits until what it asks for has come about; its exit status says whether."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import click

from shardnet.asking import Server
from shardnet.config import resolve
from shardnet.errors import NotRunning, SystemFault
from shardnet.operatorsocket import default_name, running

__all__ = ["COMMANDS", "of_a_server"]

Command = Callable[..., Any]
STACKS_S: Final = 2.0  # A worker that hangs answers from its fault handler alone.
WAIT_S: Final = 300.0


def of_a_server(command: Command) -> Command:
    """`--name`, `--config`, and what they lead to as the first argument."""

    def found(name: str | None, config: str | None, **values: Any) -> Any:
        return command(Server(name or _configured(config), partial(click.echo, err=True)), **values)

    found.__doc__, found.__name__ = command.__doc__, command.__name__
    found.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    found = click.option("--config", metavar="FILE", help="The settings file of the server that is meant.")(found)
    help_ = "The server that is meant; else that of the settings here, or the only one."
    return click.option("--name", metavar="NAME", help=help_)(found)


def _configured(config: str | None) -> str | None:
    """The name of the server that is set up here; None when there is none, or it does not run."""
    settings = resolve({}, config=config).settings
    if settings.name is not None:
        return settings.name
    if settings.app is None:
        return None
    name = default_name(settings.app)
    return name if config is not None or name in running() else None


def _timeout(command: Command) -> Command:
    help_ = f"How long to wait for it; then exit status 1. [{WAIT_S:.0f}]"
    seconds = click.FloatRange(min=0)
    return click.option("--timeout", "timeout_s", type=seconds, default=WAIT_S, metavar="SECONDS", help=help_)(command)


@click.command(short_help="Show a running server and its shards.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@of_a_server
def status(server: Server, as_json: bool) -> None:
    """Show a running server: its addresses, its generation, and each shard."""
    found = server.status()
    if as_json:
        del found["next"]
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{found['name']}: {found['app']} on {', '.join(found['addresses'])}, pid {found['pid']}, shardnet "
        f"{found['version']}, engine {found['engine']}, generation {found['generation']}"
    )
    if found["lame_duck"]:
        click.echo("lame duck: not ready, still serving")
    if found["reload"]:
        click.echo(f"reload: {found['reload']}")
    click.echo(f"{'shard':>5} {'state':<9} {'pid':>7} {'gen':>4} {'connections':>11} {'restarts':>8}  notes")
    for shard in found["shards"]:
        click.echo(_line(shard))


def _line(shard: dict[str, Any]) -> str:
    workers: list[dict[str, Any]] = sorted(shard["workers"], key=lambda one: one["state"] != "serving")
    worker = workers[0] if workers else {}
    notes = []
    if shard["lent_to"]:
        notes.append(f"lent to {', '.join(str(other) for other in shard['lent_to'])}")
    if shard["kept_out"]:
        notes.append("kept empty")
    draining = sum(w["state"] == "draining" for w in shard["workers"])
    if draining and shard["state"] != "draining":
        notes.append(f"{draining} draining")
    return (
        f"{shard['shard']:>5} {shard['state']:<9} {worker.get('pid') or '-':>7} {worker.get('generation') or '-':>4} "
        f"{shard.get('connections', 0):>11} {shard.get('restarts', 0):>8}  {', '.join(notes)}"
    ).rstrip()


@click.command(short_help="Put a new generation of workers in place.")
@_timeout
@of_a_server
def reload(server: Server, timeout_s: float) -> None:
    """Put a new generation of workers in the place of the one that serves, as HUP does."""
    _reload(server, "reload", timeout_s)


@click.command(short_help="Start the installed shardnet in place, then reload.")
@_timeout
@of_a_server
def upgrade(server: Server, timeout_s: float) -> None:
    """Have the supervisor become the shardnet that is installed by now, under its pid, then reload, as USR2 does."""
    _reload(server, "upgrade", timeout_s)


def _reload(server: Server, command: str, timeout_s: float) -> None:
    before = server.status()
    asked = server.ask(command)

    def is_over(now: dict[str, Any]) -> bool:
        return bool(now["reloads_ok"] + now["reloads_failed"] > asked["outcomes_before"])

    now = server.wait(is_over, timeout_s, lambda now: f"{command}: {now['reload'] or 'asked for'}")
    if now["reloads_failed"] > before["reloads_failed"] and now["reload_failure"]:
        raise SystemFault(f"{command} failed: {now['reload_failure']}; generation {now['generation']} keeps serving")
    click.echo(f"generation {now['generation']} serves")


@click.command(short_help="Serve so many shards.")
@click.argument("shards", type=int, metavar="N")
@_timeout
@of_a_server
def scale(server: Server, shards: int, timeout_s: float) -> None:
    """Serve N shards from now on: 1 to --max-workers."""
    server.ask("scale", shards=shards)

    def is_so(now: dict[str, Any]) -> bool:
        states = [shard["state"] for shard in now["shards"] if not shard["kept_out"]]
        return now["shards_wanted"] == shards and states[:shards] == ["serving"] * shards and len(states) == shards

    server.wait(is_so, timeout_s, _states)
    click.echo(f"{shards} {'shard serves' if shards == 1 else 'shards serve'}")


@click.command(short_help="Replace a shard's worker, its successor first.")
@click.argument("shard", type=int, metavar="SHARD")
@_timeout
@of_a_server
def restart(server: Server, shard: int, timeout_s: float) -> None:
    """Replace the worker of SHARD: its successor comes up first, then it drains."""
    old = server.ask("restart", shard=shard)["pid"]

    def is_so(now: dict[str, Any]) -> bool:
        workers = _shard(now, shard)["workers"]
        return all(one["pid"] != old for one in workers) and any(one["state"] == "serving" for one in workers)

    server.wait(is_so, timeout_s, _states)
    click.echo(f"shard {shard} has a new worker")


@click.command(short_help="Empty a shard, and keep it so.")
@click.argument("shard", type=int, metavar="SHARD")
@_timeout
@of_a_server
def drain(server: Server, shard: int, timeout_s: float) -> None:
    """Let the worker of SHARD come to its end, and start none for it; others accept what comes there. See undrain."""
    server.ask("drain", shard=shard)
    server.wait(lambda now: not _shard(now, shard)["workers"], timeout_s, _states)
    click.echo(f"shard {shard} is empty")


@click.command(short_help="Have a worker for a drained shard again.")
@click.argument("shard", type=int, metavar="SHARD")
@_timeout
@of_a_server
def undrain(server: Server, shard: int, timeout_s: float) -> None:
    """Start a worker for SHARD again, after drain."""
    server.ask("undrain", shard=shard)
    server.wait(lambda now: bool(_shard(now, shard)["state"] == "serving"), timeout_s, _states)
    click.echo(f"shard {shard} serves")


def _shard(status: dict[str, Any], number: int) -> dict[str, Any]:
    return next((shard for shard in status["shards"] if shard["shard"] == number), {"workers": [], "state": "vacant"})


def _states(status: dict[str, Any]) -> str:
    return " ".join(f"{shard['shard']}:{shard['state']}" for shard in status["shards"])


@click.command(short_help="Print where workers stand: threads and tasks.")
@click.argument("shard", type=int, required=False, metavar="[SHARD]")
@of_a_server
def stacks(server: Server, shard: int | None) -> None:
    """Print the stacks of all threads and asyncio tasks of the worker of SHARD, or of each shard that serves.

    Threads are shown whatever the worker is busy with; tasks only if its event loop turns.
    """
    serving = [one["shard"] for one in server.status()["shards"] if one["state"] == "serving"]
    for number in serving if shard is None else [shard]:
        pid = server.ask("stacks", shard=number)["pid"]
        said = server.ask("stacks_said", shard=number)
        deadline_s = time.monotonic() + STACKS_S
        while not (said["threads"] and said["tasks"]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
            said = server.ask("stacks_said", shard=number)
        click.echo(f"shard {number}, pid {pid}, threads:")
        click.echo(said["threads"] or "nothing heard: it is stopped")
        click.echo(f"shard {number}, pid {pid}, tasks:")
        click.echo(said["tasks"] or "not known: its event loop does not turn")


@click.command("log-level", short_help="Change what is logged.")
@click.argument("level", metavar="LEVEL")
@of_a_server
def log_level(server: Server, level: str) -> None:
    """Log what is of LEVEL or graver from now on: debug, info, warning or error."""
    server.ask("log_level", level=level)
    click.echo(f"log level {level}")


@click.command("lame-duck", short_help="Say that the server is not ready, and serve on.")
@click.argument("state", type=click.Choice(["on", "off"]), default="on", metavar="[on|off]")
@of_a_server
def lame_duck(server: Server, state: str) -> None:
    """Let /readyz say no, so that a load balancer sends nobody new, while whoever comes is served; off: undo it."""
    server.ask("lame_duck", on=state == "on")
    click.echo("not ready, still serving" if state == "on" else "ready again")


@click.command(short_help="Stop a running server.")
@click.option("--now", is_flag=True, help="At once: connections are cut.")
@_timeout
@of_a_server
def stop(server: Server, now: bool, timeout_s: float) -> None:
    """Stop a running server: its workers drain, as on TERM."""
    server.status()
    server.ask("stop", now=now)
    deadline_s = time.monotonic() + timeout_s
    last = ""
    while time.monotonic() < deadline_s:
        try:
            states = _states(server.status())
        except NotRunning:
            click.echo("stopped")
            return
        if states != last:
            last = states
            click.echo(f"stopping: {states}", err=True)
        time.sleep(0.1)
    raise SystemFault(f"it has not stopped within {timeout_s:.0f} s: shardnet stop --now cuts its connections")


COMMANDS: Final = (status, reload, scale, restart, drain, undrain, stacks, log_level, lame_duck, upgrade, stop)
