"""Reading what the exporter says: `/metrics` into samples, and the law that counters only grow.

Lives here: HTTP to the exporter, the text format, and arithmetic on samples. Must not live here: anything that waits.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Samples", "get", "get_json", "parse"]

Key = tuple[str, frozenset[tuple[str, str]]]

TYPE_LINE: Final = re.compile(r"# TYPE (?P<name>\S+) (?P<type>\S+)")
SAMPLE_LINE: Final = re.compile(r"(?P<name>[^\s{]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?")
LABEL: Final = re.compile(r'\s*(?P<name>\w+)="(?P<value>(?:[^"\\]|\\.)*)"\s*,?')
ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Samples:
    """One scrape. Names are given without the `shardnet_` in front."""

    values: Mapping[Key, float]
    counters: frozenset[Key]

    def matching(self, name: str, **labels: str | int) -> dict[frozenset[tuple[str, str]], float]:
        """The samples of this name that have these labels, others left open."""
        wanted = {(label, str(value)) for label, value in labels.items()}
        full = f"shardnet_{name}"
        return {key[1]: value for key, value in self.values.items() if key[0] == full and wanted <= key[1]}

    def total(self, name: str, **labels: str | int) -> float:
        """The sum of the matching samples; 0 when there are none."""
        return sum(self.matching(name, **labels).values())

    def by(self, label: str, name: str, **labels: str | int) -> dict[str, float]:
        """The matching samples summed per value of `label`."""
        sums: dict[str, float] = {}
        for key, value in self.matching(name, **labels).items():
            of = dict(key)[label]
            sums[of] = sums.get(of, 0.0) + value
        return sums

    @property
    def unasked_restarts(self) -> float:
        """Workers that ended without being asked to: not by a reload, an operator, or for their age or size."""
        return sum(self.total("shard_restarts_total", reason=reason) for reason in ("crash", "signal", "hang"))

    def went_backwards(self, before: Samples) -> list[str]:
        """Counters that are smaller than in an earlier scrape, or gone."""
        wrong = []
        for key in before.counters:
            was, now = before.values[key], self.values.get(key)
            if now is None or now < was:
                name, labels = key
                wrong.append(f"{name}{dict(sorted(labels))}: {was} -> {now}")
        return sorted(wrong)


def parse(text: str) -> Samples:
    """The samples of a page in Prometheus's text format. Raises `ValueError` for a line that is none."""
    values: dict[Key, float] = {}
    counters: set[Key] = set()
    types: dict[str, str] = {}
    for line in text.splitlines():
        if typed := TYPE_LINE.fullmatch(line):
            types[typed["name"]] = typed["type"]
        if not line.strip() or line.startswith("#"):
            continue
        sample = SAMPLE_LINE.fullmatch(line)
        if sample is None:
            raise ValueError(f"{line!r} is no line of Prometheus's text format")
        key = (sample["name"], frozenset(_labels(sample["labels"] or "")))
        if key in values:
            raise ValueError(f"two samples are called {line.rpartition(' ')[0]}")
        values[key] = float(sample["value"])
        if types.get(sample["name"]) == "counter":
            counters.add(key)
    return Samples(values, frozenset(counters))


def _labels(text: str) -> list[tuple[str, str]]:
    labels = []
    position = 0
    while position < len(text):
        label = LABEL.match(text, position)
        if label is None:
            raise ValueError(f"{text!r} are no labels of Prometheus's text format")
        labels.append((label["name"], ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], label["value"])))
        position = label.end()
    return labels


def get(address: tuple[str, int], path: str, timeout_s: float = 10.0) -> tuple[int, str]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def get_json(address: tuple[str, int], path: str) -> tuple[int, Any]:
    status, body = get(address, path)
    return status, json.loads(body)
