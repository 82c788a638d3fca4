"""What signals and children's messages mean to a fleet.

Lives here: from what has come in to events. Must not live here: what is done about them.
"""

from __future__ import annotations

from shardnet.control import Message
from shardnet.supervisor.events import (
    Borrowed,
    Event,
    Failed,
    LameDuckAsked,
    Leaving,
    LoanRefused,
    Ready,
    ReloadAsked,
    ScaleAsked,
    StopAsked,
)
from shardnet.supervisor.signals import LAME_DUCK, RELOAD, SCALE, STOP_AT_ONCE, UPGRADE

__all__ = ["event_of_message", "event_of_signal"]


def event_of_signal(signum: int, shards: int) -> Event:
    """What a signal asks of a fleet that has so many shards."""
    if signum in RELOAD:
        return ReloadAsked()
    if signum in UPGRADE:
        return ReloadAsked(upgrade=True)
    if signum in LAME_DUCK:
        return LameDuckAsked()
    if signum in SCALE:
        return ScaleAsked(shards + SCALE[signum])
    return StopAsked(quick=signum in STOP_AT_ONCE)


def event_of_message(child: int, message: Message) -> Event | None:
    """What a child's message means; None if it means nothing to a fleet."""
    fields = message.fields
    match message.type:
        case "ready":
            return Ready(child)
        case "failed":
            return Failed(child, *(str(fields.get(name, "")) for name in ("kind", "message", "detail")))
        case "leaving":
            return Leaving(child)
        case "borrowed":
            return Borrowed(child, _number(fields.get("loan")))
        case "loan_refused":
            return LoanRefused(child, _number(fields.get("loan")), str(fields.get("why", "")))
        case _:
            return None


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0  # Which is nothing's.
