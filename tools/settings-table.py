"""Writes the tables of settings in docs/configuration.md anew, from their declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shardnet.config.render import docs_table

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN: Final = "<!-- settings: written by tools/settings-table.py -->\n"
END: Final = "<!-- end of settings -->\n"

before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
_, _, after = rest.partition(END)
PAGE.write_text(f"{before}{BEGIN}\n{docs_table()}\n{END}{after}", encoding="utf-8")
