"""Which of asyncio's own test cases run on shardnet, and in which ways.

The tests are those of the interpreter that runs: the package `test` that came with it, or, where a distribution packs
it apart, what tools/fetch-python-tests.sh has put into .tools.

Lives here: finding them, and the table of those that cannot apply. Must not live here: running them.
"""

from __future__ import annotations

import contextlib
import enum
import fnmatch
import importlib
import sys
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["MISSING", "SKIPPED", "Case", "Way", "find_cases", "tests_are_installed"]

PROJECT: Final = Path(__file__).parents[2]
VERSION: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
UNPACKED: Final = PROJECT / ".tools" / VERSION / "test"
MISSING: Final = (
    f"{sys.executable} has no test.test_asyncio; tools/fetch-python-tests.sh fetches Debian's lib{VERSION}-testsuite"
)


class Way(enum.StrEnum):
    """What of shardnet takes the place of what of asyncio."""

    PROTOCOL = "protocol"  # Servers: accepted connections are shardnet's, Kind.PROTOCOL. Clients are asyncio's.
    STREAMS = "streams"  # What `start_server` hands out: Kind.STREAMS, with shardnet's reader and writer.
    OPENED = "opened"  # What `open_connection` hands out, likewise.
    READER = "reader"  # `StreamReader`: shardnet's, which is fed through a socket.
    BOTH = "both"  # As PROTOCOL; and the connections that the loop makes, those below TLS too, are shardnet's.
    LOOP = "loop"  # The event loop, and nothing else: as a worker makes it. Its transports are asyncio's.


@dataclass(frozen=True, slots=True)
class Suite:
    """Those of a class's cases whose names match a pattern."""

    way: Way
    path: str  # Module and class.
    patterns: tuple[str, ...] = ("test_*",)


# Of the tests of streams: those that connect to a server of their own making.
CLIENTS: Final = ("test_open_*", "test_*close*", "test_async_writer_*", "test_drain_*", "test_unclosed_r*")

SUITES: Final = (
    Suite(Way.PROTOCOL, "test_server.SelectorStartServerTests"),
    Suite(Way.PROTOCOL, "test_server.TestServer2"),  # From 3.12 on.
    Suite(Way.PROTOCOL, "test_server.UnixServerCleanupTests"),  # From 3.13 on.
    Suite(Way.PROTOCOL, "test_buffered_proto.BufferedProtocolSelectorTests"),
    Suite(Way.PROTOCOL, "test_events.EPollEventLoopTests", ("test_create_*server*", "test_server_*")),
    Suite(Way.PROTOCOL, "test_events.TestServer"),
    Suite(Way.PROTOCOL, "test_sendfile.EPollEventLoopTests"),
    Suite(Way.PROTOCOL, "test_ssl.TestSSL", ("test_*server*",)),
    Suite(Way.PROTOCOL, "test_sslproto.SelectorStartTLSTests", ("test_*server*",)),
    Suite(Way.PROTOCOL, "test_streams.StreamTests", ("test_start_*", "test_un*")),
    Suite(Way.STREAMS, "test_server.SelectorStartServerTests"),
    Suite(Way.STREAMS, "test_server.TestServer2"),
    Suite(Way.STREAMS, "test_server.UnixServerCleanupTests"),
    Suite(Way.STREAMS, "test_buffered_proto.BufferedProtocolSelectorTests"),
    Suite(Way.STREAMS, "test_streams.StreamTests", ("test_start_*", "test_unhandled_*", "test_unclosed_server_*")),
    Suite(Way.OPENED, "test_streams.StreamTests", CLIENTS),
    Suite(
        Way.READER,
        "test_streams.StreamTests",
        ("test_feed_*", "test_read*", "test_at_eof", "test_exception*", "test___repr__*"),
    ),
    Suite(Way.BOTH, "test_server.SelectorStartServerTests"),
    Suite(Way.BOTH, "test_server.TestServer2"),
    Suite(Way.BOTH, "test_buffered_proto.BufferedProtocolSelectorTests"),
    Suite(Way.BOTH, "test_events.EPollEventLoopTests"),
    Suite(Way.BOTH, "test_sendfile.EPollEventLoopTests"),
    Suite(Way.BOTH, "test_sock_lowlevel.EPollEventLoopTests"),
    Suite(Way.BOTH, "test_ssl.TestSSL"),
    Suite(Way.BOTH, "test_sslproto.SelectorStartTLSTests"),
    Suite(Way.BOTH, "test_streams.StreamTests", ("test_start_*", "test_un*", *CLIENTS)),
    # The loop: what it does itself.
    Suite(Way.LOOP, "test_events.EPollEventLoopTests"),
    Suite(Way.LOOP, "test_events.TestCGetEventLoop"),
    Suite(Way.LOOP, "test_events.TestServer"),
    Suite(Way.LOOP, "test_base_events.BaseEventLoopWithSelectorTests"),
    Suite(Way.LOOP, "test_base_events.RunningLoopTests"),
    Suite(Way.LOOP, "test_sock_lowlevel.EPollEventLoopTests"),
    Suite(Way.LOOP, "test_sendfile.EPollEventLoopTests"),
    Suite(Way.LOOP, "test_server.SelectorStartServerTests"),
    Suite(Way.LOOP, "test_server.TestServer2"),
    Suite(Way.LOOP, "test_server.UnixServerCleanupTests"),
    Suite(Way.LOOP, "test_streams.StreamTests"),
    Suite(Way.LOOP, "test_buffered_proto.BufferedProtocolSelectorTests"),
    Suite(Way.LOOP, "test_unix_events.SelectorEventLoopSignalTests"),
    Suite(Way.LOOP, "test_unix_events.SelectorEventLoopUnixSocketTests"),
    Suite(Way.LOOP, "test_unix_events.SelectorEventLoopUnixSockSendfileTests"),
    Suite(Way.LOOP, "test_unix_events.TestFunctional"),
    Suite(Way.LOOP, "test_unix_events.TestFork"),  # From 3.12 on.
    Suite(Way.LOOP, "test_subprocess.SubprocessThreadedWatcherTests"),
    Suite(Way.LOOP, "test_subprocess.SubprocessPidfdWatcherTests"),
    Suite(Way.LOOP, "test_subprocess.GenericWatcherTests"),
    Suite(Way.LOOP, "test_threads.ToThreadTests"),
    Suite(Way.LOOP, "test_runners.RunnerTests"),
    # And what asyncio builds upon it. The C implementation of Task; `tests.serving.MODES` has the others.
    Suite(Way.LOOP, "test_tasks.CTask_CFuture_Tests"),
    Suite(Way.LOOP, "test_tasks.CIntrospectionTests"),
    Suite(Way.LOOP, "test_tasks.CCurrentLoopTests"),
    Suite(Way.LOOP, "test_tasks.CoroutineGatherTests"),
    Suite(Way.LOOP, "test_tasks.FutureGatherTests"),
    Suite(Way.LOOP, "test_tasks.RunCoroutineThreadsafeTests"),
    Suite(Way.LOOP, "test_tasks.SleepTests"),
    Suite(Way.LOOP, "test_tasks.CompatibilityTests"),
    Suite(Way.LOOP, "test_eager_task_factory.CEagerTaskFactoryLoopTests"),  # From 3.12 on.
    Suite(Way.LOOP, "test_futures2.CFutureTests"),
    Suite(Way.LOOP, "test_taskgroups.TestTaskGroup"),
    Suite(Way.LOOP, "test_timeouts.TimeoutTests"),
    Suite(Way.LOOP, "test_waitfor.AsyncioWaitForTest"),
    Suite(Way.LOOP, "test_waitfor.WaitForShieldTests"),  # From 3.12 on.
    Suite(Way.LOOP, "test_locks.*Tests"),
    Suite(Way.LOOP, "test_queues.*Tests"),
)

_BY_HAND = "uses by hand what is private to asyncio's reader and writer"
_NO_WARNING = "a writer that is dropped closes its connection, by design without a warning"
_NATIVE = "is about os.sendfile, which asyncio's own transports use; on others loop.sendfile reads and writes"

SKIPPED: Final = {
    "streams-test_streams.StreamTests.test_start_tls": (
        "a streams handler's start_tls is refused, by design; that of an asyncio.Protocol works"
    ),
    "opened-test_streams.StreamTests.test_open_connection_error": _BY_HAND,
    "opened-test_streams.StreamTests.test_open_unix_connection_error": _BY_HAND,
    "opened-test_streams.StreamTests.test_unclosed_resource_warnings": _NO_WARNING,
    "streams-test_streams.StreamTests.test_unclosed_server_resource_warnings": _NO_WARNING,
    "reader-test_streams.StreamTests.test___repr__transport": _BY_HAND,
    "reader-test_streams.StreamTests.test___repr__waiter": _BY_HAND,
    "reader-test_streams.StreamTests.test_read_all_from_pipe_reader": "reads from a pipe, which is no connection",
    "reader-test_streams.StreamTests.test_readuntil_limit_found_sep": (
        "a reader over its limit receives no more, by design, where asyncio's has received ahead"
    ),
    "both-test_sendfile.EPollEventLoopTests.test_sendfile_force_unsupported_native": _NATIVE,
    "both-test_sendfile.EPollEventLoopTests.test_sendfile_prevents_bare_write": _NATIVE,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A method of a test class, and the way to run it."""

    way: Way
    path: str
    test_class: type[unittest.TestCase]
    method: str

    def __str__(self) -> str:
        return f"{self.way}-{self.path}.{self.method}"


def tests_are_installed() -> bool:
    """Whether `test.test_asyncio` can be imported, from now on."""
    with contextlib.suppress(ImportError):
        importlib.import_module("test.test_asyncio")
        return True
    with contextlib.suppress(ImportError):
        package: Any = importlib.import_module("test")  # Debian's Python has this much of it.
        package.__path__.append(str(UNPACKED))
        importlib.import_module("test.test_asyncio")
        return True
    return False


def find_cases() -> Iterator[Case]:
    """The cases of all suites, those of `SKIPPED` too. Older Pythons lack some."""
    for suite in SUITES:
        module_name, class_pattern = suite.path.split(".")
        try:
            module = importlib.import_module(f"test.test_asyncio.{module_name}")
        except ModuleNotFoundError:
            continue
        for class_name in fnmatch.filter(sorted(vars(module)), class_pattern):
            test_class = getattr(module, class_name)
            for method in unittest.defaultTestLoader.getTestCaseNames(test_class):
                if any(fnmatch.fnmatchcase(method, pattern) for pattern in suite.patterns):
                    yield Case(suite.way, f"{module_name}.{class_name}", test_class, method)
