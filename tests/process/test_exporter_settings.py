"""The settings of the metrics address, from the command line to what is served."""

from __future__ import annotations

import json
import signal
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import pytest

from tests.exporter_kit import Authority, authority, tell
from tests.harness.server import ShardedServer, shardnet, wait_until

__all__ = ["authority"]  # A fixture.

pytestmark = pytest.mark.process

APP: Final = "examples.echo:handler"
CONFIG: Final = 3
USAGE: Final = 2


def start(*options: str) -> tuple[int, list[str]]:
    binds = ("--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0")
    finished = shardnet("run", APP, "--workers", "2", *binds, *options)
    return finished.status, finished.stderr_lines


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--ready-min-shards", "3"], USAGE, ["--ready-min-shards 3", "2 shards"]),
        (["--ready-min-shards", "0"], USAGE, ["--ready-min-shards", "from 1 to 1024"]),
        (["--ready-min-shards", "some"], USAGE, ["--ready-min-shards", '"all"']),
        (["--metrics-client-ca", "ca.pem"], USAGE, ["--metrics-client-ca", "--metrics-tls-cert"]),
        (["--metrics-token-file", "/nowhere/token"], CONFIG, ["/nowhere/token", "No such file"]),
        (["--metrics-token-file", "/dev/null"], CONFIG, ["/dev/null", "is empty"]),
        (["--metrics-tls-cert", "/nowhere/crt"], CONFIG, ["/nowhere/crt", "No such file"]),
        (["--metrics-tls-cert", "/dev/null"], CONFIG, ["/dev/null", "no certificate and key"]),
    ],
)
def test_wrong_setting_is_told_in_one_line(options: list[str], status: int, words: list[str]) -> None:
    found, lines = start(*options)
    assert (found, len(lines)) == (status, 1), lines
    for word in words:
        assert word in lines[0]


def test_server_has_tls_and_a_token_across_reload_and_upgrade(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("server")
    token = tmp_path / "token"
    token.write_text("first")

    def ask(given: str) -> int:
        request = urllib.request.Request(
            f"https://localhost:{server.metrics_address[1]}/healthz", headers={"Authorization": f"Bearer {given}"}
        )
        try:
            with urllib.request.urlopen(request, context=authority.context(), timeout=10) as answer:
                status: int = answer.status
                assert len(json.load(answer)["shards"]) == 2
                return status
        except urllib.error.HTTPError as error:
            return error.code

    tls = ("--metrics-tls-cert", str(certificate), "--metrics-tls-key", str(key))
    with ShardedServer(APP, options=(*tls, "--metrics-token-file", str(token))) as server:
        assert ask("first") == 200
        assert ask("other") == 401
        tell(token, "second")
        assert ask("second") == 200
        server.signal(signal.SIGHUP)
        server.output.wait('event="?reloaded', 20)
        assert ask("second") == 200
        server.signal(signal.SIGUSR2)

        def answers() -> bool:
            try:
                return ask("second") == 200
            except (OSError, ssl.SSLError):
                return False

        server.output.wait('event="?starting over', 20)
        wait_until(answers)
