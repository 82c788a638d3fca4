"""Metrics, and the lines that declare them."""

from __future__ import annotations

import json

import pytest

from shardnet.board.schema import (
    Declaration,
    Kind,
    Metric,
    decode_cell,
    encode_cell,
    encode_declaration,
    parse_schema,
)
from shardnet.errors import UsageError

FIRST = Declaration(
    Metric("test_seen_total", Kind.COUNTER, 'Seen, "quoted" and ünïcode.\n', ("colour", "size")),
    (("red", "1"), ("blue", "2")),
    0,
)
SECOND = Declaration(Metric("test_level_ratio", Kind.GAUGE, "Level.", cell="f64"), ((),), 2)


def test_schema_says_what_was_declared() -> None:
    schema = encode_declaration(FIRST) + encode_declaration(SECOND)
    assert parse_schema(schema, cells=3) == (FIRST, SECOND)
    assert [list(d.cells()) for d in parse_schema(schema, cells=3)] == [
        [(("red", "1"), 0), (("blue", "2"), 1)],
        [((), 2)],
    ]


def altered(**fields: object) -> bytes:
    return json.dumps(json.loads(encode_declaration(FIRST)) | fields).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        altered(kind="something later"),
        altered(cell="u8"),
        altered(name="no such name"),
        altered(labels=["colour"]),
        altered(first=-1),
        altered(first=2),
        altered(first="x"),
        altered(values=None),
        b"[]\n",
        b"{}\n",
        b"7\n",
        b"\xff\xfe\n",
        b"\0\0\0\n",
        encode_declaration(FIRST)[:40] + b"\n",
    ],
)
def test_schema_skips_a_line_it_does_not_understand(line: bytes) -> None:
    assert parse_schema(line + encode_declaration(SECOND), cells=3) == (SECOND,)


@pytest.mark.parametrize(
    ("name", "kind", "labels", "message"),
    [
        ("1st_total", Kind.COUNTER, (), "no digit first"),
        ("a-b", Kind.GAUGE, (), "letters, digits"),
        ("hits", Kind.COUNTER, (), "end in _total"),
        ("hits_total", Kind.GAUGE, (), "end in _total"),
        ("level", Kind.GAUGE, ("__name__",), "__name__"),
        ("level", Kind.GAUGE, ("a b",), "letters, digits"),
        ("level", Kind.GAUGE, ("a", "a"), "twice"),
    ],
)
def test_metric_refuses_what_prometheus_would(name: str, kind: Kind, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Metric(name, kind, "Help.", labels)


def test_metric_refuses_an_unknown_type_of_cell() -> None:
    with pytest.raises(UsageError, match="u64"):
        Metric("level", Kind.GAUGE, "Help.", cell="u8")  # type: ignore[arg-type]


def test_cell_means_what_was_encoded() -> None:
    assert decode_cell(encode_cell(2**64 - 1, "u64"), "u64") == 2**64 - 1
    assert decode_cell(encode_cell(-0.1, "f64"), "f64") == -0.1
    assert encode_cell(2**64 + 1, "u64") == 1
