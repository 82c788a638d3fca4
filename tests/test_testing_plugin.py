"""The pytest plugin, in pytests of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

pytest_plugins = ["pytester"]

APP: Final = """
    async def echo(conn):
        async for data in conn:
            await conn.send(data)

    async def broken(conn):
        print("about to break", flush=True)
        raise LookupError("nothing there")
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(app=APP)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    return {name: count for name, count in result.parseoutcomes().items() if name != "warnings"}


def test_plugin_serves_in_async_tests_of_any_sort(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import asyncio
        import anyio
        import pytest
        from app import echo

        async def ask(server):
            reader, writer = await server.connect()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"

        def test_plain(shardnet_serve):
            async def main():
                async with shardnet_serve(echo) as server:
                    await ask(server)
            asyncio.run(main())

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_anyio(shardnet_serve):
            async with shardnet_serve(echo) as server:
                await ask(server)
        """
    )
    assert outcomes(run.runpytest_subprocess("-p", "no:cacheprovider")) == {"passed": 2}


def test_plugin_fails_a_test_whose_handler_raised(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import asyncio
        from app import broken

        def test_it(shardnet_serve):
            async def main():
                async with shardnet_serve(broken) as server:
                    reader, _ = await server.connect()
                    assert await reader.read() == b""
            asyncio.run(main())
        """
    )
    result = run.runpytest_subprocess()
    assert outcomes(result) == {"failed": 1}
    result.stdout.fnmatch_lines(["*ExceptionGroup: handlers raised (1 sub-exception)*", "*LookupError: nothing there"])


def test_plugin_tells_a_test_that_has_no_running_loop(run: pytest.Pytester) -> None:
    """That of another framework, for instance, is told so, and not left hanging."""
    run.makepyfile(
        """
        from app import echo

        def test_no_loop(shardnet_serve):
            coro = shardnet_serve(echo).__aenter__()
            try:
                coro.send(None)
            except RuntimeError as error:
                assert "no running event loop" in str(error)
            else:
                raise AssertionError
        """
    )
    assert outcomes(run.runpytest_subprocess()) == {"passed": 1}


@pytest.mark.process
def test_plugin_ends_every_server_it_started(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import pathlib

        def test_it(sharded_server):
            servers = [sharded_server("app:echo", workers=workers) for workers in (1, 2)]
            for server in servers:
                with server.connect() as client:
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"
            pathlib.Path("pids").write_text(" ".join(str(server.pid) for server in servers))
        """
    )
    assert outcomes(run.runpytest_subprocess()) == {"passed": 1}
    for pid in (run.path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.process
def test_plugin_shows_the_output_of_a_server_whose_test_fails(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_it(sharded_server):
            server = sharded_server("app:broken", workers=1)
            print("the pid is", server.pid)
            with server.connect() as client:
                assert client.recv(5) == b"hello"
        """
    )
    result = run.runpytest_subprocess()
    assert outcomes(result) == {"failed": 1}  # And no error at teardown, though the server's output has a traceback.
    result.stdout.fnmatch_lines(
        ["*Output of the server app:broken*", "*about to break*", "*LookupError: nothing there"]
    )
    match = re.search(r"the pid is (\d+)", result.stdout.str())
    assert match is not None
    assert not Path(f"/proc/{match[1]}").exists()


@pytest.mark.process
def test_plugin_reports_a_server_that_does_not_end_well(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_it(sharded_server):
            server = sharded_server("app:broken", workers=1)
            with server.connect() as client:
                assert client.recv(5) == b""
        """
    )
    result = run.runpytest_subprocess()
    assert outcomes(result) == {"passed": 1, "errors": 1}
    result.stdout.fnmatch_lines(["*AssertionError: 1 tracebacks in the server's output, not 0", "*about to break*"])


@pytest.mark.process
def test_plugin_shows_why_a_server_did_not_start(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_it(sharded_server):
            sharded_server("app:ecko")
        """
    )
    result = run.runpytest_subprocess()
    assert outcomes(result) == {"failed": 1}
    result.stdout.fnmatch_lines(["*did you mean 'echo'?*"])


def test_plugin_loads_nothing_of_shardnet_for_those_who_do_not_use_it(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("shardnet")
            loaded = {name for name in sys.modules if name.startswith("shardnet")}
            assert loaded == {"shardnet", "shardnet.compiled", "shardnet.testing", "shardnet.testing.plugin"}
        """
    )
    assert outcomes(run.runpytest_subprocess()) == {"passed": 1}
