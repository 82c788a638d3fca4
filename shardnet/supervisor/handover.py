"""What a supervisor knows, as data that outlives its program.

For an upgrade, and with a preloaded app for every reload, there has to be a program that has imported nothing yet. The
supervisor then executes itself anew, in place: it keeps its pid, so its children stay its children, and every
descriptor that is told to. All else that it knows travels as JSON: this. Which version of shardnet wrote it does not
matter, as long as `form` is the same.

Lives here: the state, and its two directions. Must not live here: descriptors, signals, executing (see `system` and
`program`). Pure.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any

from shardnet.catalogue.cells import ShardCells, SupervisorCells
from shardnet.catalogue.families import RELOAD_OUTCOMES, RESTART_REASONS, SHARD_STATES
from shardnet.errors import InternalError
from shardnet.supervisor.slot import Loan, Pulse, Slot, State, Worker

__all__ = ["ChildState", "FleetState", "SupervisorState", "decode", "encode", "form"]


@dataclass(frozen=True, slots=True)
class FleetState:
    """A fleet in which no reload is under way, but one is to begin."""

    generation: int
    last_generation: int
    last_child: int
    reload_began_s: float
    announced: bool
    lame_duck: bool
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
    stacks_fd: int


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """A whole supervisor."""

    fleet: FleetState
    children: tuple[ChildState, ...]
    signals: tuple[int, ...]  # That had come, and were not handled.
    known: dict[int, dict[str, object]]  # How the log speaks of each child.
    rows: dict[int, int]  # Of the board, by child.
    lost_s: float  # That this process did not run: its clock stands so far behind.
    failure: tuple[str, str] | None = None  # Why there is no new generation to fork: in a line, and at length.


def form() -> str:
    """What the state is made of, as a short word: programs that say the same one understand each other's."""
    kinds = (SupervisorState, FleetState, ChildState, Slot, Worker, Loan, Pulse, SupervisorCells, ShardCells)
    shapes = [(kind.__name__, [(part.name, str(part.type)) for part in dataclasses.fields(kind)]) for kind in kinds]
    values = [state.value for state in State], SHARD_STATES, RESTART_REASONS, RELOAD_OUTCOMES
    return f"{zlib.crc32(repr((shapes, values)).encode()):08x}"


def encode(state: SupervisorState) -> dict[str, Any]:
    """The state as something that JSON can say."""
    fields = dataclasses.asdict(state)
    for slot in (*fields["fleet"]["slots"], fields["fleet"]["exporter"]):
        for worker in slot["workers"] if slot else ():
            worker["state"] = worker["state"].value
    return {"form": form(), **fields}


def decode(fields: dict[str, Any]) -> SupervisorState:
    """The state that `encode` made into this, perhaps with a detour through JSON.

    Raises:
        InternalError: It did not.
    """
    try:
        if fields["form"] != form():
            raise InternalError(f"the supervisor's state has form {fields['form']}, not {form()}")
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
            lost_s=fields["lost_s"],
            failure=None if fields["failure"] is None else (fields["failure"][0], fields["failure"][1]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise InternalError(f"what was handed over is no supervisor's state: {exc!r}") from exc


def _slot(fields: dict[str, Any]) -> Slot:
    workers = [
        Worker(**{**worker, "state": State(worker["state"]), "pulse": Pulse(**worker["pulse"])})
        for worker in fields["workers"]
    ]
    loans = [Loan(**loan) for loan in fields["loans"]]
    return Slot(**{**fields, "workers": workers, "loans": loans})
