"""Settings: each declared once, with its type, range, default, group and help.

Flag, TOML key and environment variable of a setting are its name without the unit: `drain_timeout_s` is
`--drain-timeout`, `drain_timeout` and `SHARDNET_DRAIN_TIMEOUT`.

Lives here: what can be set, and to what. Must not live here: reading values (see `values`), where they come from (see
`layers`), what they do.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

__all__ = ["AUTO", "DASH", "OFF", "UNITS", "Group", "Settings", "changed", "key_of"]

AUTO: Final = "auto"
OFF: Final = "off"
DASH: Final = "-"

UNITS: Final = {"_s": "SECONDS", "_bytes": "BYTES"}

_SHARDS_MAX: Final = 1024
_WEEK_S: Final = 7 * 24 * 3600.0  # Nobody waits longer, and the clocks underneath can count so far.
_BYTES_MAX: Final = 1 << 30


class Group(enum.StrEnum):
    """Headings of the help, in order."""

    APP = "App"
    ADDRESSES = "Addresses"
    WORKERS = "Workers"
    LIMITS = "Limits"
    STOPPING = "Stopping and reloading"
    METRICS = "Metrics"
    LOGS = "Logs"
    DEVELOPMENT = "Development"


def _about(
    group: Group, help_: str, metavar: str = "", *, expected: str = "", example: str = "", folder: bool = False
) -> Meta:
    """What the command line and the documentation say of a setting.

    Args:
        group: Where it stands in the help.
        help_: One sentence.
        metavar: What stands for its value; derived where the name has a unit or the type is a choice.
        expected: What to write, said when something else was found; derived for numbers and choices.
        example: A value for a setting that has no default.
        folder: It has to name a folder that exists.
    """
    extra = {"group": group, "metavar": metavar, "expected": expected, "example": example, "folder": folder}
    return Meta(description=help_, extra=extra)


def changed(settings: Settings, **values: object) -> Settings:
    """The same settings, but for these."""
    return msgspec.structs.replace(settings, **values)


def key_of(name: str) -> str:
    """A setting's name without its unit."""
    for suffix in UNITS:
        name = name.removesuffix(suffix)
    return name


_Text = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=1)]
_Bytes = Annotated[int, Meta(ge=4096, le=_BYTES_MAX)]
_Queue = Annotated[int, Meta(ge=256 * 1024, le=_BYTES_MAX)]  # From where reading stops until there is room again.
_AppName = Annotated[str, Meta(pattern="^[^:]+:[^:]+$")]
_Octal = Annotated[str, Meta(pattern="^0?[0-7]{3}$")]
_Owner = Annotated[str, Meta(pattern="^([^:]+(:[^:]+)?|:[^:]+)$")]
_Wait = Annotated[float, Meta(ge=0, le=_WEEK_S)]
_Patience = Annotated[float, Meta(ge=1, le=_WEEK_S)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=key_of):
    """Everything that can be set for `shardnet run`."""

    app: Annotated[
        _AppName | None,
        _about(
            Group.APP,
            "What to serve.",
            "MODULE:NAME",
            expected="MODULE:NAME, for example app:handler",
            example="app:handler",
        ),
    ] = None
    app_dir: Annotated[
        _Text, _about(Group.APP, "Where to look for the app's module first.", "DIR", expected="a folder", folder=True)
    ] = "."
    name: Annotated[
        Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,60}$")] | None,
        _about(
            Group.APP,
            "For `shardnet status` and others; not set: the module.",
            "NAME",
            expected="letters, digits, and _ . -",
            example="chat",
        ),
    ] = None
    bind: Annotated[
        tuple[_Text, ...],
        Meta(min_length=1),
        _about(
            Group.ADDRESSES,
            "HOST:PORT, [V6]:PORT, :PORT (every IPv4), *:PORT (v4 and v6), unix:PATH or fd://N. "
            "Several: repeat it. Port 0: a free one.",
            "ADDRESS",
            expected='a list of addresses, for example ["127.0.0.1:9000"]',
        ),
    ] = ("127.0.0.1:9000",)
    unix_mode: Annotated[
        _Octal | None,
        _about(
            Group.ADDRESSES,
            "Permissions of unix sockets, octal; not set: by the umask.",
            "MODE",
            expected='octal digits in quotes, for example "660"',
            example="660",
        ),
    ] = None
    unix_owner: Annotated[
        _Owner | None,
        _about(
            Group.ADDRESSES,
            "Owner of unix sockets; not set: whoever starts the server.",
            "[USER][:GROUP]",
            expected="USER, USER:GROUP or :GROUP",
            example="www-data:www-data",
        ),
    ] = None
    backlog: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)],
        _about(Group.ADDRESSES, "How many may wait to be accepted, per shard and address.", "N"),
    ] = 4096
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=_SHARDS_MAX)] | Literal["auto"],
        _about(Group.WORKERS, "Shards, a worker process each; auto: one for each usable CPU.", "N"),
    ] = "auto"
    steering: Annotated[
        Literal["hash", "random", "cpu", "source", "least"],
        _about(Group.WORKERS, "Which shard gets a TCP connection.", "HOW"),
    ] = "hash"
    pin: Annotated[bool, _about(Group.WORKERS, "Bind each worker to a CPU of its own.")] = False
    max_workers: Annotated[
        Annotated[int, Meta(ge=1, le=_SHARDS_MAX)] | Literal["auto"],
        _about(Group.WORKERS, "What it may be scaled to; auto: workers or CPUs.", "N"),
    ] = "auto"
    preload: Annotated[bool, _about(Group.WORKERS, "Import the app once, before forking, and anew at each reload.")] = (
        False
    )
    boot_timeout_s: Annotated[
        _Patience, _about(Group.WORKERS, "What a worker may take to import the app and start up.")
    ] = 120.0
    hang_timeout_s: Annotated[
        _Patience | Literal["off"],
        _about(Group.WORKERS, "A worker that hangs for so long is replaced.", "SECONDS"),
    ] = 30.0
    slow_turn_s: Annotated[
        Annotated[float, Meta(ge=0.001, le=86400.0)] | Literal["off"],
        _about(Group.WORKERS, "Log what holds a worker's loop for longer.", "SECONDS"),
    ] = 0.1
    worker_lifetime_s: Annotated[
        _Patience | Literal["off"],
        _about(Group.WORKERS, "A worker is replaced after so long.", "SECONDS"),
    ] = "off"
    worker_max_memory_bytes: Annotated[
        Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | Literal["off"],
        _about(
            Group.WORKERS,
            "A worker with more memory than this is replaced.",
            "BYTES",
        ),
    ] = "off"
    max_connections: Annotated[
        _Count | Literal["auto"],
        _about(Group.LIMITS, "Open connections per worker; auto: what the file limit allows.", "N"),
    ] = "auto"
    swap_size_bytes: Annotated[_Bytes, _about(Group.LIMITS, "How much one batch of reads may bring, per worker.")] = (
        262144
    )
    write_limit_bytes: Annotated[_Bytes, _about(Group.LIMITS, "A write that finds more than this unsent resets.")] = (
        4194304
    )
    write_stall_s: Annotated[
        _Patience, _about(Group.LIMITS, "A peer that takes no byte of ours for so long is reset.")
    ] = 30.0
    drain_timeout_s: Annotated[_Wait, _about(Group.STOPPING, "How long connections may take to end; as PID 1: 8.")] = (
        30.0
    )
    drain_spread_s: Annotated[
        _Wait, _about(Group.STOPPING, "A reload ends idle connections over so long, not at once.")
    ] = 1.0
    metrics_bind: Annotated[
        _Text,
        _about(
            Group.METRICS,
            "Address of /metrics and the health pages; off: none.",
            "HOST:PORT",
            expected="HOST:PORT or off",
        ),
    ] = "127.0.0.1:9464"
    metrics_tls_cert: Annotated[
        _Text | None,
        _about(
            Group.METRICS,
            "Serve these over TLS with this certificate.",
            "FILE",
            expected="a path",
            example="/etc/shardnet/metrics.crt",
        ),
    ] = None
    metrics_tls_key: Annotated[
        _Text | None,
        _about(
            Group.METRICS,
            "Its key; not set: in the same file.",
            "FILE",
            expected="a path",
            example="/etc/shardnet/metrics.key",
        ),
    ] = None
    metrics_client_ca: Annotated[
        _Text | None,
        _about(
            Group.METRICS,
            "/metrics and /healthz need a certificate by this authority.",
            "FILE",
            expected="a path",
            example="/etc/shardnet/clients.crt",
        ),
    ] = None
    metrics_token_file: Annotated[
        _Text | None,
        _about(
            Group.METRICS,
            "/metrics and /healthz need the bearer token in this file.",
            "FILE",
            expected="a path",
            example="/etc/shardnet/metrics.token",
        ),
    ] = None
    ready_min_shards: Annotated[
        Annotated[int, Meta(ge=1, le=_SHARDS_MAX)] | Literal["all"],
        _about(Group.METRICS, "/readyz says yes when so many shards serve; all: every one.", "N"),
    ] = 1
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about(Group.LOGS, "The least that is worth a line.", "LEVEL")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], _about(Group.LOGS, "Lines of key=value, or a JSON object each.", "FORMAT")
    ] = "text"
    log_file: Annotated[
        _Text, _about(Group.LOGS, "Where the log goes; -: to standard error.", "FILE", expected="a path or -")
    ] = DASH
    access_log: Annotated[
        _Text,
        _about(
            Group.LOGS,
            "A line for each closed connection; -: in the log; off: none.",
            "FILE",
            expected="a path, - or off",
        ),
    ] = OFF
    watch: Annotated[bool, _about(Group.DEVELOPMENT, "Reload when a source file changes; needs shardnet[watch].")] = (
        False
    )
    debug: Annotated[bool, _about(Group.DEVELOPMENT, "asyncio's debug mode, tracebacks, and a log of level debug.")] = (
        False
    )
