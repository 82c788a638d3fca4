"""Every error class and exit code of shardnet, sorted by who erred.

The bottom layer: this module imports nothing of shardnet. An error's text is one line that says what is wrong,
where, and how to mend it, because the command line shows it as it is.
"""

from __future__ import annotations

import enum

__all__ = [
    "AddressInUse",
    "AppError",
    "ConfigError",
    "ConnectionBroken",
    "ConnectionFreed",
    "DeadlineExceeded",
    "ExitCode",
    "InternalError",
    "NotRunning",
    "PeerError",
    "ShardnetError",
    "SystemFault",
    "UsageError",
    "WatcherClosed",
    "WriteQueueOverflow",
]


class ExitCode(enum.IntEnum):
    """What the `shardnet` command's exit status means."""

    OK = 0  # Asked to stop, also when the drain deadline cut connections.
    FAILED = 1
    USAGE = 2
    CONFIG = 3  # A configuration file or an environment variable says something that cannot be.
    APP = 4  # The app could not be loaded.
    ADDRESS = 5  # An address is in use, or this server is running already.
    NOT_RUNNING = 6  # There is no instance to control.
    UNSERVED = 70  # Workers kept failing until nobody had served for a while.


class ShardnetError(Exception):
    """Base of every error that shardnet raises of its own accord."""


class UsageError(ShardnetError):
    """The caller of our API, or the user of our command line, asked for something that cannot be."""


class ConfigError(UsageError):
    """A configuration file, or an environment variable, says something that cannot be."""


class AppError(UsageError):
    """The user's `module:name` does not import, does not exist, or is no handler."""


class PeerError(ShardnetError):
    """The other end of the network did something that ended an operation."""


class SystemFault(ShardnetError):
    """The kernel refused, or a resource of the machine ran out."""


class AddressInUse(SystemFault):
    """An address to listen on belongs to somebody else."""


class NotRunning(SystemFault):
    """There is no instance of that name to control."""


class InternalError(ShardnetError):
    """A promise that shardnet makes to itself was broken: a bug of ours."""


class ConnectionFreed(UsageError, ConnectionError):
    """The operation was asked on, or was waiting on, a connection that this side has closed."""


class WatcherClosed(UsageError):
    """The operation was asked of a watcher that is closed."""


class DeadlineExceeded(PeerError, TimeoutError):
    """An operation was not complete when its deadline passed. Its `errno` is None: the kernel's own ETIMEDOUT
    stays a plain `TimeoutError`."""


class ConnectionBroken(PeerError, ConnectionError):
    """A write on a stream in which an earlier one had stopped half-way: its bytes would be taken for the rest."""


class WriteQueueOverflow(PeerError, ConnectionError):
    """The peer read too slowly: more bytes were waiting to be sent than the hard limit allows."""
