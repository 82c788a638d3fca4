"""The exporter's pages over TLS: certificates, their renewal, clients with and without."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
from pathlib import Path

import pytest

from shardnet.errors import ConfigError
from shardnet.exporter.options import ExporterOptions, TlsFiles
from shardnet.exporter.tls import load_context
from tests.exporter_kit import Answer, Authority, authority, exchange, exporting

__all__ = ["authority"]  # A fixture.

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="session")
def files(authority: Authority) -> TlsFiles:
    return TlsFiles(*authority.issue("metrics"))


def installed(files: TlsFiles, folder: Path, **more: Path) -> TlsFiles:
    """Copies, that a test may replace."""
    assert files.key is not None
    certificate, key = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(files.certificate.read_bytes())
    key.write_bytes(files.key.read_bytes())
    return TlsFiles(certificate, key, **more)


def serial(client: ssl.SSLSocket) -> int:
    found = client.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_pages_are_served_over_tls(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter:
        for path in ("/metrics", "/livez", "/readyz", "/healthz"):
            assert exporter.get(path, context=authority.context()).status == 200
        with authority.context().wrap_socket(
            socket.create_connection(exporter.address, 20), server_hostname="localhost"
        ) as client:
            for _ in range(3):  # One connection, several requests.
                client.sendall(GET)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(1)
                length = int(Answer.parse(head).header("Content-Length") or 0)
                body = b""
                while len(body) < length:
                    body += client.recv(length - len(body))
            answer = Answer.parse(exchange(client, LAST_GET))  # Ends with a close_notify: read() would raise else.
            assert answer.status == 200
            assert answer.body.startswith(b"# HELP shardnet_")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_of_version_1_2_or_1_3(
    authority: Authority, files: TlsFiles, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter:
        assert exporter.get("/livez", context=context).status == 200


def test_http_is_chosen_in_the_version_that_is_spoken(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    context = authority.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter, exporter.connect(context) as client:
        assert isinstance(client, ssl.SSLSocket)
        assert client.selected_alpn_protocol() == "http/1.1"


def test_key_may_be_in_the_certificates_file(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    assert files.key is not None
    both = tmp_path / "both.pem"
    both.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
    with exporting(tmp_path, ExporterOptions(tls=TlsFiles(both))) as exporter:
        assert exporter.get("/livez", context=authority.context()).status == 200


def test_renewed_certificate_is_used_without_a_restart(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    """Law: while certificate and key are replaced, one after the other, the old pair serves on."""
    own = installed(files, tmp_path)
    assert own.key is not None
    new_certificate, new_key = authority.issue("metrics", serial=77)
    with exporting(tmp_path, ExporterOptions(tls=own)) as exporter:

        def seen() -> int:
            with exporter.connect(authority.context()) as client:
                assert isinstance(client, ssl.SSLSocket)
                return serial(client)

        assert seen() == 1
        stays = exporter.connect(authority.context())
        new_certificate.replace(own.certificate)
        assert seen() == 1
        assert seen() == 1
        assert exporter.log.count("is not the key of the certificate") == 1
        new_key.replace(own.key)
        assert seen() == 77
        with stays:
            assert Answer.parse(exchange(stays, LAST_GET)).status == 200
        own.certificate.unlink()
        assert seen() == 77


def test_client_certificate_opens_what_tells_of_the_server(
    authority: Authority, files: TlsFiles, tmp_path: Path
) -> None:
    own = installed(files, tmp_path, client_ca=authority.certificate)
    known = authority.context(authority.issue("prometheus"))
    with exporting(tmp_path, ExporterOptions(tls=own)) as exporter:
        for path in ("/metrics", "/healthz"):
            assert exporter.get(path, context=known).status == 200
            refused = exporter.get(path, context=authority.context())
            assert (refused.status, refused.body) == (403, b"this page needs a client certificate\n")
        for path in ("/livez", "/readyz"):
            assert exporter.get(path, context=known).status == 200
            assert exporter.get(path, context=authority.context()).status == 200


def test_client_certificate_of_somebody_else_is_refused(
    authority: Authority, files: TlsFiles, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger"), authority.openssl)
    stranger.found()
    own = installed(files, tmp_path, client_ca=authority.certificate)
    context = authority.context(stranger.issue("prometheus"))
    with exporting(tmp_path, ExporterOptions(tls=own)) as exporter:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            exporter.get("/readyz", context=context)
        assert exporter.get("/readyz", context=authority.context()).status == 200


def test_token_and_client_certificate_are_needed_both(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("sesame")
    own = installed(files, tmp_path, client_ca=authority.certificate)
    known = authority.context(authority.issue("prometheus"))
    with exporting(tmp_path, ExporterOptions(tls=own, token_file=token)) as exporter:
        assert exporter.get("/metrics", "Authorization: Bearer sesame", context=known).status == 200
        assert exporter.get("/metrics", context=known).status == 401
        assert exporter.get("/metrics", "Authorization: Bearer sesame", context=authority.context()).status == 403


def test_client_that_has_not_heard_of_tls_is_told_in_plain(files: TlsFiles, tmp_path: Path) -> None:
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter:
        answer = exporter.get("/metrics")
    assert (answer.status, answer.body) == (400, b"this address speaks TLS: ask with https\n")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 64,
        hashlib.sha256(b"noise").digest() * 200,
        b"\x16\x03\x01\x40\x00" + b"\x00" * 64,  # A record that promises more than it may.
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" * 10,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=["zeros", "noise", "oversized", "hello", "ssh", "nothing"],
)
def test_handshake_of_garbage_ends_the_connection_alone(
    authority: Authority, files: TlsFiles, tmp_path: Path, garbage: bytes
) -> None:
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter:
        with exporter.connect() as client:
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while client.recv(65536):
                    pass
        assert exporter.get("/livez", context=authority.context()).status == 200
        assert "Traceback" not in exporter.log


def test_handshake_that_does_not_come_is_cut(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    """Law: a handshake has a second; clients that let it wait cost nobody else anything."""
    with exporting(tmp_path, ExporterOptions(tls=files)) as exporter:
        silent = [exporter.connect() for _ in range(8)]
        for client in silent[4:]:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        for _ in range(5):
            assert exporter.get("/livez", context=authority.context()).status == 200
        for client in silent:
            with client:
                assert client.recv(65536) == b""


def test_nothing_is_served_while_there_have_never_been_certificates(authority: Authority, tmp_path: Path) -> None:
    """As when the program was started over, and the files are gone meanwhile. Plain HTTP is not what it falls back
    to."""
    own = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    with exporting(tmp_path, ExporterOptions(tls=own)) as exporter:
        with exporter.connect() as client:
            assert client.recv(65536) == b""
        exporter.wait_log("cannot be read")
        certificate, key = authority.issue("late")
        certificate.replace(own.certificate)
        key.replace(tmp_path / "tls.key")
        assert exporter.get("/livez", context=authority.context()).status == 200


# What is wrong with files.


def test_files_of_tls_are_refused_in_one_line(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    assert files.key is not None
    _, other_key = authority.issue("other")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    missing = tmp_path / "missing.pem"
    cases = [
        (TlsFiles(missing, files.key), missing, "cannot be read: No such file"),
        (TlsFiles(files.certificate, missing), missing, "cannot be read: No such file"),
        (TlsFiles(files.certificate, files.key, missing), missing, "cannot be read: No such file"),
        (TlsFiles(files.certificate, other_key), other_key, "is not the key of the certificate"),
        (TlsFiles(files.certificate), files.certificate, "no certificate and key"),
        (TlsFiles(nonsense, files.key), nonsense, "no certificate and key"),
        (TlsFiles(files.certificate, files.key, nonsense), nonsense, "has no certificate"),
        (TlsFiles(files.certificate, tmp_path), tmp_path, "cannot be read: Is a directory"),
    ]
    for wrong, where, why in cases:
        with pytest.raises(ConfigError) as refused:
            load_context(wrong)
        assert str(where) in str(refused.value)
        assert why in str(refused.value)
        assert "\n" not in str(refused.value)


def test_key_with_a_passphrase_is_refused_and_nobody_asked(
    authority: Authority, files: TlsFiles, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    assert files.key is not None
    authority.run("pkey", "-in", files.key, "-aes256", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(ConfigError, match="is encrypted"):
        load_context(TlsFiles(files.certificate, locked))
