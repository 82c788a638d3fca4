"""Writes the tables of metrics in docs/metrics.md anew, from their declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shardnet.catalogue.table import metrics_tables

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
BEGIN: Final = "<!-- metrics: written by tools/metrics-tables.py -->\n"
END: Final = "<!-- end of metrics -->\n"

before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
_, _, after = rest.partition(END)
PAGE.write_text(f"{before}{BEGIN}\n{metrics_tables()}\n{END}{after}", encoding="utf-8")
