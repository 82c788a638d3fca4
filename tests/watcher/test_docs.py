"""docs/watcher.md: its examples run, and what it names is what there is."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import shardnet.watcher
from shardnet.watcher import Channel, Completion, Op, ShardnetError, Statistics, Watcher
from shardnet.watcher.endpoint import CHUNK_MAX_BYTES
from shardnet.watcher.listener import ACCEPTS_PER_TURN_MAX, EXHAUSTED_PAUSE_S
from shardnet.watcher.operations import COMPLETIONS_PER_WAIT_MAX
from shardnet.watcher.queued import CALLS_PER_TURN_MAX
from shardnet.watcher.swap import ROOM_MIN_BYTES, SPARES_MAX, SPILL_BYTES
from tests.harness.client import Client

PROJECT: Final = Path(__file__).parents[2]
PAGE: Final = (PROJECT / "docs" / "watcher.md").read_text()
README: Final = (PROJECT / "README.md").read_text()
BLOCK: Final = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: Final = BLOCK.findall(PAGE)
SERVERS: Final = [
    block for block in BLOCKS + BLOCK.findall(README) if "create_server" in block and "while True" in block
]
PIECES: Final = [block for block in BLOCKS if block not in SERVERS]
IMPORTS: Final = "import socket\nfrom shardnet.watcher import Op, Watcher\n"  # What the page says it leaves out.
# What a block prints: the comment behind a print, or alone on its lines.
PRINTED: Final = re.compile(r"^(?:.*print\(.*\)  | *)# (.*)$", re.MULTILINE)
ROW: Final = re.compile(r"^\| `(\w+)(\([^`]*\))?` \|", re.MULTILINE)


def section(title: str) -> str:
    """What stands under a heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def signature(function: Any) -> str:
    """As the page writes it: without `self` and types."""
    said = inspect.signature(function)
    bare = [
        each.replace(annotation=inspect.Parameter.empty) for each in said.parameters.values() if each.name != "self"
    ]
    return str(inspect.Signature(bare))


def test_page_has_no_block_that_is_not_run() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert len(PIECES) == len(BLOCKS) - 1


@pytest.mark.parametrize("number", range(len(PIECES)))
def test_example_prints_what_it_says(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = PIECES[number]
    exec(compile(IMPORTS + code, f"example {number}", "exec"), {})
    expected = PRINTED.findall(code)
    assert expected
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("number", range(len(SERVERS)))
def test_server_example_echoes(number: int) -> None:
    code = SERVERS[number].replace("9000", "0")
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = re.search(r"'127\.0\.0\.1', (\d+)", process.stdout.readline())
            assert said, "it did not say where it listens"
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Client(("127.0.0.1", int(said[1])))) for _ in range(3)]
                for client in clients:
                    for line in (b"hello", b"x" * 200_000):
                        assert client.ask(line) == line
            assert process.poll() is None
        finally:
            process.kill()


def test_readme_has_a_server_of_the_watcher_alone() -> None:
    assert len(SERVERS) == 2


def test_page_gives_every_method_and_its_signature() -> None:
    rows = dict(ROW.findall(section("What you can ask")))
    for name in public(Watcher):
        member = inspect.getattr_static(Watcher, name)
        assert rows.pop(name) == ("" if isinstance(member, property) else signature(member)), name
    assert rows.keys() == public(Completion)
    assert f"`Watcher{signature(Watcher)}`" in PAGE


def test_page_names_all_that_the_package_exports() -> None:
    for name in shardnet.watcher.__all__:
        assert re.search(rf"`{name}\b", PAGE), name


def test_page_names_every_part_of_a_channel_and_every_op() -> None:
    for name in public(Channel):
        assert re.search(rf"`{name}[`(]", section("What you can ask")), name
    for op in Op:
        assert f"`Op.{op.name}`" in PAGE


def test_page_lists_every_error_in_the_table_of_errors() -> None:
    rows = {name for name, _ in ROW.findall(section("Errors"))}
    errors = {
        name
        for name in shardnet.watcher.__all__
        if inspect.isclass(value := getattr(shardnet.watcher, name)) and issubclass(value, ShardnetError)
    }
    sorts = {"ShardnetError", "UsageError", "PeerError", "SystemFault", "InternalError"}
    assert errors - sorts <= rows
    for name in sorts:
        assert f"`{name}`" in section("Errors")
    for name in rows - errors:
        assert hasattr(builtins, name), name


def test_page_lists_every_field_of_the_statistics_in_its_order() -> None:
    rows = [name for name, _ in ROW.findall(section("Statistics"))]
    assert rows == [field.name for field in dataclasses.fields(Statistics)]
    assert f"one of {len(rows)} fields" in PAGE


def test_page_has_all_promises() -> None:
    promises = re.findall(r"^(\d+)\. \*\*", section("What you can rely on"), re.MULTILINE)
    assert promises == [str(number) for number in range(1, 19)]


def test_page_gives_the_bounds_that_there_are() -> None:
    bounds = section("The wait loop")
    for said in (
        f"`wait_io` | {COMPLETIONS_PER_WAIT_MAX};",
        f"`read` | {CHUNK_MAX_BYTES // 1024} KiB",
        f"their turn | {CALLS_PER_TURN_MAX}, of {CHUNK_MAX_BYTES // 1024} KiB",
        f"likewise | {ACCEPTS_PER_TURN_MAX} |",
        f"counts as full | {ROOM_MIN_BYTES} bytes, or half",
        f"a full one | {SPILL_BYTES // 1024} KiB",
        f"kept for later | {SPARES_MAX} |",
        f"run out | {EXHAUSTED_PAUSE_S} s",
    ):
        assert said in bounds, said


def test_page_points_at_files_and_headings_that_exist() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        assert not file or (PROJECT / "docs" / file).exists(), target
        assert file or anchor in headings, target
    for file in re.findall(r"`(examples/\w+\.py)`", PAGE):
        assert (PROJECT / file).exists(), file
