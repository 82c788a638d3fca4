"""The build backend: setuptools, with the compiled engine where it can be had.

SHARDNET_BUILD says what happens when it cannot: unset, one warning, and a pure Python shardnet; `compiled`, an error;
`python` does not try. It is all or none, also in what is installed, so a module that fails costs all the others.

Lives here: the hooks of PEP 517 and 660. Must not live here: compiling.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import setuptools
from setuptools import Extension
from setuptools.build_meta import _BuildMetaBackend
from setuptools.command.build_ext import build_ext

from _build import placing
from _build.compiling import Built, CannotBuildError, compile_engine
from _build.sources import ROOT

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

VARIABLE: Final = "SHARDNET_BUILD"
Settings = Mapping[str, Any] | None


def wanted() -> str:
    """What SHARDNET_BUILD says: `python`, `compiled`, or nothing."""
    value = os.environ.get(VARIABLE, "").strip()
    if value not in ("", "python", "compiled"):
        sys.exit(f"{VARIABLE}: expected python or compiled, or nothing, found {value!r}")
    return value


def built_or_none() -> list[Built]:
    """The compiled modules, all of them, or none if that is allowed."""
    mode = wanted()
    if mode == "python":
        return []
    try:
        return compile_engine(ROOT)
    except CannotBuildError as exc:
        if mode == "compiled":
            sys.exit(f"{exc.output}\n{VARIABLE}=compiled: {exc}".lstrip())
        print(
            f"warning: shardnet is installed without its compiled engine, and will run interpreted: {exc} "
            f"({VARIABLE}=compiled tells more)",
            file=sys.stderr,
        )
        return []


class _Backend(_BuildMetaBackend):
    """setuptools without a setup.py, but with what one would say."""

    def __init__(self) -> None:
        self._said: dict[str, Any] = {}

    def run_setup(self, setup_script: str = "setup.py") -> None:
        setuptools.setup(**self._said)

    def build_wheel(
        self, wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
    ) -> str:
        built = built_or_none()
        with tempfile.TemporaryDirectory(prefix="shardnet-") as folder:
            # A folder of its own: setuptools packs whatever an earlier build has left in `build/lib`.
            self._said["options"] = {"build": {"build_base": folder}}
            if built:
                self._said["ext_modules"] = [Extension(each.module.name, []) for each in built]
                self._said["cmdclass"] = {"build_ext": _packing(built)}
            try:
                name: str = super().build_wheel(wheel_directory, config_settings, metadata_directory)
                return name
            finally:
                self._said = {}

    def build_editable(
        self, wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
    ) -> str:
        placing.place(built_or_none(), ROOT)
        name: str = super().build_editable(wheel_directory, config_settings, metadata_directory)
        return name


def _packing(built: list[Built]) -> type[build_ext]:
    class Packing(build_ext):
        """What has been compiled goes into the wheel."""

        def run(self) -> None:
            placing.place(built, Path(self.build_lib))

    return Packing


_backend = _Backend()
build_editable = _backend.build_editable
build_sdist = _backend.build_sdist
build_wheel = _backend.build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
