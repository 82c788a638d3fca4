"""Who may read which page.

`/livez` and `/readyz` are for everybody: probes of load balancers and orchestrators have no secrets, and yes or no is
none. What tells more of the server needs what was set: a client certificate, a bearer token, or both.

Lives here: the token, and the judgement. Must not live here: HTTP beyond one header, TLS.
"""

from __future__ import annotations

import hmac
import http
from pathlib import Path
from typing import Final

from shardnet.errors import ConfigError
from shardnet.exporter.options import ExporterOptions
from shardnet.exporter.renewed import Renewed
from shardnet.log import Log

__all__ = ["Guard", "read_token"]

GUARDED: Final = frozenset({"/metrics", "/healthz"})
TOKEN_MAX_BYTES: Final = 4096  # It has to fit the header of a request.
CHALLENGE: Final = 'Bearer realm="shardnet"'  # RFC 6750, section 3.


class Guard:
    """Says of each request whether it may be answered."""

    def __init__(self, options: ExporterOptions, log: Log) -> None:
        file = options.token_file
        self._token = None if file is None else Renewed((file,), lambda: read_token(file), log)
        self._certified_only = options.tls is not None and options.tls.client_ca is not None

    def refusal(self, path: str, authorization: str, *, certified: bool) -> tuple[http.HTTPStatus, str, str] | None:
        """None when the page may be read; else the status, what to say, and the challenge ("": none).

        `authorization` is that header, "" without one; `certified`: the client has proved a certificate that we trust.
        """
        if path not in GUARDED:
            return None
        if self._certified_only and not certified:
            return http.HTTPStatus.FORBIDDEN, "this page needs a client certificate", ""
        if self._token is None or _bears(authorization, self._token.value()):
            return None
        if authorization:
            return http.HTTPStatus.UNAUTHORIZED, "this is not the token", f'{CHALLENGE}, error="invalid_token"'
        return http.HTTPStatus.UNAUTHORIZED, "this page needs a token: Authorization: Bearer TOKEN", CHALLENGE


def read_token(path: Path) -> bytes:
    """The token in a file: its text without the white space around it.

    Raises:
        ConfigError: It cannot be read, or there is no token in it.
    """
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_MAX_BYTES + 1).strip()
    except OSError as exc:
        raise ConfigError(f"metrics_token_file: {path}: cannot be read: {exc.strerror or exc}") from exc
    if not token:
        raise ConfigError(f"metrics_token_file: {path}: is empty: write a token into it, `openssl rand -hex 32` say")
    if len(token) > TOKEN_MAX_BYTES:
        raise ConfigError(f"metrics_token_file: {path}: is no token: more than {TOKEN_MAX_BYTES} bytes")
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(f"metrics_token_file: {path}: is no token: one word of printable ASCII is")
    return token


def _bears(authorization: str, token: bytes | None) -> bool:
    scheme, _, given = authorization.strip().partition(" ")
    # Compared in constant time: how long it takes must not tell how much of it was right.
    same = token is not None and hmac.compare_digest(given.strip().encode("utf-8", "replace"), token)
    return same and scheme.lower() == "bearer"
