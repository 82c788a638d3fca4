"""What the exporter is told: values alone, so that whoever starts it need not import it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExporterOptions", "TlsFiles"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where what TLS needs is, in PEM."""

    certificate: Path  # With those of the authorities between it and one that clients trust.
    key: Path | None = None  # None: in the same file.
    client_ca: Path | None = None  # None: clients need no certificates.

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True, slots=True)
class ExporterOptions:
    """Who may read which pages, and what they call ready."""

    ready_min_shards: int | None = 1  # None: all of them.
    tls: TlsFiles | None = None
    token_file: Path | None = None
