"""Whether the server lives, is ready, and how each shard is: read off the board.

Lives here: the three judgements. Must not live here: HTTP, clocks, waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shardnet.board import Occupant, Snapshot
from shardnet.catalogue.families import (
    GENERATION,
    LAME_DUCK,
    SHARD_RESTARTS,
    SHARD_STATE,
    SHARDS_CONFIGURED,
    UNASKED_REASONS,
)

__all__ = ["Verdict", "health", "liveness", "readiness"]

SUPERVISOR_STALE_S: Final = 5.0  # It beats every second; a fork of a large process may hold it up for a moment.
NS_PER_S: Final = 1e9

# Of several workers in one shard, what the shard does is what the most useful of them does.
STATES_BY_USE: Final = ("serving", "booting", "draining", "backoff")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and why: something that JSON can say."""

    ok: bool
    details: Mapping[str, Any]


def liveness(snapshot: Snapshot, now_ns: int) -> Verdict:
    """Whether the supervisor's loop still turns. `now_ns` is CLOCK_MONOTONIC."""
    age_s = _heartbeat_age_s(snapshot.supervisor, now_ns)
    live = age_s is not None and age_s < SUPERVISOR_STALE_S
    return Verdict(live, {"live": live, "supervisor_heartbeat_age_s": age_s})


def readiness(snapshot: Snapshot, min_shards: int | None) -> Verdict:
    """Whether enough shards serve for connections to be sent here, and nobody has said otherwise. A shard that drains
    does not.

    Enough are `min_shards`, None: all; a server that was scaled below that needs all that are left.
    """
    configured = len(_shards(snapshot))
    serving = sum(_state(snapshot, shard) == "serving" for shard in _shards(snapshot))
    needed = max(1, configured if min_shards is None else min(min_shards, configured))
    lame_duck = bool(snapshot.value(LAME_DUCK))
    ready = serving >= needed and not lame_duck
    return Verdict(
        ready,
        {
            "ready": ready,
            "shards_serving": serving,
            "shards_needed": needed,
            "shards_configured": configured,
            "lame_duck": lame_duck,
        },
    )


def health(snapshot: Snapshot, now_ns: int, unix_ns: int, min_shards: int | None) -> Verdict:
    """Every shard, one by one. Yes while the server lives and is ready, even if some shards are not. `unix_ns` is the
    same moment as `now_ns`, by the other clock."""
    live, ready = liveness(snapshot, now_ns), readiness(snapshot, min_shards)
    shards = [_shard(snapshot, shard, now_ns, unix_ns) for shard in _shards(snapshot)]
    ok = live.ok and ready.ok
    supervisor = snapshot.supervisor
    return Verdict(
        ok,
        {
            "status": ("ok" if all(s["state"] == "serving" for s in shards) else "degraded") if ok else "failing",
            "pid": supervisor.pid if supervisor and supervisor.pid else None,
            "uptime_s": _uptime_s(supervisor, unix_ns),
            "generation": int(snapshot.value(GENERATION)),
            **live.details,
            **ready.details,
            "shards": shards,
        },
    )


def _shard(snapshot: Snapshot, shard: int, now_ns: int, unix_ns: int) -> dict[str, Any]:
    # The youngest whose loop turns: while a successor boots, the worker that it is to succeed. One of a generation that
    # does not serve yet comes last of all, for it is held back.
    serves = snapshot.value(GENERATION)
    mine = (w for w in snapshot.workers if w.shard == shard)
    workers = sorted(mine, key=lambda w: (w.generation <= serves, w.incarnation))
    worker = next((w for w in reversed(workers) if w.heartbeat_ns), workers[-1] if workers else None)
    return {
        "shard": shard,
        "state": _state(snapshot, shard),
        "pid": worker.pid if worker and worker.pid else None,
        "generation": worker.generation if worker else None,
        "uptime_s": _uptime_s(worker, unix_ns),
        "heartbeat_age_s": _heartbeat_age_s(worker, now_ns),
        # Those that nobody asked for.
        "restarts": sum(
            int(snapshot.value(SHARD_RESTARTS, shard=str(shard), reason=reason)) for reason in UNASKED_REASONS
        ),
    }


def _shards(snapshot: Snapshot) -> range:
    return range(int(snapshot.value(SHARDS_CONFIGURED)))


def _state(snapshot: Snapshot, shard: int) -> str:
    states = (s for s in STATES_BY_USE if snapshot.value(SHARD_STATE, shard=str(shard), state=s))
    return next(states, "vacant")


def _heartbeat_age_s(occupant: Occupant | None, now_ns: int) -> float | None:
    if occupant is None or not occupant.heartbeat_ns:
        return None
    return round(max(0, now_ns - occupant.heartbeat_ns) / NS_PER_S, 3)


def _uptime_s(occupant: Occupant | None, unix_ns: int) -> float | None:
    return None if occupant is None else round(max(0, unix_ns - occupant.started_ns) / NS_PER_S, 3)
