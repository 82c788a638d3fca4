"""What a supervisor learns when it waits: the vocabulary between `system` and `loop`. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.control import Message
from shardnet.supervisor.events import Ending

__all__ = [
    "Asked",
    "ChildDumped",
    "ChildExited",
    "ChildMisspoke",
    "ChildSaid",
    "ClientAsked",
    "Happening",
    "OrphanReaped",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody sent the supervisor a signal."""

    signum: int


@dataclass(frozen=True, slots=True)
class ChildSaid:
    """A child sent a message."""

    child: int
    message: Message


@dataclass(frozen=True, slots=True)
class ChildMisspoke:
    """A child has sent too many packets that were no messages. Said once."""

    child: int


@dataclass(frozen=True, slots=True)
class ChildDumped:
    """A part of what a child's fault handler has to say: where its threads stand, or what killed it."""

    child: int
    text: str


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A child is gone, and reaped. All that it had sent has been reported before."""

    child: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class ClientAsked:
    """An operator's command has come."""

    client: int
    message: Message


@dataclass(frozen=True, slots=True)
class OrphanReaped:
    """A process ended whose parent we had become: as PID 1, as a sub-reaper, or by an exec."""

    pid: int
    ending: Ending


Happening = Asked | ChildSaid | ChildDumped | ChildMisspoke | ChildExited | OrphanReaped | ClientAsked
