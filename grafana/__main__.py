"""Writes the dashboards' JSON: `python -m grafana`, or `make dashboards`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from grafana.content import DASHBOARDS
from grafana.rendering import render

FOLDER: Final = Path(__file__).resolve().parent / "dashboards"

for plan in DASHBOARDS:
    path = FOLDER / f"{plan.uid}.json"
    path.write_text(render(plan), encoding="utf-8")
    print(path)
