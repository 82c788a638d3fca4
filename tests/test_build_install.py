"""Installing: from a working tree, from an sdist, from a wheel, in place; and what it is when something is missing."""

from __future__ import annotations

import re
import shutil
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest

from _build import sources
from shardnet.testing import ShardedServer
from tests.build_kit import HEART_PXD, PROJECT, Tree, told, unpack

pytest.importorskip("Cython", reason="the engine's compiler")
if shutil.which("gcc") is None and shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

WARNING = "warning: shardnet is installed without its compiled engine"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _built(ran: object, folder: Path) -> Path:
    assert getattr(ran, "returncode", None) == 0, ran
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_has_the_engine_its_sources_and_no_c(tree: Tree, tmp_path: Path) -> None:
    wheel = _built(tree.wheel(tmp_path / "out", env={"SHARDNET_BUILD": "compiled"}), tmp_path / "out")
    names = _names(wheel)
    assert "none-any" not in wheel.name
    for module in ("heart", "pulse"):
        assert {f"shardnet/{module}{suffix}" for suffix in (".py", ".pxd", sources.SUFFIX)} <= set(names)
    assert not [name for name in names if name.endswith((".c", ".o", ".key")) or name.startswith("_build")]
    site = unpack(wheel, tmp_path / "site")
    assert told(site) == "compiled so so"
    assert told(site, SHARDNET_ENGINE="python") == "python py py"
    assert sources.complaint(site) is None


def test_wheel_has_nothing_of_what_lies_around_in_the_tree(tree: Tree, tmp_path: Path) -> None:
    """What an earlier build left behind came along: setuptools packs everything that is in `build/lib`."""
    assert tree.build().returncode == 0
    for leftover in (tree.path / "build" / "lib" / "shardnet", tree.package):
        leftover.mkdir(parents=True, exist_ok=True)
        (leftover / f"gone{sources.SUFFIX}").write_bytes(b"")
    wheel = _built(tree.wheel(tmp_path / "out", env={"SHARDNET_BUILD": "python"}), tmp_path / "out")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in _names(wheel) if name.endswith(".so") or "_compiled." in name]


BREAKAGES: dict[str, tuple[str, dict[str, str]]] = {  # What heart.pxd ends in, and the environment.
    "a compiler that fails": ("", {"CC": "false"}),
    "no compiler": ("", {"PATH": "/nonexistent"}),
    "what Cython refuses": ("cdef class Heart(\n", {}),
    "what the C compiler refuses": ('cdef extern from "nosuch.h":\n    int nosuch()\n', {}),
}


@pytest.mark.parametrize(("ending", "env"), BREAKAGES.values(), ids=BREAKAGES)
def test_install_goes_on_interpreted_with_one_warning(
    tree: Tree, tmp_path: Path, ending: str, env: dict[str, str]
) -> None:
    """Never half: the module that would have compiled is not compiled either."""
    (tree.package / "heart.pxd").write_text(HEART_PXD + ending)
    ran = tree.wheel(tmp_path / "out", env=env)
    wheel = _built(ran, tmp_path / "out")
    assert (ran.stdout + ran.stderr).count(WARNING) == 1
    assert wheel.name.endswith("-py3-none-any.whl")
    assert told(unpack(wheel, tmp_path / "site")) == "python py py"


@pytest.mark.parametrize(("ending", "env"), BREAKAGES.values(), ids=BREAKAGES)
def test_install_fails_when_it_was_to_be_compiled(tree: Tree, tmp_path: Path, ending: str, env: dict[str, str]) -> None:
    (tree.package / "heart.pxd").write_text(HEART_PXD + ending)
    ran = tree.wheel(tmp_path / "out", env={"SHARDNET_BUILD": "compiled", **env})
    assert ran.returncode != 0
    assert "SHARDNET_BUILD=compiled: " in ran.stdout + ran.stderr
    assert not list((tmp_path / "out").glob("*.whl"))


def test_install_without_compiling_tries_nothing(tree: Tree, tmp_path: Path) -> None:
    ran = tree.wheel(tmp_path / "out", env={"SHARDNET_BUILD": "python", "PATH": "/nonexistent"})
    wheel = _built(ran, tmp_path / "out")
    assert WARNING not in ran.stdout + ran.stderr
    assert told(unpack(wheel, tmp_path / "site")) == "python py py"


def test_wrong_value_for_the_build_is_refused(tree: Tree, tmp_path: Path) -> None:
    ran = tree.wheel(tmp_path / "out", env={"SHARDNET_BUILD": "yes"})
    assert ran.returncode != 0
    assert "SHARDNET_BUILD: expected python or compiled, or nothing, found 'yes'" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr.partition("SHARDNET_BUILD")[0]


def test_sdist_has_all_that_it_takes_to_build_test_and_run(tree: Tree, tmp_path: Path) -> None:
    sdist = _sdist(tree, tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"_build/backend.py", "shardnet/heart.pxd", "Makefile", "docs/building.md", "tools/make-venv.sh"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".key", ".pyc")) or name.startswith("build")]
    wheel = _built(tree.wheel(tmp_path / "out", sdist, env={"SHARDNET_BUILD": "compiled"}), tmp_path / "out")
    assert told(unpack(wheel, tmp_path / "site")) == "compiled so so"


def _sdist(tree: Tree, folder: Path) -> Path:
    program = f"from _build import backend; print(backend.build_sdist({str(folder)!r}))"
    ran = tree.run("-c", program)
    assert ran.returncode == 0, ran.stderr
    return folder / ran.stdout.split()[-1]


def test_editable_install_builds_in_place(tree: Tree, tmp_path: Path) -> None:
    program = f"from _build import backend; print(backend.build_editable({str(tmp_path)!r}))"
    assert tree.run("-c", program, SHARDNET_BUILD="compiled").returncode == 0
    assert tree.tell() == "compiled so so"
    (wheel,) = tmp_path.glob("*.whl")
    assert not [name for name in _names(wheel) if name.endswith(".so")]
    assert tree.run("-c", program, SHARDNET_BUILD="python").returncode == 0
    assert tree.tell() == "python py py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_thing_goes_from_sdist_to_a_server_that_tells_its_engine(tmp_path: Path) -> None:
    """The whole way that an installation without a wheel for it takes, with the real engine."""
    tree = Tree(tmp_path / "tree", whole=True)
    if not sources.modules(tree.path):
        pytest.fail("no module of shardnet has a .pxd")
    sdist = _sdist(tree, tmp_path)
    ran = tree.wheel(tmp_path / "out", sdist, timeout_s=500, env={"SHARDNET_BUILD": "compiled"})
    site = unpack(_built(ran, tmp_path / "out"), tmp_path / "site")
    shutil.copytree(PROJECT / "examples", tmp_path / "apps" / "examples")
    for engine in ("compiled", "python"):
        env = {"PYTHONPATH": str(site), "SHARDNET_ENGINE": engine}
        with ShardedServer("examples.echo:handler", workers=1, app_dir=tmp_path / "apps", env=env) as server:
            assert server.engine == engine
            with socket.create_connection(server.address) as conn, conn.makefile("rwb", buffering=0) as file:
                file.write(b"hello\n")
                assert file.readline() == b"hello\n"
            assert server.metrics().by("engine", "build_info") == {engine: 1.0}
    assert sources.complaint(site) is None


def test_cibuildwheel_is_told_versions_that_shardnet_supports() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    built = re.search(r'^build = "(.*)"$', text, re.MULTILINE)
    assert built is not None
    assert built[1].split() == [f"cp3{minor}-manylinux_*" for minor in (11, 12, 13)]
