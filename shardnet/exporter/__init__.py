"""The exporter: a process that reads the board to whoever asks over HTTP.

`exporter` is its life and its pages, `http_pages` the HTTP, `exposition` the formats of `/metrics`, `health` the
judgements of the probes.
"""

from shardnet.exporter.exporter import Exporter, run_exporter

__all__ = ["Exporter", "run_exporter"]
