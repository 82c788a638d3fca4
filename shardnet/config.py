"""Settings: each declared once, with its type, default, unit and help.

The flag of a setting is its name without the unit: `drain_timeout_s` is `--drain-timeout`.

Lives here: what can be set. Must not live here: where values come from (see `cli`), what they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

AUTO: Final = "auto"
OFF: Final = "off"

HERE: Final = Path()

UNITS: Final = {"_s": "SECONDS", "_bytes": "BYTES"}


@dataclass(frozen=True, slots=True)
class Meta:
    """What the command line and the documentation say of a setting."""

    help: str
    metavar: str = ""
    least: float | None = None
    most: float | None = None


def _setting(default: Any, help_: str, metavar: str = "", **more: Any) -> Any:
    return field(default=default, metadata={"meta": Meta(help_, metavar, **more)})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set for `shardnet run`."""

    bind: tuple[str, ...] = _setting(
        ("127.0.0.1:9000",), "Address to listen on; may be given several times. Port 0: a free one.", "HOST:PORT"
    )
    workers: int | None = _setting(
        None,
        "How many shards, a worker process each; auto: one for each usable CPU.",
        "N",
        least=1,
        most=1024,
    )
    metrics_bind: str = _setting("127.0.0.1:9464", "Address of /metrics and the health pages; off: none.", "HOST:PORT")
    app_dir: Path = _setting(HERE, "Where to look for the app's module first.", "DIR")
    max_connections: int | None = _setting(
        None, "Open connections per worker; auto: as many as the file limit allows.", "N", least=1
    )
    backlog: int = _setting(4096, "Connections that may wait to be accepted, per shard.", "N", least=1)
    swap_size_bytes: int = _setting(
        262144, "Swap buffer of a worker: how much one batch of reads may bring.", least=4096
    )
    drain_timeout_s: float = _setting(30.0, "How long connections may take to end when stopping.", least=0)
    boot_timeout_s: float = _setting(120.0, "How long a worker may take to import the app.", least=1)
    debug: bool = _setting(False, "Show tracebacks of errors.")


@dataclass(frozen=True, slots=True)
class Declaration:
    """One setting as declared."""

    name: str
    flag: str
    type: str
    default: Any
    meta: Meta


def declarations() -> Iterator[Declaration]:
    """Every setting, in order."""
    for entry in dataclasses.fields(Settings):
        meta: Meta = entry.metadata["meta"]
        name, unit = entry.name, ""
        for suffix, metavar in UNITS.items():
            if name.endswith(suffix):
                name, unit = name.removesuffix(suffix), metavar
        if not meta.metavar:
            meta = dataclasses.replace(meta, metavar=unit)
        yield Declaration(entry.name, "--" + name.replace("_", "-"), str(entry.type), entry.default, meta)
