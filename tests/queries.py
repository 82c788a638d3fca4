"""What PromQL asks for, held against the catalogue. It is looked at as text: Prometheus itself parses it elsewhere.

Lives here: which names there are, and which a query has. Must not live here: dashboards, rules, Prometheus.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from shardnet.board import Kind
from shardnet.catalogue.families import EVERY, WITH_SHARD

__all__ = ["METRICS", "labels_asked", "metrics_asked"]

RULES: Final = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "shardnet.rules.yml"
SERVER: Final = {"job", "instance"}
NAME: Final = re.compile(r"\b((?:instance|shard):shardnet_\w+:\w+|shardnet_[a-z_]+)")
SELECTOR: Final = re.compile(NAME.pattern + r"\{([^}]*)\}")
LABEL: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Names(dict[str, set[str]]):
    """Every series that can be asked for, with its labels; those of recording rules included."""

    def __init__(self) -> None:
        super().__init__()
        self.family_of: dict[str, str] = {}
        for metric in EVERY:
            labels = {*SERVER, *metric.labels, *({"shard"} if metric in WITH_SHARD else ())}
            if metric.kind is Kind.HISTOGRAM:
                names = {f"{metric.name}_{part}": labels for part in ("sum", "count")}
                names[f"{metric.name}_bucket"] = {*labels, "le"}
            else:
                names = {metric.name: labels}
            self.update(names)
            self.family_of |= dict.fromkeys(names, metric.name)
        for record in re.findall(r"- record: (\S+)", RULES.read_text()):
            self[record] = {*SERVER, *({"shard"} if record.startswith("shard:") else {"op", "outcome"})}

    @property
    def families(self) -> set[str]:
        return set(self.family_of.values())


METRICS: Final = Names()


def metrics_asked(expr: str) -> set[str]:
    """The names of the series in a query."""
    return set(NAME.findall(expr))


def labels_asked(expr: str) -> list[tuple[str, set[str]]]:
    """Each name in a query that is followed by matchers, with the labels of these."""
    return [(name, set(LABEL.findall(matchers))) for name, matchers in SELECTOR.findall(expr)]
