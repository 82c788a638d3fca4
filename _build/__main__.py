"""`python -m _build`: the compiled engine in this tree, for who works on it. `make engine` runs it."""

from __future__ import annotations

import argparse
import sys

from _build import placing, sources
from _build.backend import wanted
from _build.compiling import CannotBuildError, compile_engine
from _build.sources import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m _build", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="only say whether it is built from these sources")
    which.add_argument("--remove", action="store_true", help="remove it, so that Python runs")
    arguments = parser.parse_args()
    if arguments.check:
        return _check()
    mode = wanted()
    if arguments.remove or mode == "python":
        placing.remove(ROOT)
        return 0
    try:
        changed = placing.place(compile_engine(ROOT), ROOT)
    except CannotBuildError as exc:
        placing.remove(ROOT)
        if exc.tools and mode != "compiled":
            print(f"warning: no compiled engine, Python runs: {exc}", file=sys.stderr)
            return 0
        print(f"{exc.output}\n{exc}".lstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"engine: {'built' if changed else 'up to date'}")
    return 0


def _check() -> int:
    text = sources.complaint(ROOT)
    if text is not None:
        print(text, file=sys.stderr)
        return 1
    print("engine: " + ("built from these sources" if sources.record(ROOT).exists() else "not compiled"))
    return 0


sys.exit(main())
