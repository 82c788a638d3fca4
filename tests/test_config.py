"""Settings: declared once, and the flags derive from them."""

from __future__ import annotations

import dataclasses

from shardnet.cli import run
from shardnet.config import Settings, declarations


def test_every_setting_has_a_flag_named_after_it() -> None:
    flags = {option.name: option.opts for option in run.params if option.name != "app"}
    assert flags == {declaration.name: [declaration.flag] for declaration in declarations()}


def test_flags_leave_out_the_unit_and_show_it_instead() -> None:
    by_name = {declaration.name: declaration for declaration in declarations()}
    drain = by_name["drain_timeout_s"]
    assert (drain.flag, drain.meta.metavar) == ("--drain-timeout", "SECONDS")
    swap = by_name["swap_size_bytes"]
    assert (swap.flag, swap.meta.metavar) == ("--swap-size", "BYTES")


def test_every_setting_explains_itself() -> None:
    for declaration in declarations():
        assert declaration.meta.help.endswith("."), declaration.name
        assert declaration.type == "bool" or declaration.meta.metavar, declaration.name


def test_defaults_lie_within_their_own_bounds() -> None:
    for declaration in declarations():
        if isinstance(declaration.default, int | float):
            assert declaration.meta.least is None or declaration.default >= declaration.meta.least
            assert declaration.meta.most is None or declaration.default <= declaration.meta.most
    assert dataclasses.asdict(Settings())["bind"] == ("127.0.0.1:9000",)
