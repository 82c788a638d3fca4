"""The exporter: a process that reads the board to whoever asks over HTTP.

`exporter` is its life and its pages, `reception` who is let in and who has to make room, `http_pages` the HTTP, `tls`
the encryption, `access` who may read what, `exposition` the formats of `/metrics`, `health` the judgements of the
probes. `options`, `access` and `tls` are looked at by the supervisor, too, before it starts: the names below are
therefore looked up when they are first used, for the libraries behind them are the exporter's alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardnet.exporter.exporter import Exporter, run_exporter

__all__ = ["Exporter", "run_exporter"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'shardnet.exporter' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("shardnet.exporter.exporter"), name)
