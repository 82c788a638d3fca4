"""What to do to a server, how often, and under what load.

Lives here: values, and what of them cannot be. Must not live here: processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from shardnet.errors import UsageError

__all__ = ["FAULTS", "MIXES", "Options", "parse_faults"]

# The faults there are, and what each is: of the help, the errors and the docs.
FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "kill": "SIGKILL to a worker",
        "segfault": "SIGSEGV to a worker",
        "stop": "SIGSTOP to a worker, SIGCONT --stop-for later",
        "hang": "SIGSTOP to a worker, for ever: the supervisor has to see it",
        "crash-loop": "each worker of one shard is killed as soon as it is there, --loop-for long",
        "files": "a worker may open no more files, --stop-for long",
        "reload": "HUP to the supervisor",
        "reload-burst": "20 HUP, 100 ms apart",
        "scale": "down to 1 shard, and up again",
        "upgrade": "USR2 to the supervisor",
    }
)
ONE_OF_EACH: Final = MappingProxyType(dict.fromkeys(FAULTS, 1))
MIXES: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "short": MappingProxyType(
            {**ONE_OF_EACH, "kill": 5, "reload": 3, "scale": 2, "upgrade": 2}  # Two minutes.
        ),
        "full": MappingProxyType(
            {**ONE_OF_EACH, "kill": 100, "segfault": 5, "stop": 5, "hang": 2, "files": 5, "reload": 20, "scale": 20,
             "upgrade": 20}
        ),
    }
)  # fmt: skip
COUNT_MAX: Final = 1_000_000
CLIENTS_MAX: Final = 20_000
RATE_MAX: Final = 100_000.0
SECONDS_MAX: Final = 30 * 86400.0
WORKERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Raises `UsageError` for what cannot be."""

    faults: Mapping[str, int]  # How often each is injected; with a duration, how often beside the others.
    workers: int = 4
    clients: int = 32
    rate: float = 500.0  # Connections a second, of all clients.
    request: bytes = b"shardnet\n"
    timeout_s: float = 10.0
    stop_for_s: float = 2.0
    loop_for_s: float = 30.0
    hang_timeout_s: float = 3.0
    duration_s: float | None = None  # Again and again until so much time has passed; None: each as often as it says.
    seed: int = 1

    def __post_init__(self) -> None:
        _check_within("--workers", self.workers, 2, WORKERS_MAX)
        _check_within("--clients", self.clients, 1, CLIENTS_MAX)
        _check_within("--rate", self.rate, 0.1, RATE_MAX)
        _check_within("--timeout", self.timeout_s, 0.1, SECONDS_MAX)
        _check_within("--stop-for", self.stop_for_s, 0.0, SECONDS_MAX)
        _check_within("--loop-for", self.loop_for_s, 0.0, SECONDS_MAX)
        _check_within("--hang-timeout", self.hang_timeout_s, 1.0, SECONDS_MAX)
        if self.duration_s is not None:
            _check_within("--duration", self.duration_s, 0.1, SECONDS_MAX)
        if not self.request:
            raise UsageError("--text is empty: a request has at least 1 byte")
        if "stop" in self.faults and self.stop_for_s >= self.hang_timeout_s:
            raise UsageError(
                f"--stop-for {self.stop_for_s:g} is not less than --hang-timeout {self.hang_timeout_s:g}: a worker "
                "that is to go on would be killed first"
            )

    def round(self, random_: random.Random) -> Iterator[str]:
        """Every fault as often as it is to be injected, shuffled."""
        names = [name for name, count in self.faults.items() for _ in range(count)]
        random_.shuffle(names)
        return iter(names)


def parse_faults(text: str) -> dict[str, int]:
    """What `short`, `full`, `kill=3,reload` or `none` means. Raises `UsageError`."""
    if text in MIXES:
        return dict(MIXES[text])
    if text == "none":
        return {}
    faults = {}
    for part in text.split(","):
        name, given, count = part.strip().partition("=")
        if name not in FAULTS:
            raise UsageError(f"--faults: there is no {name!r}: give {', '.join(MIXES)}, none, or {', '.join(FAULTS)}")
        if given and not (count.isascii() and count.isdigit() and int(count) <= COUNT_MAX):
            raise UsageError(f"--faults: {part.strip()!r}: a count is a whole number up to {COUNT_MAX:,}")
        if count != "0":
            faults[name] = int(count) if given else 1
    return faults


def _check_within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # Not a number is not within.
        raise UsageError(f"{name} is {value:g}: give {least:g} to {most:,.10g}")
