"""The conformance suite runs on every engine: `engine` is the name of one, `bench` a watcher of it with its peers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.watcher.kit import ENGINES, Bench


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def bench(engine: str) -> Iterator[Bench]:
    with Bench(engine) as bench:
        yield bench
