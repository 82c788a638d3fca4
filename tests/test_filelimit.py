"""The limit of open files."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from shardnet.errors import SystemFault
from shardnet.filelimit import RESERVED, check_supervisor_fits, connections_within, raise_file_limit

LOW = 256


def test_raise_file_limit_goes_to_the_hard_limit_and_stays_inherited() -> None:
    """In a process of its own, because a raised soft limit would stay for the other tests."""
    program = (
        "import resource, subprocess, sys\n"
        "from shardnet.filelimit import raise_file_limit\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({LOW}, hard))\n"
        "print(raise_file_limit(), flush=True)\n"
        "subprocess.run([sys.executable, '-c',"
        " 'import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))'], check=True)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    hard = str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert answer == [hard, hard, hard]


def test_raise_file_limit_leaves_a_limit_that_is_at_its_most() -> None:
    soft = raise_file_limit()
    assert raise_file_limit() == soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("refusal", [ValueError("not allowed to raise maximum limit"), PermissionError(1, "no")])
def test_raise_file_limit_lives_with_what_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    """The kernel refuses any setrlimit whose hard limit is above fs.nr_open, also one that leaves the hard limit as it
    is; Python makes a ValueError of that. Where fs.nr_open had been lowered since, the server ended with a traceback
    before it had begun."""

    def refuse(_resource: int, _limits: tuple[int, int]) -> None:
        raise refusal

    monkeypatch.setattr(resource, "getrlimit", lambda _resource: (LOW, 2 * LOW))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_file_limit() == LOW


@pytest.mark.parametrize(
    ("file_limit", "wanted", "granted"),
    [
        (1024, None, 1024 - RESERVED),
        (1024, 100, 100),
        (1024, 100_000, 1024 - RESERVED),
        (RESERVED, None, 1),
        (3, 10, 1),
    ],
)
def test_connections_within_leaves_room_for_other_descriptors(
    file_limit: int, wanted: int | None, granted: int
) -> None:
    assert connections_within(file_limit, wanted) == granted


def test_supervisor_that_does_not_fit_the_limit_says_so() -> None:
    """With 64 shards at a limit of 100, a dozen workers served and the others failed to fork, for ever and without a
    word on why."""
    check_supervisor_fits(100, shards=8, addresses=2)
    with pytest.raises(SystemFault, match="file limit 100 is too low for 64 shards: the supervisor needs 208; raise"):
        check_supervisor_fits(100, shards=64, addresses=1)
