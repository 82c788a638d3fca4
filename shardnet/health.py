"""`shardnet health`: one question, and an exit status that says the answer. For container checks.

It runs every few seconds for as long as a server does, so it costs little: nothing of the command line's libraries is
imported, and settings, TLS and the commands' socket only when they are needed. And it ends in time, whatever it waits
for: a thread sees to that, because names are looked up, and unix sockets connected to, without a deadline.

Lives here: finding the server, asking it, judging the answer. Must not live here: what ready means (see
`exporter.health`), as far as the server is asked over HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

from shardnet.errors import ConfigError, ExitCode, NotRunning, ShardnetError, SystemFault, UsageError

__all__ = ["main"]

TIMEOUT_S: Final = 2.0
HELP_WIDTH: Final = 100
ANSWER_MAX_BYTES: Final = 65536
HTTPS: Final = "https://"
HTTP: Final = "http://"
STDERR: Final = 2
PORT_MAX: Final = 65535
PORT_DIGITS_MAX: Final = 10  # Whatever has more is no port, and int() may take long.
OK: Final = 200
SERVICE_UNAVAILABLE: Final = 503

DESCRIPTION: Final = """\
Say whether the server is ready, by the exit status and in one line.

The server that is meant is the one set up here, by shardnet.toml or SHARDNET_*: it is asked
at its metrics_bind. Without an exporter there, the commands' socket is asked, as by shardnet
status. Neither needs a token or a client certificate."""

EPILOG: Final = """\
Examples:
  shardnet health                              ready, or why not
  shardnet health --live                       for a check whose failure means a restart
  shardnet health --address 10.0.0.5:9464      an exporter elsewhere
  shardnet health --address https://metrics.example:9464 --ca ca.pem

  HEALTHCHECK --interval=5s --timeout=3s CMD ["shardnet", "health"]

Exit status: 0 yes; 1 no, or no answer in time; 2 usage, 3 configuration; 6 no server runs."""


class _Unanswered(SystemFault):
    """Whoever is at the address, if anybody, is no exporter that we can talk to."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an exporter is asked."""

    host: str
    port: int
    tls: bool
    ours: bool  # On this machine, so that a name in a certificate would prove nothing.

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{HTTPS if self.tls else ''}{host}:{self.port}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = _parser().parse_args(arguments)
    page = "livez" if given.live else "readyz"
    try:
        with _bounded(given.timeout):
            yes, line = _ask(page, given)
    except ShardnetError as error:
        yes, line = False, str(error)
        status = _status_of(error)
    else:
        status = ExitCode.OK if yes else ExitCode.FAILED
    with suppress(OSError):  # Nobody reads it; the exit status tells.
        print(line if yes else f"shardnet: {line}", file=sys.stdout if yes else sys.stderr, flush=True)
    return status


def _status_of(error: ShardnetError) -> ExitCode:
    match error:
        case ConfigError():
            return ExitCode.CONFIG
        case UsageError():
            return ExitCode.USAGE
        case NotRunning():
            return ExitCode.NOT_RUNNING
        case _:
            return ExitCode.FAILED


@contextmanager
def _bounded(timeout_s: float) -> Iterator[None]:
    """End the process when the time is up."""

    def give_up() -> None:
        os.write(STDERR, f"shardnet: no answer within {timeout_s:g} s\n".encode())
        os._exit(ExitCode.FAILED)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(page: str, given: argparse.Namespace) -> tuple[bool, str]:
    """Whether the answer is yes, and what to say."""
    if given.name is not None:
        return _ask_socket(page, given.name, None)
    if given.address is not None:
        try:
            return _ask_exporter(page, _named_place(given.address), given.ca)
        except _Unanswered as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                raise NotRunning(str(error)) from error
            raise
    return _ask_ours(page, given)


def _ask_ours(page: str, given: argparse.Namespace) -> tuple[bool, str]:
    from shardnet.config import OFF, resolve

    settings = resolve({}, config=given.config).settings
    needed, name = settings.ready_min_shards, settings.name
    place = None if settings.metrics_bind == OFF else _own_place(settings.metrics_bind, settings.metrics_tls_cert)
    if place is None:
        return _ask_socket(page, name or _name_of(settings.app), needed)
    try:
        return _ask_exporter(page, place, given.ca)
    except _Unanswered as error:
        # The server may have been told otherwise by flags, which are not known here.
        try:
            return _ask_socket(page, name or _name_of(settings.app), needed)
        except NotRunning as nobody:
            raise NotRunning(f"{error}; {nobody}") from nobody


# Over HTTP.


LOCAL: Final = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # Of what listens on all.


def _named_place(text: str) -> _Place:
    host, port = _split(text.removeprefix(HTTPS).removeprefix(HTTP).rstrip("/"))
    if not host or not port:
        raise UsageError(f"--address {text}: write HOST:PORT or https://HOST:PORT, for example 127.0.0.1:9464")
    ours = host in ("localhost", "::1") or host.startswith("127.")
    return _Place(host, port, text.startswith(HTTPS), ours)


def _own_place(bind: str, certificate: str | None) -> _Place | None:
    """Where the exporter that is set up so is reached from here; None when that is not known."""
    host, port = _split(bind)
    return _Place(LOCAL.get(host, host), port, certificate is not None, ours=True) if port else None


def _split(text: str) -> tuple[str, int]:
    """Host and port of an address; port 0 where it has none. `shardnet.listen` knows more of it, and costs more than
    all that is done here."""
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < PORT_DIGITS_MAX else 0
    return host.removeprefix("[").removesuffix("]"), number if number <= PORT_MAX else 0


def _ask_exporter(page: str, place: _Place, ca: str | None) -> tuple[bool, str]:
    try:
        answer = _fetch(page, place, ca)
        head, _, body = answer.partition(b"\r\n\r\n")
        version, status, *_ = head.split(b" ", 2)
        if not version.startswith(b"HTTP/1."):
            raise ValueError(version)
        code = int(status)
    except OSError as exc:
        raise _Unanswered(f"no answer from {place}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise _Unanswered(f"{place} does not speak HTTP") from exc
    if code not in (OK, SERVICE_UNAVAILABLE):
        said = body.decode(errors="replace").splitlines()
        raise _Unanswered(f"{place} answered {code}" + (f": {said[0][:200]}" if said else ""))
    try:
        details = dict(json.loads(body))
    except ValueError as exc:
        if code == SERVICE_UNAVAILABLE:  # It says in plain why it cannot know.
            return False, body.decode(errors="replace").strip()
        raise _Unanswered(f"{place} is no exporter of shardnet's") from exc
    return code == OK, _told(page, details)


def _fetch(page: str, place: _Place, ca: str | None) -> bytes:
    request = f"GET /{page} HTTP/1.1\r\nHost: {place.host}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((place.host, place.port)) as plain:
        sock = _over_tls(plain, place, ca) if place.tls else plain
        with sock:
            sock.sendall(request)
            answer = b""
            while len(answer) < ANSWER_MAX_BYTES and (data := sock.recv(ANSWER_MAX_BYTES)):
                answer += data
    return answer


def _over_tls(plain: socket.socket, place: _Place, ca: str | None) -> socket.socket:
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as exc:
        raise UsageError(f"--ca {ca}: {exc.strerror or exc}") from exc
    if place.ours:
        context.check_hostname = False
        if ca is None:
            context.verify_mode = ssl.CERT_NONE  # Nothing secret is said, and nobody is between us.
    return context.wrap_socket(plain, server_hostname=place.host)


# Over the commands' socket.


def _name_of(app: str | None) -> str | None:
    """What a server of this app is called, if one runs; None: whichever there is."""
    from shardnet.operatorsocket import default_name, running

    name = None if app is None else default_name(app)
    return name if name in running() else None


def _ask_socket(page: str, name: str | None, needed: int | str | None) -> tuple[bool, str]:
    """The same of the supervisor itself. `needed` counts where it does not say how many shards it needs."""
    from shardnet.asking import Server

    status = Server(name).status()
    if page == "livez":
        return True, "live: the supervisor answers"
    wanted = int(status["shards_wanted"])
    needed = status.get("ready_min_shards", needed)
    details = {
        "shards_serving": sum(shard["state"] == "serving" for shard in status["shards"]),
        "shards_needed": max(1, min(needed, wanted) if isinstance(needed, int) else wanted),
        "shards_configured": wanted,
        "lame_duck": status["lame_duck"],
        "stopping": status["stopping"],
    }
    details["ready"] = details["shards_serving"] >= details["shards_needed"] and not (
        details["lame_duck"] or details["stopping"]
    )
    return details["ready"], _told(page, details)


# What is said.


def _told(page: str, details: dict[str, Any]) -> str:
    if page == "livez":
        age_s = details.get("supervisor_heartbeat_age_s")
        if details.get("live"):
            return f"live: the supervisor's loop turned {age_s} s ago"
        return "not live: the supervisor's loop " + (
            "has not turned yet" if age_s is None else f"last turned {age_s} s ago"
        )
    shards = f"{details.get('shards_serving')} of {details.get('shards_configured')} shards serve"
    if details.get("ready"):
        return f"ready: {shards}"
    if details.get("lame_duck"):
        return f"not ready: lame duck, {shards}"
    if details.get("stopping"):
        return f"not ready: it stops, {shards}"
    return f"not ready: {shards}, {details.get('shards_needed')} needed"


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, as the other commands."""
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="shardnet health",
        usage="%(prog)s [OPTIONS]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=HELP_WIDTH),
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument_group("Options").add_argument
    add("--live", action="store_true", help="Ask whether the supervisor lives, not whether the server is ready.")
    add("--address", metavar="[https://]HOST:PORT", help="The exporter to ask, whatever is set up here.")
    add("--ca", metavar="FILE", help="Authorities to trust; without, on this machine any, elsewhere the system's.")
    add("--config", metavar="FILE", help="The settings file of the server that is meant.")
    add("--name", metavar="NAME", help="Ask the server of this name, at the commands' socket.")
    add("--timeout", metavar="SECONDS", type=_seconds, default=TIMEOUT_S, help="For all of it. [%(default)g]")
    add("-h", "--help", action="help", help="Show this message and exit.")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, found {text}")
    return seconds
