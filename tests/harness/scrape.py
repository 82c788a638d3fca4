"""Reading what the exporter says: `/metrics` into samples, and the law that counters only grow.

Lives here: HTTP to the exporter and arithmetic on samples. Must not live here: anything that waits.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Samples", "get", "get_json", "parse"]

Key = tuple[str, frozenset[tuple[str, str]]]


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
    values: dict[Key, float] = {}
    counters: set[Key] = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            if key in values:
                raise AssertionError(f"two samples are called {sample.name}{sample.labels}")
            values[key] = float(sample.value)
            if family.type == "counter" and sample.name.endswith("_total"):
                counters.add(key)
    return Samples(values, frozenset(counters))


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
