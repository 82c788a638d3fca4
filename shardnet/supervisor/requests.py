"""What operators ask of a running server, and what they are told.

Each request is answered at once; whether what was asked for has come about, an operator sees from the status, asked
again. So nobody is waited for here, and a command outlives an upgrade in the middle of it.

Lives here: reading requests, and answering them. Must not live here: the socket (`clients`), what a command line makes
of it (`shardnet.cli.operate`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from shardnet.control import Message
from shardnet.errors import ShardnetError, UsageError
from shardnet.log import get_logger, set_level
from shardnet.supervisor.events import (
    Event,
    KeepOutAsked,
    LameDuckAsked,
    Leaving,
    Reason,
    ReloadAsked,
    ScaleAsked,
    StopAsked,
)
from shardnet.supervisor.ledger import Ledger
from shardnet.supervisor.lifecycle import Fleet
from shardnet.supervisor.signals import STACKS
from shardnet.supervisor.slot import Slot, State, Worker
from shardnet.supervisor.stacks import Stacks
from shardnet.supervisor.system import System

__all__ = ["Requests"]

SHARDS_PER_ANSWER: Final = 64  # So many fit a packet; who wants more asks for what follows.
STACKS_MAX_CHARS: Final = 20_000  # Of each kind, in one answer.


class Requests:
    """Answers requests about one fleet."""

    def __init__(
        self,
        system: System,
        fleet: Fleet,
        ledger: Ledger,
        stacks: Stacks,
        known: Mapping[int, Mapping[str, object]],
        about: Mapping[str, object],
    ) -> None:
        """`known` is what the log knows of each living child; `about`, what there is to say of the server itself."""
        self._system = system
        self._fleet = fleet
        self._ledger = ledger
        self._stacks = stacks
        self._known = known
        self._about = about
        self._log = get_logger("operator")
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, object]]] = {
            "status": self._status,
            "reload": lambda _: self._reload(upgrade=False),
            "upgrade": lambda _: self._reload(upgrade=True),
            "scale": self._scale,
            "restart": self._restart,
            "drain": lambda fields: self._keep_out(fields, out=True),
            "undrain": lambda fields: self._keep_out(fields, out=False),
            "lame_duck": self._lame_duck,
            "stop": self._stop,
            "log_level": self._log_level,
            "stacks": self._ask_stacks,
            "stacks_said": self._tell_stacks,
        }

    def answer(self, message: Message) -> dict[str, object]:
        """Do what is asked. The answer has `error` if that cannot be."""
        command = self._commands.get(message.type)
        try:
            if command is None:
                raise UsageError(f"no such command: {message.type[:100]!r}")
            if message.type not in ("status", "stacks_said"):
                self._log.info(message.type, **({"fields": str(message.fields)[:200]} if message.fields else {}))
            return command(message.fields)
        except ShardnetError as error:
            self._log.warning("refused", command=message.type[:100], why=error)
            return {"error": str(error)}

    # Looking.

    def _status(self, fields: dict[str, Any]) -> dict[str, object]:
        first = _whole(fields.get("from", 0), "from")
        slots = [slot for slot in self._fleet.slots[first:] if slot.in_size or slot.workers]
        page, rest = slots[:SHARDS_PER_ANSWER], slots[SHARDS_PER_ANSWER:]
        figures = self._ledger.figures()
        return {
            **self._about,
            **self._outcomes(),
            "shards_wanted": self._fleet.shards,
            "shards_max": len(self._fleet.slots),
            "stopping": self._fleet.stopping,
            "lame_duck": self._fleet.lame_duck,
            "reload": self._fleet.reload_stage,
            "reload_failure": self._fleet.reload_failure,
            "shards": [self._shard(slot, figures) for slot in page],
            "next": rest[0].shard if rest else None,
        }

    def _outcomes(self) -> dict[str, object]:
        ok, failed = self._ledger.reloads()
        return {"generation": self._fleet.generation, "reloads_ok": ok, "reloads_failed": failed}

    def _shard(self, slot: Slot, figures: Mapping[int, Mapping[str, int]]) -> dict[str, object]:
        lent_to = [self._known.get(loan.borrower, {}).get("shard") for loan in slot.loans]
        return {
            "shard": slot.shard,
            "state": slot.state,
            "kept_out": slot.kept_out,
            "lent_to": lent_to,
            "workers": [self._worker(worker) for worker in slot.workers],
            **figures.get(slot.shard or 0, {}),
        }

    def _worker(self, worker: Worker) -> dict[str, object]:
        silent_ns = time.monotonic_ns() - self._ledger.heartbeat(worker.child)
        return {
            "pid": self._known.get(worker.child, {}).get("pid"),
            "state": worker.state.value,
            "generation": worker.generation,
            "age_s": round(self._system.now_s() - worker.forked_s, 1),
            "heartbeat_age_s": round(silent_ns / 1e9, 3) if worker.ready_s is not None else None,
        }

    # Changing.

    def _tell(self, event: Event) -> None:
        if self._fleet.stopping and not isinstance(event, StopAsked):
            raise UsageError("the server is stopping")
        self._fleet.apply(event, self._system.now_s())

    def _reload(self, *, upgrade: bool) -> dict[str, object]:
        before = self._outcomes()
        # One that is under way already ends first, and is not ours.
        under_way = self._fleet.reload_stage is not None
        self._tell(ReloadAsked(upgrade=upgrade))
        return {**before, "outcomes_before": self._ledger.reloads()[0] + self._ledger.reloads()[1] + under_way}

    def _scale(self, fields: dict[str, Any]) -> dict[str, object]:
        shards, most = _whole(fields.get("shards"), "the number of shards"), len(self._fleet.slots)
        if not 1 <= shards <= most:
            raise UsageError(f"{shards} shards: it can be 1 to {most}, which is --max-workers")
        self._tell(ScaleAsked(shards))
        return {"shards": shards}

    def _restart(self, fields: dict[str, Any]) -> dict[str, object]:
        slot = self._slot(fields)
        worker = self._serving(slot)
        self._tell(Leaving(worker.child))
        self._ledger.count_restart(slot.shard or 0, Reason.ASKED)
        return {"pid": self._known[worker.child]["pid"]}

    def _keep_out(self, fields: dict[str, Any], *, out: bool) -> dict[str, object]:
        slot = self._slot(fields)
        others = any(other.accepts for other in self._fleet.slots if other is not slot and other.wanted)
        if out and not others:
            raise UsageError(f"shard {slot.shard} is the only one that serves: drain another one, or stop the server")
        self._tell(KeepOutAsked(slot.shard or 0, out))
        return {"shard": slot.shard}

    def _lame_duck(self, fields: dict[str, Any]) -> dict[str, object]:
        self._tell(LameDuckAsked(fields.get("on") is True))
        return {}

    def _stop(self, fields: dict[str, Any]) -> dict[str, object]:
        self._tell(StopAsked(quick=fields.get("now") is True))
        return {}

    def _log_level(self, fields: dict[str, Any]) -> dict[str, object]:
        level = str(fields.get("level"))
        set_level(level)
        for child in self._known:
            self._system.tell(child, "log_level", level=level)
        return {"level": level}

    # Stacks.

    def _ask_stacks(self, fields: dict[str, Any]) -> dict[str, object]:
        worker = self._serving(self._slot(fields))
        self._stacks.forget(worker.child)
        self._system.kill(worker.child, signal.Signals(STACKS))
        self._system.tell(worker.child, "tasks")
        return {"pid": self._known[worker.child]["pid"]}

    def _tell_stacks(self, fields: dict[str, Any]) -> dict[str, object]:
        child = self._serving(self._slot(fields)).child
        threads, tasks = self._stacks.of(child)
        if threads and tasks:
            self._stacks.forget(child)  # Nobody should take them for its last ones.
        return {"threads": threads[:STACKS_MAX_CHARS], "tasks": tasks[:STACKS_MAX_CHARS]}

    # Reading.

    def _slot(self, fields: dict[str, Any]) -> Slot:
        shard = _whole(fields.get("shard"), "the shard")
        slots = [slot for slot in self._fleet.slots if slot.in_size]
        if shard not in range(len(slots)):
            raise UsageError(f"no shard {shard}: there are 0 to {len(slots) - 1}")
        return slots[shard]

    def _serving(self, slot: Slot) -> Worker:
        worker = slot.first(State.SERVING)
        if worker is None:
            raise UsageError(f"shard {slot.shard} has no worker that serves: it is {slot.state}")
        return worker


def _whole(value: object, what: str) -> int:
    if type(value) is not int:
        raise UsageError(f"{what} is no whole number: {str(value)[:100]!r}")
    return value
