"""The comparison of instruction counts, and one real count."""

from __future__ import annotations

import shutil

import pytest

from bench.building import PROJECT
from bench.callgrind.__main__ import compare, count
from bench.errors import BenchError

VALGRIND = shutil.which("valgrind") or shutil.which("valgrind", path=PROJECT / ".tools")


def test_rise_of_three_percent_passes_and_more_is_told() -> None:
    recorded = {"callback": 1000, "conn": 1000, "streams": 1000}
    counted = {"callback": 1030, "conn": 1031, "streams": 500, "protocol": 9999}
    assert compare(counted, recorded) == ["conn: 1,031 instructions a message, +3.1% over 1,000"]


@pytest.mark.skipif(VALGRIND is None, reason="there is no valgrind on PATH, nor in .tools")
@pytest.mark.slow
def test_more_messages_are_more_instructions() -> None:
    assert VALGRIND is not None
    few, many = count(VALGRIND, "callback", 50), count(VALGRIND, "callback", 250)
    assert 500 < (many - few) / 200 < 200_000


@pytest.mark.skipif(VALGRIND is None, reason="there is no valgrind on PATH, nor in .tools")
def test_process_that_fails_is_an_error() -> None:
    assert VALGRIND is not None
    with pytest.raises(BenchError, match="telepathy: exit status 1"):
        count(VALGRIND, "telepathy", 10)
