"""`make engine`: compiled modules in a working tree, all or none, and never from other sources than lie there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from _build import sources
from tests.build_kit import PULSE_PXD, Tree

pytest.importorskip("Cython", reason="the engine's compiler")
if shutil.which("gcc") is None and shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build of an unchanged copy, for those that start from there."""
    tree = Tree(tmp_path_factory.mktemp("built") / "tree")
    ran = tree.build(SHARDNET_BUILD="compiled")
    assert ran.returncode == 0, ran.stderr
    return tree.path


@pytest.fixture
def tree(built_once: Path, tmp_path: Path) -> Tree:
    """A copy with its engine built."""
    tree = Tree(tmp_path / "tree")
    for path in (*built_once.rglob("*.so"), *built_once.rglob("*.key"), *built_once.glob("shardnet/_compiled*")):
        target = tree.path / path.relative_to(built_once)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tree


def test_engine_is_what_runs_once_it_is_built(tree: Tree) -> None:
    assert tree.tell() == "compiled so so"
    assert tree.compiled() == ["_compiled", "heart", "pulse"]
    assert sources.complaint(tree.path) is None


def test_unchanged_engine_is_not_compiled_again(tree: Tree) -> None:
    ran = tree.build(PATH="/nonexistent")  # It would find no compiler.
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "engine: up to date\n", "")


def test_another_compiler_or_other_flags_make_another_engine(tree: Tree) -> None:
    with contextlib.ExitStack() as held:  # As who runs it holds it: a number that is in use is not given away again.
        old = {os.fstat(held.enter_context(path.open("rb")).fileno()).st_ino for path in tree.package.rglob("*.so")}
        assert "Compiling 2 of 2 modules" in tree.build(SHARDNET_CFLAGS="-O1").stderr
        new = {path.stat().st_ino for path in tree.package.rglob("*.so")}
    assert len(new) == len(old) == 2
    assert not new & old


def test_module_that_has_changed_is_compiled_and_the_other_is_not(tree: Tree) -> None:
    heart = tree.package / "heart.py"
    heart.write_text(heart.read_text().replace("* 6", "* 3 * 2"))
    assert "Compiling 1 of 2 modules" in tree.build().stderr
    assert tree.tell() == "compiled so so"


def test_module_is_compiled_again_when_a_struct_that_it_knows_has_changed(tree: Tree) -> None:
    """Otherwise it would go on reading where the other's fields used to be."""
    (tree.package / "pulse.pxd").write_text(PULSE_PXD.replace("cdef public int beats", "cdef public long odd, beats"))
    assert "Compiling 2 of 2 modules" in tree.build().stderr
    assert tree.tell() == "compiled so so"


def test_module_that_is_compiled_no_more_leaves_nothing_behind(tree: Tree) -> None:
    (tree.package / "heart.pxd").unlink()
    assert "too many" in str(sources.complaint(tree.path))
    assert tree.build().returncode == 0
    assert tree.tell() == "compiled py so"


@pytest.mark.parametrize("name", ["pulse.py", "pulse.pxd", "heart.pxd"])
def test_engine_is_stale_when_its_source_has_changed_whatever_the_clocks_say(tree: Tree, name: str) -> None:
    path = tree.package / name
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text() + "\n")
    os.utime(path, ns=times)
    text = sources.complaint(tree.path)
    assert text is not None
    assert "is stale" in text
    assert text.endswith("run make engine")
    assert "\n" not in text
    assert tree.build("--check").returncode == 1


def test_engine_is_not_stale_because_files_were_written_anew(tree: Tree) -> None:
    for path in tree.package.rglob("*.p*"):
        path.touch()
    assert sources.complaint(tree.path) is None
    assert tree.build("--check").returncode == 0


def _without_a_module(tree: Tree) -> None:
    next(tree.package.glob("pulse*.so")).unlink()


def _without_the_record(tree: Tree) -> None:
    next(tree.package.glob("_compiled*")).unlink()


@pytest.mark.parametrize("halve", [_without_a_module, _without_the_record])
def test_half_an_engine_never_runs(tree: Tree, halve: Callable[[Tree], None]) -> None:
    """What an interrupted build leaves. One compiled module among interpreted ones would read structs that are none."""
    halve(tree)
    assert tree.tell() == "python py py"
    assert "half built" in str(sources.complaint(tree.path))


@pytest.mark.parametrize("halve", [_without_a_module, _without_the_record])
def test_half_an_engine_is_refused_when_compiled_is_asked_for(tree: Tree, halve: Callable[[Tree], None]) -> None:
    halve(tree)
    ran = tree.run("-m", "shardnet", "--version", SHARDNET_ENGINE="compiled")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.startswith("shardnet: SHARDNET_ENGINE=compiled: ")
    assert ran.stderr.count("\n") == 1


def test_python_can_be_forced_where_the_engine_is_compiled(tree: Tree) -> None:
    assert tree.tell(SHARDNET_ENGINE="python") == "python py py"
    assert tree.tell(SHARDNET_ENGINE="compiled") == "compiled so so"
    assert tree.tell(SHARDNET_ENGINE=" ") == "compiled so so"


def test_engine_that_nobody_knows_is_refused_by_the_command_and_by_an_import(tree: Tree) -> None:
    wrong = {"SHARDNET_ENGINE": "fast"}
    ran = tree.run("-m", "shardnet", "run", "examples.echo:handler", **wrong)
    line = "SHARDNET_ENGINE: expected python or compiled, found 'fast'"
    assert (ran.returncode, ran.stderr) == (3, f"shardnet: {line}\n")
    ran = tree.run("-c", "import shardnet; print(shardnet.__version__); import shardnet.connection", **wrong)
    assert ran.stdout
    assert ran.stderr.endswith(f"shardnet.errors.ConfigError: {line}\n")


def test_source_that_does_not_translate_fails_and_leaves_python(tree: Tree) -> None:
    """Whoever works on the engine wants to see that, and not a suite that has passed interpreted."""
    (tree.package / "heart.pxd").write_text("cdef class Heart\n    cdef int")
    ran = tree.build()
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("shardnet/heart.py does not translate: shardnet/heart.pxd:")
    assert tree.compiled() == []
    assert tree.tell() == "python py py"


@pytest.mark.parametrize("env", [{"CC": "false"}, {"PATH": "/nonexistent"}], ids=["broken", "none"])
def test_without_a_compiler_python_is_left_with_a_warning(tree: Tree, env: dict[str, str]) -> None:
    shutil.rmtree(tree.path / "build")
    ran = tree.build(**env)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.startswith("warning: no compiled engine, Python runs: no working C compiler: ")
    assert ran.stderr.count("\n") == 1
    assert tree.tell() == "python py py"
    assert tree.build(SHARDNET_BUILD="compiled", **env).returncode == 1


def test_engine_can_be_removed(tree: Tree) -> None:
    assert tree.build("--remove").returncode == 0
    assert tree.compiled() == []
    assert tree.build().returncode == 0
    assert tree.build(SHARDNET_BUILD="python").returncode == 0
    assert tree.compiled() == []


def test_wrong_value_for_the_build_is_one_line(tree: Tree) -> None:
    ran = tree.build(SHARDNET_BUILD="maybe")
    said = "SHARDNET_BUILD: expected python or compiled, or nothing, found 'maybe'\n"
    assert (ran.returncode, ran.stderr) == (1, said)


def test_own_flags_reach_the_compiler(tree: Tree) -> None:
    ran = tree.build(SHARDNET_CFLAGS="-fno-such-flag")
    assert ran.returncode == 1
    assert "no-such-flag" in ran.stderr
