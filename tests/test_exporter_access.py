"""Who may read which of the exporter's pages: bearer tokens, over real sockets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardnet.errors import ConfigError
from shardnet.exporter.access import read_token
from shardnet.exporter.options import ExporterOptions
from tests.exporter_kit import exporting, tell

TOKEN = "s3cret.token-of_64~characters+/=="
GUARDED = ("/metrics", "/healthz")
OPEN = ("/livez", "/readyz")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"  {TOKEN}\n\n")
    return file


def test_token_opens_every_page(token_file: Path, tmp_path: Path) -> None:
    with exporting(tmp_path, ExporterOptions(token_file=token_file)) as exporter:
        for path in (*GUARDED, *OPEN):
            for scheme in ("Bearer", "bearer", "BEARER "):
                assert exporter.get(path, f"Authorization: {scheme} {TOKEN}").status == 200


def test_pages_for_probes_need_no_token(token_file: Path, tmp_path: Path) -> None:
    with exporting(tmp_path, ExporterOptions(token_file=token_file)) as exporter:
        for path in OPEN:
            assert exporter.get(path).status == 200
            assert exporter.get(path, "Authorization: Bearer wrong").status == 200
        assert exporter.get("/nowhere").status == 404


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Authorization: Bearer wrong",
        "Authorization: Bearer",
        f"Authorization: Basic {TOKEN}",
        f"Authorization: {TOKEN}",
        f"Authorization: Bearer {TOKEN}x",
        f"Authorization: Bearer {TOKEN[:-1]}",
        f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}",
        f"Proxy-Authorization: Bearer {TOKEN}",
        "Authorization: Bearer " + "x" * 5000,
    ],
)
def test_token_that_is_missing_or_wrong_is_challenged(
    token_file: Path, tmp_path: Path, path: str, method: str, header: str
) -> None:
    with exporting(tmp_path, ExporterOptions(token_file=token_file)) as exporter:
        answer = exporter.get(path, *([header] if header else []), method=method)
    assert answer.status == 401
    challenge = answer.header("WWW-Authenticate")
    assert challenge is not None
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) is header.startswith("Authorization")
    assert b"shardnet_" not in answer.body
    assert TOKEN not in answer.head
    assert TOKEN.encode() not in answer.body


def test_token_is_read_anew_when_its_file_has_changed(token_file: Path, tmp_path: Path) -> None:
    with exporting(tmp_path, ExporterOptions(token_file=token_file)) as exporter:
        assert exporter.get("/metrics", f"Authorization: Bearer {TOKEN}").status == 200
        tell(token_file, "another\n")
        assert exporter.get("/metrics", f"Authorization: Bearer {TOKEN}").status == 401
        assert exporter.get("/metrics", "Authorization: Bearer another").status == 200
        token_file.write_text("third one in place"[:5])
        assert exporter.get("/metrics", "Authorization: Bearer another").status == 401
        assert exporter.get("/metrics", "Authorization: Bearer third").status == 200
        assert exporter.log.count("read anew") == 2
        assert "another" not in exporter.log


@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_token_stays_while_its_file_is_no_good(token_file: Path, tmp_path: Path, harm: str) -> None:
    with exporting(tmp_path, ExporterOptions(token_file=token_file)) as exporter:
        assert exporter.get("/metrics", f"Authorization: Bearer {TOKEN}").status == 200
        if harm == "removed":
            token_file.unlink()
        else:
            tell(token_file, "")
        for _ in range(3):
            assert exporter.get("/metrics", f"Authorization: Bearer {TOKEN}").status == 200
            assert exporter.get("/metrics", "Authorization: Bearer ").status == 401
        assert exporter.log.count("not usable") == 1
        tell(token_file, "another")
        assert exporter.get("/metrics", "Authorization: Bearer another").status == 200


def test_nobody_is_let_in_while_there_has_never_been_a_token(tmp_path: Path) -> None:
    """As when the program was started over, and the file is gone meanwhile: open is not what it falls back to."""
    with exporting(tmp_path, ExporterOptions(token_file=tmp_path / "missing")) as exporter:
        assert exporter.get("/metrics").status == 401
        assert exporter.get("/metrics", "Authorization: Bearer ").status == 401
        assert exporter.get("/metrics", "Authorization: Bearer None").status == 401
        assert exporter.get("/readyz").status == 200
        exporter.wait_log("cannot be read")


@pytest.mark.parametrize(
    ("content", "why"),
    [("", "is empty"), (" \n\t ", "is empty"), ("two words", "one word"), ("ünïcode", "ASCII"), ("x" * 5000, "4096")],
)
def test_token_file_without_a_token_is_refused(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_token(file)
    assert str(file) in str(refused.value)
    assert why in str(refused.value)


@pytest.mark.parametrize("what", ["missing", "folder", "locked"])
def test_token_file_that_cannot_be_read_is_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "token"
    if what == "folder":
        file.mkdir()
    if what == "locked":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        file.write_text("token")
        file.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(file)
