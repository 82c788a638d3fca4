"""The metrics address, as far as the start of a server is concerned: who may reach it, with what, and what runs there.

Lives here: the exporter's listener, its options, and what is wrong with them. Must not live here: the exporter (see
`exporter`), which must not even be imported before the fork.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from shardnet import __version__
from shardnet.config import OFF, Settings
from shardnet.errors import AddressInUse, UsageError
from shardnet.exporter.access import read_token
from shardnet.exporter.options import ExporterOptions, TlsFiles
from shardnet.exporter.tls import load_context
from shardnet.holder import with_holder
from shardnet.listen import Address, TcpAddress, open_metrics_listener, parse_tcp_address
from shardnet.log import get_logger
from shardnet.seats import ExporterSeat
from shardnet.watcher import ENGINE

__all__ = [
    "FILES",
    "address_of",
    "check_exporter",
    "exporter_main",
    "exporter_options",
    "open_metrics",
    "warn_of_exposure",
]

# The settings that name a file of the exporter's.
FILES: Final = ("metrics_tls_cert", "metrics_tls_key", "metrics_client_ca", "metrics_token_file")


def exporter_options(settings: Settings) -> ExporterOptions:
    """What the exporter is told."""
    certificate, key, client_ca, token = (_path(getattr(settings, name)) for name in FILES)
    return ExporterOptions(
        ready_min_shards=settings.ready_min_shards if isinstance(settings.ready_min_shards, int) else None,
        tls=None if certificate is None else TlsFiles(certificate, key, client_ca),
        token_file=token,
    )


def check_exporter(settings: Settings, shards: int) -> None:
    """What can be known before the start to be wrong with the settings of the metrics, `shards` being served.

    Raises:
        UsageError: They do not fit together.
        ConfigError: A file that they name is no good.
    """
    minimum = settings.ready_min_shards
    if isinstance(minimum, int) and minimum > shards:
        raise UsageError(
            f"--ready-min-shards {minimum} is more than the {shards} shards that are served: lower it, or say all"
        )
    if settings.metrics_bind == OFF:
        if any(getattr(settings, name) is not None for name in FILES):
            get_logger("supervisor").warning("metrics_* have no effect: metrics_bind is off")
        return
    for name in ("metrics_tls_key", "metrics_client_ca"):
        if getattr(settings, name) is not None and settings.metrics_tls_cert is None:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for TLS: give --metrics-tls-cert as well")
    options = exporter_options(settings)
    if options.tls is not None:
        load_context(options.tls)
    if options.token_file is not None:
        read_token(options.token_file)


def open_metrics(text: str, served: Iterable[Address], *, required: bool) -> socket.socket | None:
    """The exporter's listener. A default address that is taken costs the metrics, not the service."""
    if text == OFF:
        return None
    address = parse_tcp_address(text)
    try:
        if any(ours.covers(address) or address.covers(ours) for ours in served):
            raise AddressInUse(f"address {address} is among those of --bind: give --metrics-bind another port")
        return open_metrics_listener(address)
    except AddressInUse as error:
        if required:
            raise
        get_logger("supervisor").warning(f"no metrics: {with_holder(error)}", hint="--metrics-bind HOST:PORT or off")
        return None


def warn_of_exposure(listener: socket.socket, options: ExporterOptions) -> None:
    """Say so when others than this machine's users can read more than they perhaps should."""
    address = address_of(listener)
    if ipaddress.ip_address(address.host.partition("%")[0]).is_loopback:
        return
    certified = options.tls is not None and options.tls.client_ca is not None
    if options.token_file is None and not certified:
        get_logger("supervisor").warning(
            f"whoever reaches {address} can read the metrics: set --metrics-token-file or --metrics-client-ca, or bind "
            "them to 127.0.0.1"
        )
    elif options.tls is None:
        get_logger("supervisor").warning(
            f"the token for {address} crosses the network in the clear: set --metrics-tls-cert"
        )


def address_of(listener: socket.socket) -> TcpAddress:
    """Where it listens."""
    return TcpAddress(listener.family, *listener.getsockname()[:2])


def exporter_main(options: ExporterOptions) -> partial[int]:
    """What the exporter runs, given its seat."""
    return partial(_run_exporter, options)


def _run_exporter(options: ExporterOptions, seat: ExporterSeat) -> int:
    # Imported in the exporter alone: what the supervisor imports, every worker pays for.
    from shardnet.exporter import run_exporter

    return run_exporter(seat, version=__version__, engine=ENGINE, options=options)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
