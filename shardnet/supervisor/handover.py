"""What a supervisor knows, as data that outlives its program.

With a preloaded app a reload has to start with a program that has imported nothing yet. The supervisor then executes
itself anew, in place: it keeps its pid, so its children stay its children, and every descriptor that is told to. All
else that it knows travels as JSON: this.

Lives here: the state, and its two directions. Must not live here: descriptors, signals, executing (see `system` and
`program`). Pure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from shardnet.errors import InternalError
from shardnet.metrics import SupervisorCells
from shardnet.supervisor.slot import Slot, State, Worker

__all__ = ["ChildState", "FleetState", "SupervisorState", "decode", "encode"]

FORM: Final = 1  # Of what is written here.


@dataclass(frozen=True, slots=True)
class FleetState:
    """A fleet in which no reload is under way, but one is to begin."""

    generation: int
    last_generation: int
    last_child: int
    reload_began_s: float
    announced: bool
    failing_since_s: float | None
    last_failure: str
    slots: tuple[Slot, ...]
    exporter: Slot | None


@dataclass(frozen=True, slots=True)
class ChildState:
    """A living child, or one that has ended and was not reaped."""

    number: int
    pid: int
    control_fd: int


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """A whole supervisor."""

    fleet: FleetState
    children: tuple[ChildState, ...]
    signals: tuple[int, ...]  # That had come, and were not handled.
    known: dict[int, dict[str, object]]  # How the log speaks of each child.
    rows: dict[int, int]  # Of the board, by child.
    cells: SupervisorCells
    failure: tuple[str, str] | None = None  # Why there is no new generation to fork: in a line, and at length.


def encode(state: SupervisorState) -> dict[str, Any]:
    """The state as something that JSON can say."""
    fields = dataclasses.asdict(state)
    for slot in (*fields["fleet"]["slots"], fields["fleet"]["exporter"]):
        for worker in slot["workers"] if slot else ():
            worker["state"] = worker["state"].value
    return {"form": FORM, **fields}


def decode(fields: dict[str, Any]) -> SupervisorState:
    """The state that `encode` made into this, perhaps with a detour through JSON.

    Raises:
        InternalError: It did not.
    """
    try:
        if fields["form"] != FORM:
            raise InternalError(f"the supervisor's state has form {fields['form']}, not {FORM}")
        fleet = fields["fleet"]
        return SupervisorState(
            fleet=FleetState(
                **{
                    **fleet,
                    "slots": tuple(map(_slot, fleet["slots"])),
                    "exporter": fleet["exporter"] and _slot(fleet["exporter"]),
                }
            ),
            children=tuple(ChildState(**child) for child in fields["children"]),
            signals=tuple(fields["signals"]),
            known={int(child): known for child, known in fields["known"].items()},
            rows={int(child): row for child, row in fields["rows"].items()},
            cells=SupervisorCells(**fields["cells"]),
            failure=None if fields["failure"] is None else (fields["failure"][0], fields["failure"][1]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise InternalError(f"what was handed over is no supervisor's state: {exc!r}") from exc


def _slot(fields: dict[str, Any]) -> Slot:
    workers = [Worker(**{**worker, "state": State(worker["state"])}) for worker in fields["workers"]]
    return Slot(**{**fields, "workers": workers})
