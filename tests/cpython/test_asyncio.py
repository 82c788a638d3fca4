"""asyncio's own tests, on shardnet.

CPython tests its event loops, transports, protocols and streams with the package `test.test_asyncio`. Its cases are run
here as they are, imported and not copied: those of event loops, and of what asyncio builds upon one, on the loop of a
shardnet worker; and those in which bytes go through a transport or a stream once more, with shardnet's connections in
the place of asyncio's. See `Way` in `cases` for what stands in for what, and `loop` for the one step below
`create_server` that is replaced. What cannot apply stands in a table, with the reason.

The warnings that upstream code itself causes are let pass, and files that it writes go to a temporary directory.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import unittest
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

from tests.cpython import cases
from tests.cpython.cases import SKIPPED, Case, Way
from tests.cpython.faces import STAND_INS
from tests.cpython.loop import BothEnds, ServingLoop, ServingPolicy
from tests.cpython.workerloop import WorkerLoop, WorkerPolicy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Upstream threads are joined without a limit, so that a test which fails in time may not end at all; and some tests
    # take SIGALRM for themselves.
    pytest.mark.timeout(60, method="thread"),
]

CASES: Final = tuple(cases.find_cases()) if cases.tests_are_installed() else ()
if not CASES:
    pytest.skip(cases.MISSING, allow_module_level=True)

# What has to have run to the end at the least, with the oldest of the supported Pythons, and how often shardnet has to
# have accepted, and taken a turn, meanwhile.
RAN_MIN: Final = {Way.PROTOCOL: 45, Way.STREAMS: 5, Way.OPENED: 8, Way.READER: 33, Way.BOTH: 145, Way.LOOP: 700}
ACCEPTED_MIN: Final = 180
TURNS_MIN: Final = 5000  # Of the loops of Way.LOOP.

# In these, handlers raise; in no other may they, or protocols, even where the test itself would not notice.
RAISING: Final = {"test_unhandled_exception", "test_unhandled_exceptions"}

_started: Counter[Way] = Counter()
_ran: Counter[Way] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _garbage_collected() -> Iterator[None]:
    """What upstream tests have left open is found while its warnings are let pass."""
    yield
    gc.collect()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_of_cpython_passes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _started[case.way] += 1
    if (reason := SKIPPED.get(str(case))) is not None:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    result = unittest.TestResult()
    ServingLoop.raised.clear()
    with _in_the_way(case.way):
        unittest.TestSuite([case.test_class(case.method)]).run(result)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    if not result.wasSuccessful():
        pytest.fail("\n".join(said for _, said in result.errors + result.failures), pytrace=False)
    assert result.testsRun == 1
    assert ServingLoop.raised == [] or case.method in RAISING
    _ran[case.way] += 1


def test_enough_cases_have_run() -> None:
    """No empty collection passes, and none that shardnet had nothing to do with."""
    if _started.total() < len(CASES):
        pytest.skip("only some of the cases were selected")
    for way, least in RAN_MIN.items():
        assert _ran[way] >= least, way
    assert ServingLoop.accepted_total >= ACCEPTED_MIN
    assert WorkerLoop.turns_total >= TURNS_MIN


@pytest.mark.skipif(sys.version_info < (3, 13), reason="older Pythons lack some of the cases")
def test_table_of_skipped_cases_has_no_stale_entry() -> None:
    assert set(SKIPPED) <= {str(case) for case in CASES}


def _in_the_way(way: Way) -> ExitStack:
    """A context in which tests that make an event loop or start a server get shardnet's."""
    stack = ExitStack()
    if way is Way.LOOP:
        loop_class: type = WorkerLoop
        asyncio.set_event_loop_policy(WorkerPolicy())
        asyncio.set_event_loop(None)  # As an earlier test would have: one looks for what that leaves behind.
    else:
        loop_class = BothEnds if way is Way.BOTH else ServingLoop
        asyncio.set_event_loop_policy(ServingPolicy(loop_class))
    stack.callback(asyncio.set_event_loop_policy, None)
    stack.enter_context(mock.patch.object(asyncio, "SelectorEventLoop", loop_class))
    for name, value in STAND_INS[way].items():
        stack.enter_context(mock.patch.object(asyncio, name, value))
    return stack
