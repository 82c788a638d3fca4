from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardnet.cpus import usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def count(root: Path) -> int:
    return usable_cpus(cgroup_root=root / "cgroup", own_cgroup=root / "own")


def test_affinity_counts_when_no_group_limits(tmp_path: Path) -> None:
    assert count(tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", 8),
        ("150000 100000", 2),
        ("200000 100000", 2),
        ("10000 100000", 1),
        ("1600000 100000", 8),
        ("790000 100000", 8),
        ("", 8),
        ("rubbish 100000", 8),
        ("100000 0", 8),
    ],
)
def test_version_2_quota_is_rounded_up(tmp_path: Path, limit: str, cpus: int) -> None:
    put(tmp_path / "own", "0::/app.slice/app.service\n")
    put(tmp_path / "cgroup/app.slice/app.service/cpu.max", limit)
    assert count(tmp_path) == cpus


def test_version_2_parent_limits_its_children(tmp_path: Path) -> None:
    put(tmp_path / "own", "0::/app.slice/app.service\n")
    put(tmp_path / "cgroup/app.slice/app.service/cpu.max", "400000 100000")
    put(tmp_path / "cgroup/app.slice/cpu.max", "300000 100000")
    assert count(tmp_path) == 3


@pytest.mark.parametrize("path", ["/", "/docker/0123abc", "/../other"])
def test_container_sees_its_own_group_as_the_root(tmp_path: Path, path: str) -> None:
    put(tmp_path / "own", f"0::{path}\n")
    put(tmp_path / "cgroup/cpu.max", "250000 100000")
    assert count(tmp_path) == 3


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("250000", 3)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_version_1_quota_counts(tmp_path: Path, mount: str, quota: str, cpus: int) -> None:
    put(tmp_path / "own", "5:memory:/app\n4:cpu,cpuacct:/app\n1:name=systemd:/app\n")
    put(tmp_path / f"cgroup/{mount}/app/cpu.cfs_quota_us", f"{quota}\n")
    put(tmp_path / f"cgroup/{mount}/app/cpu.cfs_period_us", "100000\n")
    assert count(tmp_path) == cpus


def test_this_machine_has_at_least_one() -> None:
    assert usable_cpus() >= 1
