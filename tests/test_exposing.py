"""What is said at the start about the metrics address: settings that do not fit, files that are no good, exposure."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.config import Settings, changed
from shardnet.errors import ConfigError, UsageError
from shardnet.exporter.options import ExporterOptions, TlsFiles
from shardnet.exposing import check_exporter, exporter_options, warn_of_exposure
from shardnet.log import LogOptions, set_up
from tests.exporter_kit import Authority, authority

__all__ = ["authority"]  # A fixture.

TLS = TlsFiles(Path("crt"), Path("key"))
CERTIFIED = TlsFiles(Path("crt"), Path("key"), Path("ca"))
TOKEN = Path("token")


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    handler = set_up(LogOptions(file=tmp_path / "log"))
    yield tmp_path / "log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def settings(**values: object) -> Settings:
    return changed(Settings(), **values)


def test_options_are_those_of_the_settings() -> None:
    assert exporter_options(settings()) == ExporterOptions()
    assert exporter_options(settings(ready_min_shards="all")) == ExporterOptions(ready_min_shards=None)
    assert exporter_options(
        settings(
            metrics_tls_cert="crt",
            metrics_tls_key="key",
            metrics_client_ca="ca",
            metrics_token_file="token",
            ready_min_shards=3,
        )
    ) == ExporterOptions(3, CERTIFIED, TOKEN)


@pytest.mark.parametrize(("minimum", "fits"), [(1, True), (4, True), (5, False), ("all", True)])
def test_ready_min_shards_is_held_against_the_shards(minimum: object, fits: bool) -> None:
    if fits:
        check_exporter(settings(ready_min_shards=minimum), 4)
    else:
        with pytest.raises(UsageError, match=r"--ready-min-shards 5 is more than the 4 shards"):
            check_exporter(settings(ready_min_shards=minimum), 4)


@pytest.mark.parametrize("name", ["metrics_tls_key", "metrics_client_ca"])
def test_what_is_for_tls_needs_a_certificate(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is for TLS: give --metrics-tls-cert"):
        check_exporter(settings(**{name: str(tmp_path / "file")}), 4)


@pytest.mark.parametrize("name", ["metrics_tls_cert", "metrics_token_file"])
def test_files_are_looked_into_before_the_start(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check_exporter(settings(**{name: str(tmp_path / "missing")}), 4)


def test_files_that_are_good_are_let_pass(authority: Authority, tmp_path: Path, log_file: Path) -> None:
    certificate, key = authority.issue("metrics")
    token = tmp_path / "token"
    token.write_text("token")
    values = {
        "metrics_tls_cert": str(certificate),
        "metrics_tls_key": str(key),
        "metrics_client_ca": str(authority.certificate),
        "metrics_token_file": str(token),
    }
    check_exporter(settings(**values), 4)
    assert not log_file.exists() or log_file.read_text() == ""


def test_settings_of_metrics_that_are_off_are_said_to_have_no_effect(log_file: Path) -> None:
    check_exporter(settings(metrics_bind="off", metrics_token_file="missing"), 4)
    assert "metrics_bind is off" in log_file.read_text()


@pytest.mark.parametrize(
    ("options", "host", "words"),
    [
        (ExporterOptions(), "0.0.0.0", ["whoever reaches 0.0.0.0:", "--metrics-token-file", "--metrics-client-ca"]),
        (ExporterOptions(), "::", ["whoever reaches [::]:"]),
        (ExporterOptions(tls=TLS), "0.0.0.0", ["whoever reaches"]),
        (ExporterOptions(token_file=TOKEN), "0.0.0.0", ["in the clear", "--metrics-tls-cert"]),
        (ExporterOptions(tls=TLS, token_file=TOKEN), "0.0.0.0", []),
        (ExporterOptions(tls=CERTIFIED), "0.0.0.0", []),
        (ExporterOptions(), "127.0.0.1", []),
        (ExporterOptions(), "127.5.5.5", []),
        (ExporterOptions(), "::1", []),
    ],
)
def test_exposure_is_warned_of_in_one_line(
    options: ExporterOptions, host: str, words: list[str], log_file: Path
) -> None:
    try:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        warn_of_exposure(listener, options)
    said = log_file.read_text().splitlines() if log_file.exists() else []
    assert len(said) == (1 if words else 0)
    for word in words:
        assert word in said[0]
