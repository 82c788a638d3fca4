"""Every test of the engine runs on every poller."""

from __future__ import annotations

import pytest

from shardnet.watcher import pollers


@pytest.fixture(autouse=True, params=["epoll", "poll"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the poller that an engine gets whose owner names none."""
    name: str = request.param
    monkeypatch.setattr(pollers, "DEFAULT", name)
    return name
